"""The state of a search over the parts of a network.

`Search` holds the network as it is, its streams on the images, and what is known
of each part that can go. `greedy` decides with it, step by step.

Where tokens merge, networks are scored with the merging. Repairs are fitted
without it, since they compare each token with the same one of the dense network.
"""

import dataclasses
import math
from collections.abc import Callable

from lambda_vit_jax.analysis import memory
from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.compression import costs, parts
from lambda_vit_jax.compression.options import CompressOptions
from lambda_vit_jax.compression.parts import Part
from lambda_vit_jax.compression.repairs import Repair, Repairer, RepairOptions
from lambda_vit_jax.compression.scores import Scorer
from lambda_vit_jax.compression.streams import Streams
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.selection.output_error import split
from lambda_vit_jax.training_free import linear_maps, map_fitter, mlp_refit

# Of the memory for activations, for each of three sets of streams.
_STREAMS_SHARE = 1 / 6

OnScore = Callable[[Part], None]


class Search:
  """The network as it is, and what is known of its parts.

  Attributes:
    model: float32, on the devices.
    score: of the network.
    growth: per part, how much the score grew by it when it was last measured.
    cost: of a network.
    repairs: whether MLPs are refitted.
  """

  def __init__(
    self,
    model: Model,
    dense: Model,
    images: ImageSet,
    options: CompressOptions,
    cost: costs.Cost,
  ):
    """Splits the images, and runs the dense network on those to score."""
    self._options, self.cost = options, cost
    self.repairs = options.repair
    self._inputs = tuple(options.inputs or ())
    fitted, held = split(images)
    mlp_refit.check_images(fitted, held.total)
    maps = None
    if self._inputs:
      maps = linear_maps.map_options(model, self._inputs)
      maps = dataclasses.replace(maps, ridge=options.fixed_ridge)
      map_fitter.check_samples(model, fitted, maps, held.total)
    place = images.placement
    self.model = model.replace(params=place.replicate(model.params))
    dense = dense.replace(params=place.replicate(dense.params))
    budget = options.memory_gib
    if budget is None:
      budget = memory.default_gib()
    share = _STREAMS_SHARE * budget

    def streams(of: Model, some: ImageSet) -> Streams:
      size = memory.micro_batch_size(of.module, some, options.memory_gib)
      return Streams(of, some, size, share)

    self._fitted, self._dense = (
      streams(self.model, fitted),
      streams(dense, fitted),
    )
    self._held, reference = streams(self.model, held), streams(dense, held)
    self._repairer = Repairer(
      self._fitted,
      self._dense,
      RepairOptions(maps, options.repair, options.fixed_ridge),
    )
    self._scorer = Scorer.make(
      self._held, reference, options.criterion, options.target
    )
    self._before = reference.blocks_run
    self._per_evaluation = images.total * dense.depth
    self.growth: dict[Part, float] = {}
    self._repairs: dict[Part, Repair] = {}
    # The first position from which MLPs were not refitted since the last change.
    self._unsettled = self.model.depth
    self.score = self.measured()
    self._goal = cost(dense) / options.target_speedup

  @property
  def evaluations(self) -> float:
    """Blocks run so far, in forward passes of the dense network."""
    each = (self._fitted, self._dense, self._held)
    total = self._before + sum(streams.blocks_run for streams in each)
    return total / self._per_evaluation

  def savings(self) -> dict[Part, float]:
    """The parts that can go, and what each saves."""
    now = self.cost(self.model)
    found = {
      part: now - self.cost(parts.without(self.model, part, self._inputs))
      for part in parts.parts_left(self.model, self._options.parts)
    }
    return {part: saved for part, saved in found.items() if saved > 0.0}

  def choose(
    self, on_score: OnScore = lambda part: None
  ) -> tuple[Part, dict[Part, float]]:
    """The part that goes next, and the scores of those that were measured.

    Raises:
      UsageError: no part is left that saves anything.
    """
    savings = self.savings()
    if not savings:
      target = self._options.target_speedup
      raise UsageError(
        f'compress.parts={list(self._options.parts)}: the steps so far reach '
        f'{self._goal * target / self.cost(self.model):.3f}, and nothing is '
        'left that saves anything; give more parts, or a smaller target_speedup'
      )
    # What a part saves beyond the target is worth nothing.
    needed = max(self.cost(self.model) - self._goal, math.ulp(self._goal))
    worth = {part: min(saved, needed) for part, saved in savings.items()}
    measured: dict[Part, float] = {}

    def measure(part: Part) -> None:
      measured[part] = self._measure(part)
      self.growth[part] = measured[part] - self.score
      on_score(part)

    def ratio(part: Part) -> tuple[float, Part]:
      # Parts that were never scored come first.
      return self.growth.get(part, -math.inf) / worth[part], part

    if self._options.rescore == 'all':
      for part in savings:
        measure(part)
    while (best := min(savings, key=ratio)) not in measured:
      measure(best)
    return best, measured

  def settle(self, always: bool) -> dict[int, Params]:
    """Refits the MLPs after the first change, if that lowers the score.

    Repairs are made one at a time, so that those of earlier steps do not know
    of later ones.

    Args:
      always: whatever the score, as in an earlier search.

    Returns:
      The new parameters of blocks, by their index in the variant; none if the
      network stays as it was.
    """
    found = {}
    before, first = self.model, min(self._unsettled, self.model.depth)
    for position in range(first, before.depth):
      if before.mlp_dims[position]:
        new = self._repairer.settled(position)
        found[before.block_origins[position]] = new
        params = self.model.params | {block_name(position): new}
        self._change(self.model.replace(params=params), position)
    score = self._scorer(self.model, first)
    if score > self.score and not always:
      self._change(before, first)
      return {}
    self.score = score
    self._unsettled = before.depth
    self._keep_repairs(min(found, default=before.depth))
    return found

  def _keep_repairs(self, first: int) -> None:
    """Forgets those that a change from the block `first` on affects."""
    self._repairs = {
      part: found for part, found in self._repairs.items() if found.last < first
    }

  def _change(self, model: Model, first: int) -> None:
    self.model = model
    self._unsettled = min(self._unsettled, first)
    self._fitted.change(parts.unmerged(model), first)
    self._held.change(model, first)

  def measured(self) -> float:
    """The score of the network as it is, from its outputs."""
    return self._scorer(self.model, self.model.depth)

  def _measure(self, part: Part) -> float:
    """The score of the network without a part."""
    repair = self._repair(part)
    first = parts.position_of(self.model, repair.first)
    return self._scorer(repair.apply(self.model), first)

  def _repair(self, part: Part) -> Repair:
    """Of the network as it is; fitted once for what it depends on."""
    if part not in self._repairs:
      self._repairs[part] = self._repairer(part)
    return self._repairs[part]

  def take(self, part: Part, score: float) -> Repair:
    """Goes on without a part, whose network has this score."""
    repair, old = self._repair(part), self.model
    first = parts.position_of(old, repair.first)
    self.model, self.score = repair.apply(old), score
    if part.kind == 'tokens':
      self._held.change(self.model, first)
      return repair
    self._change(self.model, first)
    # Fits look at the network up to their block, and at whether its other tokens
    # are still read.
    if parts.last_mixing(old) == parts.last_mixing(self.model):
      self._keep_repairs(repair.first)
    else:
      self._repairs = {}
    left = parts.parts_left(self.model, self._options.parts)
    self.growth = {
      other: grown for other, grown in self.growth.items() if other in left
    }
    return repair
