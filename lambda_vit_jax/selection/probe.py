"""`criterion=probe`: choose among sets of layers by short training runs.

Each static criterion proposes its set of layers. Short dilutions in successive
halving (`short_dilution`) rank these sets by the loss on held-out images. This
costs some thousand training steps; a static criterion costs a few forward
passes.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import Batches
from lambda_vit_jax.core.errors import warn_user
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.budget import resolve_num_layers
from lambda_vit_jax.selection.nose import select
from lambda_vit_jax.selection.options import SearchOptions
from lambda_vit_jax.selection.record import Selection
from lambda_vit_jax.selection.short_dilution import (
  ShortDilution,
  successive_halving,
)
from lambda_vit_jax.selection.trials import Trial

PROPOSERS: Mapping[str, Mapping[str, Any]] = {
  'transfer_entropy': {'criterion': 'transfer_entropy'},
  'transfer_entropy, absolute': {
    'criterion': 'transfer_entropy',
    'sign': 'absolute',
  },
  'transfer_entropy of features': {
    'criterion': 'transfer_entropy',
    'target': 'features',
  },
  'loss_increase': {'criterion': 'loss_increase'},
  'cosine': {'criterion': 'cosine'},
  'affine': {'criterion': 'affine'},
  'first': {'criterion': 'first'},
  'last': {'criterion': 'last'},
}
"""Name of each proposal, and its `SearchOptions`."""


@dataclasses.dataclass(frozen=True)
class ProbeOptions:
  """How the probe searches.

  Attributes:
    steps: training steps of the first rung; each further rung doubles them.
    search: budget, memory and seed of the proposing searches; their criteria,
      targets and signs are those of `PROPOSERS`.
  """

  steps: int
  search: SearchOptions


def proposals(
  model: Model,
  batches: Batches,
  options: SearchOptions,
  mesh: Mesh | None = None,
  warn: Callable[[str], None] = warn_user,
) -> dict[str, Trial]:
  """The set of layers that each static criterion removes.

  Args:
    model: see `nose.select`. `loss_increase` is left out for a model without
      classes.
    batches: with labels, read once per criterion; an iterator is kept as a list
      (each search keeps the images on the host anyway).
    options: budget, memory and seed of every search.
    mesh: see `nose.select`.
    warn: takes one line.
  """
  if isinstance(batches, Iterator):
    batches = list(batches)
  found = {}
  for name, own in PROPOSERS.items():
    if name == 'loss_increase' and not model.num_classes:
      continue
    settings = {'target': 'logits', 'sign': 'signed', 'trial': 'skip', **own}
    search = dataclasses.replace(options, resamples=0, **settings)
    found[name] = select(model, batches, search, mesh=mesh, warn=warn).removed
  return found


def select_by_probe(
  model: Model,
  batches: Batches,
  short: ShortDilution,
  options: ProbeOptions,
  *,
  done: Mapping[tuple[Trial, int], float] | None = None,
  on_score: Callable[[Trial, int, float], None] = lambda *_: None,
  mesh: Mesh | None = None,
  warn: Callable[[str], None] = warn_user,
) -> Selection:
  """Chooses the proposed set of least held-out loss after a short dilution.

  Args:
    model: the start of `short` or, if that is a segmentation model, its
      backbone.
    batches: held-out images with labels, for the proposals.
    short: trains and scores, on held-out images too.
    options: number of steps, and the budget.
    done: losses by set and steps, from an interrupted search.
    on_score: called after every short dilution with set, steps and loss.
    mesh: devices that share the images of the proposing searches.
    warn: takes one line.

  Returns:
    A `Selection` without rounds. Its `set_scores` are each set's loss in the
    longest rung that it reached.
  """
  search = options.search
  number = resolve_num_layers(model, **search.budget)
  search = dataclasses.replace(
    search, num_layers=number, removal_ratio=None, target_speedup=None
  )
  sets = proposals(model, batches, search, mesh, warn) if number else {}
  known = dict(done or {})

  def loss(layers: Trial, steps: int) -> float:
    if (layers, steps) not in known:
      found = short.score(layers, short.train(layers, steps))['loss']
      if not math.isfinite(found):
        warn(f'the short dilution of {list(layers)} diverged')
        # Ranks last, and JSON can hold it.
        found = sys.float_info.max
      known[layers, steps] = found
      on_score(layers, steps, found)
    return known[layers, steps]

  # Without a layer to remove there is nothing to rate.
  rungs = successive_halving(sets.values(), loss, options.steps) if sets else []
  best = rungs[-1].ranking[0] if rungs else ()
  return Selection(
    'probe',
    'loss',
    'signed',
    short.num_test_images,
    base_entropy=None,
    order=best,
    removed=best,
    removed_before=model.removed_layers,
    set_scores=dict(pair for rung in rungs for pair in rung.scores.items()),
  )
