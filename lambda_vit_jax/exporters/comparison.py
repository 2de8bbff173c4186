"""Compare the logits of exported files with those of the model."""

import math
import warnings
from collections.abc import Callable

import jax
import numpy as np

from lambda_vit_jax.core.errors import DataError, ModelError
from lambda_vit_jax.core.images import check_values, model_images
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model

Program = Callable[[Array], Array]
"""Normalised NHWC images to logits."""

_NUM_IMAGES = 4


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
  shape = (*module.image_size, module.in_chans)
  if images is None:
    images = np.random.default_rng(0).normal(size=(_NUM_IMAGES, *shape))
  images = np.asarray(
    model_images(images, model.preprocessing, shape, 'check_images'), np.float32
  )
  warning = check_values(images, model.preprocessing, 'check_images')
  if warning:
    warnings.warn(warning, stacklevel=3)
  if not len(images):
    raise DataError('check_images holds no image; give at least one')

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
