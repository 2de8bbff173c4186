"""NOSE as a path: attention alone, by transfer entropy, without repair.

The scores are those of `selection.nose`, by the same code on the same images, and
so is the order; only the budget is in what the network costs.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import cast

from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.compression import costs, steps
from lambda_vit_jax.compression.options import CompressOptions
from lambda_vit_jax.compression.parts import (
  Part,
  parts_left,
  position_of,
  without,
)
from lambda_vit_jax.compression.record import Compression, Step
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import criteria
from lambda_vit_jax.selection.criteria import TrialCriterion
from lambda_vit_jax.selection.trial_readout import Target
from lambda_vit_jax.selection.trials import TrialRunner


def walk(
  found: Compression,
  before: Sequence[Step],
  images: ImageSet,
  options: CompressOptions,
  cost: costs.Cost,
  on_step: Callable[[Compression], None],
) -> Compression:
  """Removes attention layers until the target is reached.

  Args:
    found: a path without steps.
    before: steps of an earlier search, of which only the last is scored again.
    images: all of them are scored.
    options: of the search.
    cost: of a network.
    on_step: called after every new step.

  Raises:
    UsageError: the steps are those of another network, or of other images.
  """
  first = found.model
  target = cast(Target, options.target)
  runner = TrialRunner(first, images, target, options.memory_gib)
  trials = TrialCriterion('transfer_entropy', runner, resamples=0, seed=0)
  spent = found.evaluations
  found = _again(found, before, trials)
  while found.reached < found.target_speedup:
    began = time.perf_counter()
    left = parts_left(found.model, ('attention',))
    at = sorted(position_of(first, part.block) for part in left)
    scores = _scores(first, found.steps, at, trials)
    # Positions in the first network, as in the search for layers.
    chosen = criteria.choose(scores)
    part = Part(first.block_origins[chosen], 'attention')
    model = without(found.model, part)
    seconds = time.perf_counter() - began
    measured = {
      Part(first.block_origins[position], 'attention'): value
      for position, value in scores.items()
    }
    step = steps.step_of(model, part, measured, cost, seconds)
    found = dataclasses.replace(
      steps.extended(found, step, model, {}),
      evaluations=spent + runner.block_evaluations / first.depth,
      timings=getattr(cost, 'known', {}),
    )
    on_step(found)
  return found


def _again(
  found: Compression, before: Sequence[Step], trials: TrialCriterion
) -> Compression:
  """Makes the steps of an earlier search again, as far as they are needed."""
  first = found.model
  for step in before:
    if found.reached >= found.target_speedup:
      break
    part = Part(step.block, step.part)
    steps.check_possible(part, parts_left(found.model, ('attention',)))
    found = steps.extended(found, step, without(found.model, part), {})
  if found.steps:
    *others, last = found.steps
    at = position_of(first, last.block)
    steps.check_same(last, _scores(first, others, [at], trials)[at])
  return found


def _scores(
  first: Model, gone: Sequence[Step], at: Sequence[int], trials: TrialCriterion
) -> dict[int, float]:
  """The transfer entropy of attention layers, beside those that are gone."""
  positions = sorted(position_of(first, step.block) for step in gone)
  return trials(tuple(positions), at).values
