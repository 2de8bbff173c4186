"""NOSE with the affine map as its trial: what would `linearize` leave?

A trial of METHOD, section 4, leaves a candidate's attention out. Where
attention is to be replaced by affine maps (METHOD, section 6), the better
question is what the network says with the candidate replaced:

  score(i) = H(target | all attention)
             - H(target | maps in place of S, fitted in sequence, and of i)

(or the rise of the loss). A round takes two passes: one fits the maps, one
evaluates all candidates block by block, sharing what lies below each. Maps
are arguments of the compiled programs, whose number does not depend on
rounds or candidates. Labels are used by `loss_increase` alone.
"""

import dataclasses
from collections.abc import Sequence

from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import criteria
from lambda_vit_jax.selection.criteria import Criterion, Scores
from lambda_vit_jax.selection.trials import Trial, TrialRunner
from lambda_vit_jax.training_free.linear_maps import fit_trials

TRIALS = ('skip', 'linear')
"""Values of `select.trial`."""


class LinearTrials:
  """A measured criterion whose trials are affine maps; a `Criterion`."""

  def __init__(
    self,
    measured: Criterion,
    runner: TrialRunner,
    model: Model,
    images: ImageSet,
    memory_gib: float | None = None,
  ):
    """Names what is searched.

    Args:
      measured: `criteria.measured` on `runner`.
      runner: of `model` and `images`.
      model: as it is before the search.
      images: maps are fitted, and scores measured, on all of them; their
        streams (images × tokens × embed numbers) are kept on the devices.
      memory_gib: activations held at a time beside these, per device.
    """
    self._measured = measured
    self._runner = runner
    self._model = model
    self._images = images
    self._memory_gib = memory_gib

  def __call__(self, removed: Trial, candidates: Sequence[int]) -> Scores:
    """Scores each candidate, with maps in place of `removed` already."""
    maps, evaluated = fit_trials(
      self._model, self._images, removed, candidates, self._memory_gib
    )
    self._runner.use_maps(maps)
    scores = self._measured(removed, candidates)
    return dataclasses.replace(
      scores, block_evaluations=scores.block_evaluations + evaluated
    )


def check_trial(trial: str, criterion: str) -> None:
  """Refuses a trial that is unknown, or that a criterion does not make.

  Args:
    trial: one of `TRIALS`.
    criterion: as in `select.criterion`.

  Raises:
    UsageError: names the key and what is known.
  """
  if trial not in TRIALS:
    raise UsageError(
      f'select.trial={trial!r} is not known; use {" or ".join(TRIALS)}'
    )
  if trial != 'skip' and criterion not in criteria.MEASURED:
    raise UsageError(
      f'select.trial={trial} needs select.criterion='
      f'{" or ".join(criteria.MEASURED)}; {criterion} makes no '
      'such trials'
    )
