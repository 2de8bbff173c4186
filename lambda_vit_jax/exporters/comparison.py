"""Compare the logits of exported files with those of the model."""

import math
from collections.abc import Callable

import jax
import numpy as np

from lambda_vit_jax.core.errors import DataError, ModelError, warn_user
from lambda_vit_jax.core.images import check_values, model_images
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model

Program = Callable[[Array], Array]
"""Normalised NHWC images to logits."""

_NUM_IMAGES = 4
# More are for a calibration.
_MOST_IMAGES = 8


def checked_images(model: Model, images: Array) -> np.ndarray:
  """Images as a call of the model takes them, in float32.

  Raises:
    DataError: images of another shape, or none.
  """
  module = model.module
  shape = (*module.image_size, module.in_chans)
  found = np.asarray(
    model_images(images, model.preprocessing, shape, 'check_images'), np.float32
  )
  warning = check_values(found, model.preprocessing, 'check_images')
  if warning:
    warn_user(warning)
  if not len(found):
    raise DataError('check_images holds no image; give at least one')
  return found


def compare_with(
  model: Model, images: Array | None
) -> Callable[[Program], float]:
  """Computes a model's logits, to compare programs with.

  Matrix products are in full float32, on accelerators as well.

  Args:
    model: the model to export.
    images: NHWC images, as a call of the model takes them; noise from a fixed
      seed if None.

  Returns:
    A function from a program to the `difference` of its logits.

  Raises:
    DataError: images of another shape, or none.
    ModelError: logits that are not finite.
  """
  module = model.module
  if images is None:
    shape = (_NUM_IMAGES, *module.image_size, module.in_chans)
    images = np.random.default_rng(0).normal(size=shape)
  images = checked_images(model, images)[:_MOST_IMAGES]

  def run(program: Program) -> np.ndarray:
    with jax.default_matmul_precision('highest'):
      return np.asarray(program(images))

  logits = run(model)
  if not np.isfinite(logits).all():
    raise ModelError(
      'the model returns NaN or infinite logits; it is not worth exporting'
    )
  # With token merging, rounding can flip a near tie between two matches, which
  # changes the logits of that one image by more than rounding.
  typical = any(module.merge_counts)
  return lambda program: difference(logits, run(program), typical)


def difference(reference: Array, found: Array, typical: bool = False) -> float:
  """Returns `max |found - reference| / max(1, max |reference|)`.

  Args:
    reference: `[batch, ..., num_classes]`.
    found: the same shape; infinity is returned for another, or for values
      that are not finite.
    typical: take the median image instead of the worst.
  """
  reference = np.asarray(reference, np.float64)
  found = np.asarray(found, np.float64)
  if reference.shape != found.shape:
    return math.inf
  largest = max(1.0, float(np.abs(reference).max()))
  each = np.abs(found - reference).reshape(len(found), -1).max(axis=1) / largest
  worst = float(np.median(each) if typical else each.max())
  return worst if math.isfinite(worst) else math.inf
