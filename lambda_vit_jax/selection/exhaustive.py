"""Exhaustive search: score every set of layers, if there are few enough."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.selection.criteria import TrialCriterion, choose
from lambda_vit_jax.selection.options import OnProgress, round_listener
from lambda_vit_jax.selection.record import Selection
from lambda_vit_jax.selection.trials import Trial

MOST_SETS = 2000


def all_sets(candidates: Sequence[int], num_layers: int) -> list[Trial]:
  """Every set of `num_layers` candidates, in lexicographic order.

  Raises:
    UsageError: more than `MOST_SETS`.
  """
  count = math.comb(len(candidates), num_layers)
  if count > MOST_SETS:
    raise UsageError(
      f'select.criterion=exhaustive: {num_layers} of {len(candidates)} layers '
      f'are {count} sets, more than {MOST_SETS}; choose fewer layers or '
      'another criterion'
    )
  return list(itertools.combinations(sorted(candidates), num_layers))


def exhaustive_search(
  criterion: TrialCriterion,
  start: Selection,
  candidates: Sequence[int],
  num_layers: int,
  *,
  on_progress: OnProgress | None = None,
) -> Selection:
  """Chooses the set of least score, the first one on a tie.

  Args:
    criterion: scores sets of layers.
    start: a selection without layers.
    candidates: blocks that may be chosen.
    num_layers: size of every set.
    on_progress: called during the one pass over the images.
  """
  listener = round_listener(on_progress, 0, num_layers, len(candidates))
  scores = criterion.score_sets(all_sets(candidates, num_layers), listener)
  best = choose(scores.values, start.sign)
  return dataclasses.replace(
    start,
    base_entropy=scores.base_entropy,
    order=best,
    removed=best,
    set_scores=scores.values,
    block_evaluations=scores.block_evaluations,
  )
