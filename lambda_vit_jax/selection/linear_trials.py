"""Score layers by replacing them with affine maps instead of leaving them out.

If attention is to be replaced by affine maps (`linearize`), a trial should
measure the network with the candidate i replaced, given the layers S:

  score(i) = H(target | all attention)
             - H(target | maps for S, fitted in sequence, and for i)

or the increase of the loss. A round takes two passes: one fits the maps, one
evaluates all candidates. Maps are arguments of the compiled programs, whose
number does not depend on rounds or candidates.
"""

import dataclasses
from collections.abc import Sequence

from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import criteria
from lambda_vit_jax.selection.criteria import Scores, TrialCriterion
from lambda_vit_jax.selection.options import OnImages
from lambda_vit_jax.selection.trials import Trial
from lambda_vit_jax.training_free.linear_maps import fit_trials

TRIALS = ('skip', 'linear')
"""Values of `select.trial`."""


class LinearTrials:
  """A `Criterion` whose trials replace attention by affine maps."""

  def __init__(
    self,
    trials: TrialCriterion,
    model: Model,
    images: ImageSet,
    memory_gib: float | None = None,
  ):
    """Sets up the criterion.

    Args:
      trials: scores of `model` on `images`.
      model: the model to search.
      images: used both to fit maps and to measure scores; their streams
        (images × tokens × embed numbers) are kept on the devices.
      memory_gib: activations held at a time beside the streams, per device.
    """
    self._trials = trials
    self._model = model
    self._images = images
    self._memory_gib = memory_gib

  def __call__(
    self,
    removed: Trial,
    candidates: Sequence[int],
    on_images: OnImages | None = None,
  ) -> Scores:
    """Scores each candidate, with maps for `removed` in place."""
    maps, evaluated = fit_trials(
      self._model, self._images, removed, candidates, self._memory_gib
    )
    self._trials.runner.use_maps(maps)
    scores = self._trials(removed, candidates, on_images)
    return dataclasses.replace(
      scores, block_evaluations=scores.block_evaluations + evaluated
    )


def check_trial(trial: str, criterion: str) -> None:
  """Refuses an unknown kind of trial, or one that a criterion does not use.

  Raises:
    UsageError: names the key and the known values.
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
