"""NOSE: which attention layers go (METHOD, section 4).

`nose` for notebooks, `select` with every option, `nose_order` for the bare
greedy search on any score. A `Selection` is what `selection.json` holds.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import bootstrap, criteria, linear_trials
from lambda_vit_jax.selection.budget import with_attention
from lambda_vit_jax.selection.checks import (
  check_budget,
  check_names,
  check_resumed,
  enough_images,
)
from lambda_vit_jax.selection.criteria import Criterion, Scores
from lambda_vit_jax.selection.record import Round, Selection
from lambda_vit_jax.selection.trial_readout import Target
from lambda_vit_jax.selection.trials import Trial, TrialRunner

Sign = Literal['signed', 'absolute']
Batches = Iterable[Array | Mapping[str, Array]]
ScoreFunction = Callable[[Trial, tuple[int, ...]], Mapping[int, float]]

_RESAMPLES = 1000


def choose(scores: Mapping[int, float], sign: Sign = 'signed') -> int:
  """The block with the least (absolute) score, the lowest index on a tie."""
  size = abs if sign == 'absolute' else float
  return min(sorted(scores), key=lambda block: size(scores[block]))


def nose_order(
  score_fn: ScoreFunction,
  depth: int,
  num_layers: int,
  sign: Sign = 'signed',
  candidates: Iterable[int] | None = None,
  order: Sequence[int] = (),
) -> tuple[int, ...]:
  """The greedy search of METHOD, section 4, on any score; pure.

  Args:
    score_fn: takes the layers removed so far (ascending) and the remaining
      candidates (ascending) to a score per candidate: one call a round.
    depth: number of blocks.
    num_layers: layers to choose.
    sign: `signed` takes the least score, `absolute` the least in magnitude.
    candidates: blocks that may go; all by default.
    order: layers chosen already, to go on from.

  Returns:
    The layers in the order in which they were chosen.
  """
  allowed = set(range(depth) if candidates is None else candidates)
  order = tuple(order)
  while len(order) < num_layers:
    left = tuple(sorted(allowed - set(order)))
    order += (choose(score_fn(tuple(sorted(order)), left), sign),)
  return order


def _warn(message: str) -> None:
  warnings.warn(message, stacklevel=3)


@dataclasses.dataclass(frozen=True)
class Progress:
  """Where a search is.

  Attributes:
    round_index: from 0.
    num_rounds: in all.
    candidates: left in this round.
    images_done: of this round.
    images: in all.
  """

  round_index: int
  num_rounds: int
  candidates: int
  images_done: int
  images: int


def select(
  model: Model,
  batches: Batches | None,
  *,
  criterion: str = 'transfer_entropy',
  target: str = 'logits',
  sign: Sign = 'signed',
  trial: str = 'skip',
  num_layers: int | None = None,
  removal_ratio: float | None = None,
  target_speedup: float | None = None,
  layers: Sequence[int] = (),
  memory_gib: float | None = None,
  seed: int = 0,
  resamples: int = _RESAMPLES,
  mesh: Mesh | None = None,
  resume: Selection | None = None,
  on_round: Callable[[Selection], None] | None = None,
  on_progress: Callable[[Progress], None] | None = None,
  warn: Callable[[str], None] = _warn,
) -> Selection:
  """Chooses attention layers to remove.

  Args:
    model: blocks without attention are left alone.
    batches: an iterable of normalised NHWC arrays or of dicts with `image`,
      `label`, `mask`; see `images.read_images`. Unused, and may be None, for
      the criteria that look at no image.
    criterion: one of `criteria.CRITERIA`; `exhaustive` may name its score,
      `exhaustive:loss_increase`.
    target: `logits` or `features`, for `transfer_entropy`.
    sign: `signed` removes the least transfer entropy, `absolute` the least
      in magnitude.
    trial: what is tried in place of a candidate's attention, for the criteria
      of `criteria.MEASURED`: `skip` leaves it out; `linear` fits an affine
      map for it, see `trial_linear`.
    num_layers: budget; 5 if none of the three is given.
    removal_ratio: budget as a share of the blocks.
    target_speedup: budget as a ratio of multiply-accumulates.
    layers: the list of criterion `given`, whose length is then the budget.
    memory_gib: activations held at a time, per device.
    seed: of `random` and of the bootstrap.
    resamples: of the bootstrap, 0 for none.
    mesh: devices that share the images; see `images.read_images`.
    resume: what `on_round` was last called with by an interrupted search.
    on_round: called after every round with the search so far.
    on_progress: called within rounds.
    warn: takes one line; a Python warning by default.

  Raises:
    UsageError: unknown names, trial `linear` of a criterion without trials,
      no or an impossible budget, or a search that `resume` does not belong to.
    DataError: fewer than two images, images of another shape, no label where
      the criterion needs one, all channels dead; trial `linear` on fewer
      samples (images × tokens) than inputs of a map.
    ModelError: NaN activations (the block is named), or layers of `given`
      that are out of range or repeated.
  """
  name, score = criteria.check_criterion(criterion)
  check_names(target, sign)
  linear_trials.check_trial(trial, criterion)
  number = check_budget(
    model,
    name,
    layers,
    num_layers=num_layers,
    removal_ratio=removal_ratio,
    target_speedup=target_speedup,
  )
  candidates = tuple(layers) if name == 'given' else with_attention(model)
  if name == 'exhaustive':
    resamples = 0
  start = Selection(
    criterion, target, sign, 0, None, resamples=resamples, trial=trial
  )
  images = None
  if name in criteria.NEEDS_IMAGES:
    images = enough_images(model, batches, mesh, warn)
    start = dataclasses.replace(start, num_samples=images.total)
  if resume is not None:
    start = check_resumed(start, resume, number)
  if name != 'exhaustive' and len(start.order) == number:
    return start

  progress = _Reporting(on_progress, number, len(candidates), len(start.order))
  scorer: Any
  if score in criteria.MEASURED:
    images = cast(ImageSet, images)
    kind = criteria.measured_target(score, cast(Target, target))
    runner = TrialRunner(model, images, kind, memory_gib)
    scorer = criteria.measured(score, runner, resamples, seed, progress)
    if trial == 'linear':
      scorer = linear_trials.LinearTrials(
        scorer, runner, model, images, memory_gib
      )
  elif images is not None:
    scorer = criteria.layer_scores(name, model, images, memory_gib)
  else:
    scorer = criteria.blind_scores(name, candidates, layers, seed)
  if name == 'exhaustive':
    found = scorer.score_sets(criteria.all_sets(candidates, number))
    return _best_set(start, found, sign)
  if score != 'transfer_entropy':
    sign = 'signed'
  search = _Search(start, scorer, sign, on_round, warn, progress)
  nose_order(search.score, model.depth, number, sign, candidates, start.order)
  return search.state


def nose(
  model: Model,
  batches: Batches,
  num_layers: int | None = None,
  target: str = 'logits',
  **options: Any,
) -> Selection:
  """Which `num_layers` attention layers carry the least transfer entropy.

  Args:
    model: with attention in more than one block, none `diluted`.
    batches: an iterable of normalised NHWC arrays `[n, height, width,
      channels]` float32, n as you like; 128 images or more in all.
    num_layers: layers to remove; 5 where no other budget is among `options`.
    target: `logits` or `features`.
    **options: `criterion`, `sign`, `trial`, `removal_ratio`, `target_speedup`,
      `layers`, `memory_gib` (per device), `seed`, as the config keys
      `select.*` of these names; `resamples` (of the bootstrap, 0 for none),
      `mesh`, `on_progress`, `warn`.

  Returns:
    A `Selection`: `.order`, `.removed`, `.rounds[k].scores` (METHOD, 4), in
    nats.

  Raises:
    UsageError: an impossible budget or an unknown name.
    DataError: too few images, or of another shape than the model takes.
    ModelError: activations that are NaN or infinite; names the block.
  """
  return select(model, batches, num_layers=num_layers, target=target, **options)


class _Reporting:
  """Adds the round to the progress within it."""

  def __init__(
    self,
    listener: Callable[[Progress], None] | None,
    num_rounds: int,
    candidates: int,
    round_index: int,
  ):
    self._listener = listener
    self._num_rounds = num_rounds
    self._candidates = candidates
    self.round_index = round_index

  def __call__(self, done: int, images: int) -> None:
    if self._listener is not None:
      left = self._candidates - self.round_index
      self._listener(
        Progress(self.round_index, self._num_rounds, left, done, images)
      )


class _Search:
  """Keeps the rounds of one greedy search while `nose_order` drives it."""

  def __init__(
    self,
    start: Selection,
    scorer: Criterion,
    sign: Sign,
    on_round: Callable[[Selection], None] | None,
    warn: Callable[[str], None],
    progress: _Reporting,
  ):
    self.state = start
    self._scorer = scorer
    self._sign: Sign = sign
    self._on_round = on_round
    self._warn = warn
    self._progress = progress

  def score(
    self, removed: Trial, candidates: tuple[int, ...]
  ) -> Mapping[int, float]:
    """Scores one round, records it, and tells who listens."""
    began = time.perf_counter()
    scores = self._scorer(removed, candidates)
    chosen = choose(scores.values, self._sign)
    row = self._round(scores, chosen, time.perf_counter() - began)
    self._warn_of_dead(row)
    state = self.state
    order = (*state.order, chosen)
    self.state = dataclasses.replace(
      state,
      base_entropy=(
        scores.base_entropy
        if state.base_entropy is None
        else state.base_entropy
      ),
      order=order,
      removed=tuple(sorted(order)),
      rounds=(*state.rounds, row),
      block_evaluations=state.block_evaluations + scores.block_evaluations,
    )
    self._progress.round_index += 1
    if self._on_round is not None:
      self._on_round(self.state)
    return scores.values

  def _warn_of_dead(self, row: Round) -> None:
    dead = row.dead_channels
    if dead and all(dead != old.dead_channels for old in self.state.rounds):
      self._warn(
        f'channels {list(dead)} of the {self.state.target} are constant over '
        'the images and left out of the entropies'
      )

  def _round(self, scores: Scores, chosen: int, seconds: float) -> Round:
    row = Round(
      scores.values, chosen, seconds, dead_channels=scores.dead_channels
    )
    if not scores.resampled:
      return row
    sure = bootstrap.certainty(
      scores.values,
      scores.resampled,
      chosen,
      self.state.num_samples,
      self._sign == 'absolute',
    )
    return dataclasses.replace(
      row,
      intervals=sure.intervals,
      indistinguishable=sure.indistinguishable,
      suggested_images=sure.suggested_images,
      agreeing=np.packbits(sure.same_choice).tobytes().hex(),
    )


def _best_set(start: Selection, scores: Scores, sign: Sign) -> Selection:
  """The optimum over all sets, the first in lexicographic order on a tie."""
  size = abs if sign == 'absolute' else float
  best = min(
    scores.values, key=lambda blocks: (size(scores.values[blocks]), blocks)
  )
  return dataclasses.replace(
    start,
    base_entropy=scores.base_entropy,
    order=best,
    removed=best,
    set_scores=scores.values,
    block_evaluations=scores.block_evaluations,
  )
