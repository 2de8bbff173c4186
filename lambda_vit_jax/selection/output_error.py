"""Score layers by the error that their maps leave at the network's output.

The criterion `output`: with the candidate i replaced by its map, given the maps
of the layers S,

  score(i) = mean over images of KL(dense logits ‖ logits with maps for S and i)

or, for the target `features`, of the mean squared difference of the class
features, as for networks without a head or with a single class, whose softmax
says nothing. Labels are not used. Maps are fitted on three quarters of the images and
scored on the rest: on images that it was fitted on, a map looks better than it is.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.models.build import forward
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.criteria import Criterion, TrialCriterion
from lambda_vit_jax.selection.linear_trials import linear_trials
from lambda_vit_jax.selection.options import SearchOptions
from lambda_vit_jax.selection.trial_readout import Target
from lambda_vit_jax.selection.trials import TrialRunner
from lambda_vit_jax.training_free.linear_maps import map_options

# One of this many images is scored, the others are fitted on.
_SCORED = 4

_BATCH = 64


def split(images: ImageSet) -> tuple[ImageSet, ImageSet]:
  """The images to fit on, and those to score, of every process.

  Raises:
    DataError: too few images to have both.
  """
  everything = np.concatenate(images.images)
  scored = np.arange(len(everything)) % _SCORED == _SCORED - 1
  if not scored.any():
    raise DataError(
      f'{len(everything)} images cannot be split into images to fit and to '
      'score; give at least 128, better 512'
    )
  fitted, held = (
    dataclasses.replace(images, images=(everything[rows],), labels=None)
    for rows in (~scored, scored)
  )
  return fitted, held


def output_error(
  model: Model, images: ImageSet, options: SearchOptions
) -> Criterion:
  """Returns the criterion, whose trials replace attention by maps.

  Args:
    model: the model to search, and what its output is compared with.
    images: see `split`.
    options: `inputs` of the maps, and `target`.
  """
  map_options(model, options.inputs)
  fitted, held = split(images)
  by_logits = options.target == 'logits' and model.num_classes > 1
  dense = []
  for start in range(0, len(held.images[0]), _BATCH):
    batch = jnp.asarray(held.images[0][start : start + _BATCH])
    logits, taps = forward(model.module, model.params, batch)
    dense.append(np.asarray(logits if by_logits else taps['features']))
  wanted = np.concatenate(dense).astype(np.float32)
  target: Target = 'divergence' if by_logits else 'feature_error'
  trials = TrialCriterion(
    'output',
    TrialRunner(
      model,
      dataclasses.replace(held, labels=(wanted,)),
      target,
      options.memory_gib,
    ),
    options.resamples,
    options.seed,
  )
  return linear_trials(
    trials, model, fitted, options.memory_gib, options.inputs
  )
