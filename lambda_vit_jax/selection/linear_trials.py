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
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.criteria import Criterion, Scores, TrialCriterion
from lambda_vit_jax.selection.options import OnImages
from lambda_vit_jax.selection.trials import Trial
from lambda_vit_jax.training_free.linear_maps import fit_trials


def linear_trials(
  trials: TrialCriterion,
  model: Model,
  images: ImageSet,
  memory_gib: float | None = None,
  inputs: Sequence[str] | None = None,
) -> Criterion:
  """Returns a criterion whose trials replace attention by affine maps.

  Args:
    trials: scores of `model` on `images`.
    model: the model to search.
    images: used both to fit maps and to measure scores; their streams
      (images × tokens × embed numbers) are kept on the devices.
    memory_gib: activations held at a time beside the streams, per device.
    inputs: of the maps, as for `linearize`; those of the model by default.
  """

  def criterion(
    removed: Trial,
    candidates: Sequence[int],
    on_images: OnImages | None = None,
  ) -> Scores:
    maps, evaluated = fit_trials(
      model, images, removed, candidates, memory_gib, inputs
    )
    trials.runner.use_maps(maps)
    scores = trials(removed, candidates, on_images)
    return dataclasses.replace(
      scores, block_evaluations=scores.block_evaluations + evaluated
    )

  return criterion
