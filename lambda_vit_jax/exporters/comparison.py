"""Compare the logits of exported files with those of the model."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model

_NUM_IMAGES = 4

Program = Callable[[Array], Array]
"""Normalised NHWC images to logits."""


@dataclasses.dataclass(frozen=True)
class Reference:
  """A model's logits, to compare the exported files with.

  Attributes:
    images: normalised, `[batch, height, width, channels]` float32.
    logits: `[batch, ..., num_classes]` float32.
    typical: compare the median image instead of the worst.
  """

  images: Array
  logits: Array
  typical: bool

  def difference(self, program: Program) -> float:
    """Returns the difference between a program's logits and the model's."""
    with exact_products():
      found = program(self.images)
      return difference(self.logits, found, typical=self.typical)


def make_reference(model: Model, images: Array | None) -> Reference:
  """Computes the logits that exported files have to reproduce.

  Args:
    model: the model to export.
    images: normalised NHWC images; noise from a fixed seed if None.

  Raises:
    ModelError: images of another shape, or logits that are not finite.
  """
  images = _check_images(model, images)
  with exact_products():
    logits = np.asarray(model(images))
  if not np.isfinite(logits).all():
    raise ModelError(
      'the model returns NaN or infinite logits; it is not worth exporting'
    )
  # With token merging, rounding can flip a near tie between two matches, which
  # changes the logits of that one image by more than rounding.
  return Reference(images, logits, typical=any(model.module.merge_counts))


def _check_images(model: Model, images: Array | None) -> Array:
  module = model.module
  shape = (*module.image_size, module.in_chans)
  if images is None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(_NUM_IMAGES, *shape))
  images = np.asarray(images, np.float32)
  if images.shape[1:] != shape or not len(images):
    raise ModelError(
      f'check_images: shape {images.shape}, the model takes (batch, '
      f'{", ".join(map(str, shape))})'
    )
  return images


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


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
  """Computes matrix products in full float32, on accelerators as well."""
  with jax.default_matmul_precision('highest'):
    yield
