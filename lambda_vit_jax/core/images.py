"""Bring arrays of images from NumPy, JAX or PyTorch into a model's form."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.typing import Array

EXPECTED = (
  'give an NHWC array, or an iterable of NHWC arrays, of (images, labels) '
  'pairs or of dicts with image, label and mask'
)
"""What functions that take batches ask for, as the end of an error's line."""

# Values this many times the range of normalised images beside it are no
# outliers: noise of erasing lies within one, 8-bit values beyond ten.
_FAR = 4.0
# A batch of so many images without a pixel darker than medium grey is none.
_MANY = 8
# Black in the least of a model's channels below which values in [0, 1] are
# suspicious: zero is then a medium grey.
_BLACK = -0.5


def normalise(
  pixels: np.ndarray,
  preprocessing: Preprocessing,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """`(pixels / 255 - mean) / std` of 8-bit images.

  Args:
    pixels: uint8 `[..., height, width, channels]`.
    preprocessing: the model's.
    out: float32 of the same shape, contiguous; by default a new array.

  Returns:
    `out`.
  """
  if out is None:
    out = np.empty(pixels.shape, np.float32)
  row = pixels.shape[-2] * pixels.shape[-1]
  scale, offset = _normalisation(
    preprocessing.mean, preprocessing.std, pixels.shape[-2]
  )
  # Whole rows at a time; channels as the inner axis would be 7 times slower.
  rows = out.reshape(-1, row)
  rows[...] = pixels.reshape(-1, row)
  rows *= scale
  rows += offset
  return out


@functools.cache
def _normalisation(
  mean: tuple[float, ...], std: tuple[float, ...], width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Scale and offset of 8-bit values, tiled to a row of pixels."""
  deviation = np.asarray(std, np.float64)
  scale = 1 / (255 * deviation)
  offset = -np.asarray(mean, np.float64) / deviation
  return (
    np.tile(scale.astype(np.float32), width),
    np.tile(offset.astype(np.float32), width),
  )


def is_tensor(values: Any) -> bool:
  """Whether this is a tensor of PyTorch, which is not imported for it."""
  return all(hasattr(values, name) for name in ('detach', 'cpu', 'numpy'))


def to_array(values: Any) -> Any:
  """A tensor of PyTorch as a NumPy array; anything else as it is.

  Tensors may require gradients, lie on any device and be bfloat16, which NumPy
  has not: floats become float32. Lists and tuples of tensors are stacked.
  """
  if is_tensor(values):
    tensor = values.detach().cpu()
    floats = 'float' in str(tensor.dtype)
    return (tensor.float() if floats else tensor).numpy()
  if isinstance(values, list | tuple) and any(map(is_tensor, values)):
    return np.stack([to_array(value) for value in values])
  return values


def model_images(
  values: Any,
  preprocessing: Preprocessing,
  shape: tuple[int, int, int],
  where: str,
) -> Array:
  """A batch as a model takes it: normalised, NHWC; checked.

  Whole numbers are taken for pixels from 0 to 255 and normalised. Tensors of
  PyTorch may have their channels first, as is usual there.

  Args:
    values: an array or tensor, or nested lists of numbers.
    preprocessing: the model's.
    shape: (height, width, channels) of the model's input.
    where: names the batch in an error.

  Returns:
    `[batch, height, width, channels]`: float32 in NumPy, or what JAX arrays
    (traced ones, too) have.

  Raises:
    DataError: images of another shape, no images, or whole numbers that are no
      pixels.
  """
  array = to_array(values)
  if not isinstance(array, jax.Array):
    array = _on_host(array, where)
  if is_tensor(values) and _is_channels_first(array.shape, shape):
    array = array.transpose(0, 2, 3, 1)
  _check_shape(array.shape, shape, where)
  if not jnp.issubdtype(array.dtype, jnp.floating):
    return _normalised(array, preprocessing, where)
  if isinstance(array, np.ndarray):
    array = np.asarray(array, np.float32)
  return array


def _on_host(values: Any, where: str) -> np.ndarray:
  try:
    array = np.asarray(values)
  except (TypeError, ValueError):
    array = np.asarray(None)
  if array.dtype.kind not in 'iuf' and not jnp.issubdtype(
    array.dtype, jnp.floating
  ):
    raise DataError(
      f'{where} is no array of numbers of one shape; {EXPECTED}; for files '
      'lv.image_batches(folder, model) or lv.preprocess(paths, model)'
    )
  return array


def _is_channels_first(
  found: tuple[int, ...], shape: tuple[int, int, int]
) -> bool:
  """Whether the images have the model's shape, but with channels first."""
  height, width, channels = shape
  return found[1:] == (channels, height, width) != shape


def _check_shape(
  found: tuple[int, ...], shape: tuple[int, int, int], where: str
) -> None:
  """Refuses what is no batch of images of this shape, with the remedy."""
  takes = f'the model takes {shape} (height, width, channels)'
  if len(found) == 3:
    raise DataError(
      f'{where} has shape {found}, that of one image: add a batch axis, '
      'image[None]'
    )
  if len(found) != 4:
    raise DataError(
      f'{where} has shape {found} and holds no images; {EXPECTED}'
    )
  if _is_channels_first(found, shape):
    raise DataError(
      f'{where} has images of shape {found[1:]}, channels first; {takes}: give '
      'images.transpose(0, 2, 3, 1)'
    )
  if found[1:] != shape:
    raise DataError(
      f'{where} has images of shape {found[1:]}; {takes}: lv.preprocess(images, '
      'model) resizes them'
    )


def _normalised(
  array: Array, preprocessing: Preprocessing, where: str
) -> Array:
  """Normalises whole numbers, which must lie in 0..255."""
  if isinstance(array, jax.Array):
    scale, offset = _normalisation(preprocessing.mean, preprocessing.std, 1)
    return array.astype(jnp.float32) * scale + offset
  if array.dtype != np.uint8:
    least, most = int(array.min(initial=0)), int(array.max(initial=0))
    if least < 0 or most > 255:
      raise DataError(
        f'{where} has whole numbers from {least} to {most}: give uint8 pixels '
        'from 0 to 255, or normalised floats'
      )
    array = array.astype(np.uint8)
  return normalise(array, preprocessing)


def check_classes(
  labels: np.ndarray, classes: int, where: str, least: int = 0
) -> None:
  """Refuses labels that no class of a model has, with a `DataError`.

  Args:
    labels: integers of any shape.
    classes: of the model's head.
    where: the start of the message, such as `batch 0 has labels`.
    least: the smallest that is one, below 0 where some mean no class.
  """
  if labels.size and not least <= labels.min() <= labels.max() < classes:
    raise DataError(
      f'{where} from {labels.min()} to {labels.max()}, and the model has classes '
      f'0 to {classes - 1}; use the classes it was trained on'
    )


def check_values(
  images: np.ndarray, preprocessing: Preprocessing, where: str
) -> str:
  """Looks for values that no normalised image has.

  Args:
    images: a batch on the host; one on a device would have to be fetched.
    preprocessing: the model's.
    where: names the batch in an error.

  Returns:
    A warning, or ''.

  Raises:
    DataError: NaN or infinite values.
  """
  if not images.size:
    return ''
  mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
  black, white = float((-mean / std).min()), float(((1 - mean) / std).max())
  least, most = float(images.min()), float(images.max())
  if not np.isfinite([least, most]).all():
    raise DataError(
      f'{where} has NaN or infinite values; check how the images are read and '
      'normalised'
    )
  width = white - black
  far = most > white + _FAR * width or least < black - _FAR * width
  unit = len(images) >= _MANY and 0 <= least < most <= 1 and black < _BLACK
  if not far and not unit:
    return ''
  return (
    f'images have values from {least:.4g} to {most:.4g}, normalised ones lie '
    f'within {black:.3g} to {white:.3g}: give uint8, or lv.preprocess(images, '
    'model)'
  )
