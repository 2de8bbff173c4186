"""NOSE: greedy search for attention layers to remove, by transfer entropy.

`greedy_search` is the algorithm; its equations are in
docs/method.md#transfer-entropy-and-nose. `nose`, the public function, and
`select`, which takes its options as one object, run every other criterion too.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import cast

import jax
from jax.sharding import Mesh

from lambda_vit_jax.analysis.blocks import in_float32
from lambda_vit_jax.analysis.images import Batches, ImageSet
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import warn_user
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import checks, criteria
from lambda_vit_jax.selection.bootstrap import certainty
from lambda_vit_jax.selection.budget import with_attention
from lambda_vit_jax.selection.criteria import Criterion, TrialCriterion
from lambda_vit_jax.selection.exhaustive import exhaustive_search
from lambda_vit_jax.selection.linear_trials import linear_trials
from lambda_vit_jax.selection.options import (
  NUM_RESAMPLES,
  OnProgress,
  OnRound,
  SearchOptions,
  Sign,
  canonical,
  round_listener,
)
from lambda_vit_jax.selection.output_error import output_error
from lambda_vit_jax.selection.record import Round, Selection
from lambda_vit_jax.selection.trial_readout import Target
from lambda_vit_jax.selection.trials import TrialRunner
from lambda_vit_jax.training_free.input_choice import named_inputs


def greedy_search(
  criterion: Criterion,
  start: Selection,
  candidates: Sequence[int],
  num_layers: int,
  *,
  on_round: OnRound | None = None,
  on_progress: OnProgress | None = None,
  warn: Callable[[str], None] = warn_user,
) -> Selection:
  """Removes the layer of least score, one a round, until the budget is met.

  Args:
    criterion: scores the remaining candidates, given the layers removed.
    start: a selection without layers, or an interrupted one to resume from;
      its sign decides: `signed` takes the least score, `absolute` the least
      magnitude.
    candidates: blocks that may be chosen.
    num_layers: layers to choose, those of `start` included.
    on_round: called after every round with the selection so far, to save it.
    on_progress: called within rounds.
    warn: takes one line.
  """
  found = start
  while len(found.order) < num_layers:
    began = time.perf_counter()
    remaining = tuple(sorted(set(candidates) - set(found.order)))
    listener = round_listener(
      on_progress, len(found.order), num_layers, len(remaining)
    )
    scores = criterion(found.removed, remaining, listener)
    chosen = criteria.choose(scores.values, found.sign)
    seconds = time.perf_counter() - began
    row = Round(
      scores.values, chosen, seconds, dead_channels=scores.dead_channels
    )
    if scores.resampled:
      sign = cast(Sign, found.sign)
      row = certainty(
        row, scores.resampled, scores.shards, found.num_samples, sign
      )
    dead = row.dead_channels
    # Once for each set of channels.
    if dead and all(dead != old.dead_channels for old in found.rounds):
      warn(
        f'channels {list(dead)} of the {found.target} are constant over '
        'the images and left out of the entropies'
      )
    found = found.with_round(row, scores.base_entropy, scores.block_evaluations)
    if on_round is not None:
      on_round(found)
  return found


def select(
  model: Model,
  batches: Batches | None,
  options: SearchOptions,
  *,
  mesh: Mesh | None = None,
  resume: Selection | None = None,
  on_round: OnRound | None = None,
  on_progress: OnProgress | None = None,
  warn: Callable[[str], None] = warn_user,
) -> Selection:
  """`nose` with its options as one object; see there for the arguments.

  Raises:
    UsageError: an unknown name, an impossible budget, linear trials with a
      criterion that makes no trials, or a search that `resume` is not part of.
    DataError: fewer than two images, images of the wrong shape, missing
      labels, all channels dead, or fewer samples (images × tokens) than a
      linear trial has inputs.
    ModelError: NaN activations (the block is named), or layers of `given`
      that are out of range or repeated.
  """
  name, score = criteria.check_criterion(options.criterion)
  checks.check_names(
    options.target, options.sign, options.trial, options.criterion
  )
  num_layers = checks.check_budget(
    model, name, options.layers, **options.budget
  )
  options = _as_run(options, name, score)
  candidates = options.layers if name == 'given' else with_attention(model)
  images = None
  if name in criteria.NEEDS_IMAGES:
    images = checks.enough_images(model, batches, mesh, warn)
  start = Selection(
    options.criterion,
    options.target,
    options.sign,
    0 if images is None else images.total,
    base_entropy=None,
    resamples=options.resamples,
    trial=options.trial,
    removed_before=model.removed_layers,
    inputs=options.inputs if score == 'output' else (),
    seed=options.seed if options.resamples or name == 'random' else None,
  )
  if resume is not None:
    start = checks.check_resumed(start, resume, num_layers, candidates)

  if len(start.order) == num_layers:
    return start
  model = in_float32(model)
  # Products too: accelerators round their float32 factors by default.
  with jax.default_matmul_precision('highest'):
    if name == 'exhaustive':
      trials = _trial_criterion(model, cast(ImageSet, images), score, options)
      return exhaustive_search(
        trials, start, candidates, num_layers, on_progress=on_progress
      )
    return greedy_search(
      _criterion(name, model, images, candidates, options),
      start,
      candidates,
      num_layers,
      on_round=on_round,
      on_progress=on_progress,
      warn=warn,
    )


def _as_run(options: SearchOptions, name: str, score: str) -> SearchOptions:
  """The options that take effect, so that the record says what was run.

  Only scores that are measured have a sign to choose and are resampled. The
  others are ranks, or never negative.
  """
  measured = score in criteria.MEASURED
  return dataclasses.replace(
    options,
    criterion=canonical(options.criterion),
    target='loss' if score == 'loss_increase' else options.target,
    # The only trials that `output` has.
    trial='linear' if score == 'output' else options.trial,
    sign=options.sign if score in criteria.OF_SETS else 'signed',
    resamples=options.resamples if measured and name != 'exhaustive' else 0,
    inputs=named_inputs(options.inputs),
  )


def _criterion(
  name: str,
  model: Model,
  images: ImageSet | None,
  candidates: Sequence[int],
  options: SearchOptions,
) -> Criterion:
  """The criterion of a greedy search."""
  if images is None:
    return criteria.blind_scores(name, candidates, options.seed)
  if name not in criteria.MEASURED:
    return criteria.layer_scores(name, model, images, options.memory_gib)
  if name == 'output':
    return output_error(model, images, options)
  trials = _trial_criterion(model, images, name, options)
  if options.trial == 'linear':
    return linear_trials(trials, model, images, options.memory_gib)
  return trials


def _trial_criterion(
  model: Model, images: ImageSet, score: str, options: SearchOptions
) -> TrialCriterion:
  target = cast(Target, options.target)
  runner = TrialRunner(model, images, target, options.memory_gib)
  return TrialCriterion(score, runner, options.resamples, options.seed)


@check_arguments
def nose(
  model: Model,
  batches: Batches | None,
  num_layers: int | None = None,
  target: str = 'logits',
  *,
  criterion: str = 'transfer_entropy',
  sign: Sign = 'signed',
  trial: str = 'skip',
  inputs: str | Sequence[str] = ('token',),
  removal_ratio: float | None = None,
  target_speedup: float | None = None,
  layers: Sequence[int] = (),
  memory_gib: float | None = None,
  seed: int = 0,
  resamples: int = NUM_RESAMPLES,
  mesh: Mesh | None = None,
  resume: Selection | None = None,
  on_round: OnRound | None = None,
  on_progress: OnProgress | None = None,
  warn: Callable[[str], None] = warn_user,
) -> Selection:
  """Chooses the attention layers that carry the least transfer entropy.

  Args:
    model: with attention in more than one block, none `diluted`.
    batches: normalised images, 128 or more in all: an iterable of NHWC arrays
      `[n, height, width, channels]` float32 of any n, of `(images, labels)`
      pairs, or of dicts with `image` and `label`; or one such array or dict.
      None will do for criteria that use no images.
    num_layers: layers to remove; 5 where no other budget is given.
    target: `logits` or `features` (of the class token).
    criterion: `transfer_entropy` (or `nose`), or to compare `loss_increase`
      (needs labels), `output` (the error at the output with maps in place),
      `cosine`, `affine`, `canonical`, `random`, `first`, `last`, `given`,
      `exhaustive`, `exhaustive:loss_increase`.
    sign: `signed` removes the layer of least transfer entropy (or increase of
      the loss), `absolute` of least magnitude.
    trial: `skip` scores a layer by leaving it out, `linear` by fitting an
      affine map in its place; `output` always does.
    inputs: of the maps of `output`, as for `linearize`.
    removal_ratio: the budget as a share of the blocks, in [0, 1).
    target_speedup: the budget as a ratio of multiply-accumulates, at least 1.
    layers: blocks to remove with `criterion='given'`.
    memory_gib: memory for activations per device; by default a share of what
      the device has.
    seed: for `random` and the bootstrap.
    resamples: bootstrap resamples for the intervals, 0 for none.
    mesh: devices that share the images; by default those of the arrays, else
      one CPU device or all accelerators.
    resume: an interrupted search, as last passed to `on_round`.
    on_round: called after every round with the selection so far.
    on_progress: called within rounds with a `Progress`.
    warn: takes one line; a Python warning by default.

  Returns:
    A `Selection`: `.order`, `.removed`, and the scores of each round in nats,
    `.rounds[k].scores`.

  Raises:
    UsageError: an impossible budget or an unknown name.
    DataError: too few images, or images of the wrong shape.
    ModelError: activations that are NaN or infinite; names the block.
  """
  options = SearchOptions(
    criterion=criterion,
    target=target,
    sign=sign,
    trial=trial,
    inputs=(inputs,) if isinstance(inputs, str) else tuple(inputs),
    num_layers=num_layers,
    removal_ratio=removal_ratio,
    target_speedup=target_speedup,
    layers=tuple(layers),
    memory_gib=memory_gib,
    seed=seed,
    resamples=resamples,
  )
  return select(
    model,
    batches,
    options,
    mesh=mesh,
    resume=resume,
    on_round=on_round,
    on_progress=on_progress,
    warn=warn,
  )
