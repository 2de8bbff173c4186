"""Segmentation masks: read class indices, and cut windows out of images.

A canvas is the image scaled to another size with its proportions kept.
`fitting` scales it to fit within the model's image size, so that one window
holds all of it, padded on the right or below; `covering` scales it to cover
that size, so that windows can slide over it. If the proportions agree, both
are the same.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.core.preprocessing import IGNORED, Preprocessing
from lambda_vit_jax.data import decode, transforms
from lambda_vit_jax.data.decode import UndecodableError
from lambda_vit_jax.data.sources.dataset import Record

_LARGEST_CLASS = 1 << 15
# What most data sets write for a pixel without a class.
_USUAL_IGNORED = 255


class MaskError(DataError):
  """A mask that does not fit its image; the message is the reason."""


@dataclasses.dataclass(frozen=True)
class MaskRules:
  """The meaning of the numbers in a mask file.

  Attributes:
    num_classes: classes are 0 to `num_classes - 1`.
    ignore_index: the number that marks pixels without a class.
    reduce_zero_label: 0 marks no class, and class k is stored as k + 1
      (ADE20k).
  """

  num_classes: int
  ignore_index: int = _USUAL_IGNORED
  reduce_zero_label: bool = False

  def __post_init__(self):
    if not 1 <= self.num_classes < _LARGEST_CLASS:
      raise UsageError(
        f'config.segment.num_classes={self.num_classes}: give 1 to '
        f'{_LARGEST_CLASS - 1}'
      )
    # Only the usual number: 0 may mean a background that is not counted.
    highest = self.num_classes - 1 + self.reduce_zero_label
    if self.ignore_index == _USUAL_IGNORED <= highest:
      raise UsageError(
        f'config.segment.ignore_index={_USUAL_IGNORED} is one of the '
        f'{self.num_classes} classes; give another number, -1 for none'
      )

  def read(
    self, data: bytes | np.ndarray, image_size: tuple[int, int]
  ) -> np.ndarray:
    """Reads the classes of a mask file.

    Args:
      data: an encoded file (its palette is ignored) or an array of
        integers `[height, width]` or `[height, width, 1]`.
      image_size: (width, height) of the image that it belongs to.

    Returns:
      int16 `[height, width]`, `IGNORED` where a pixel has no class.

    Raises:
      UndecodableError: `data` is no image.
      MaskError: its size is not the image's, or a class is out of range.
    """
    values = _indices(data)
    height, width = values.shape
    if (width, height) != tuple(image_size):
      remedy = 'a mask needs the size of its image'
      if (height, width) == tuple(image_size):
        remedy += ' as it is shown, turned by its EXIF orientation'
      raise MaskError(
        f'its mask has {width} x {height} pixels, the image {image_size[0]} x '
        f'{image_size[1]}; {remedy}'
      )
    ignored = values == self.ignore_index
    if self.reduce_zero_label:
      ignored |= values == 0
      values = values - 1
    wrong = ~ignored & ((values < 0) | (values >= self.num_classes))
    if wrong.any():
      first = int(values[wrong][0]) + self.reduce_zero_label
      raise MaskError(
        f'its mask holds the class {first}, out of range: there are '
        f'{self.num_classes} classes (config.segment.num_classes), and '
        f'{self.ignore_index} stands for none (config.segment.ignore_index)'
      )
    return np.where(ignored, IGNORED, values).astype(np.int16)

  def read_record(
    self, record: Record, preprocessing: Preprocessing
  ) -> tuple[Image.Image, np.ndarray]:
    """The decoded image of a record and its classes; raises as `read`."""
    image = decode.open_image(record['image'])
    image = decode.load(image, preprocessing.channels)
    return image, self.read(record['label'], image.size)


def _indices(data: bytes | np.ndarray) -> np.ndarray:
  """The stored values as int64 `[height, width]`, not looked up in a palette."""
  try:
    if not isinstance(data, np.ndarray):
      data = np.asarray(decode.upright(decode.open_image(data)))
  except UndecodableError as error:
    raise UndecodableError(f'its mask: {error}') from error
  if data.ndim == 3:
    if (data[..., :3] != data[..., :1]).any():
      raise MaskError(
        'its mask is a colour image; a mask holds one class index per pixel'
      )
    data = data[..., 0]
  return data.astype(np.int64)


def scaled(size: tuple[int, int], factor: float) -> tuple[int, int]:
  """A (width, height) times a factor, rounded to whole pixels, at least 1."""
  width, height = size
  return max(1, round(width * factor)), max(1, round(height * factor))


def fitting(size: tuple[int, int], window: tuple[int, int]) -> float:
  """The factor by which an image just fits within a window.

  Args:
    size: (width, height) of the image.
    window: (height, width), as in `Preprocessing.image_size`.
  """
  return min(window[1] / size[0], window[0] / size[1])


def covering(size: tuple[int, int], window: tuple[int, int]) -> float:
  """The factor by which an image just covers a window; see `fitting`."""
  return max(window[1] / size[0], window[0] / size[1])


def cut(
  image: Image.Image,
  canvas: tuple[int, int],
  corner: tuple[int, int],
  preprocessing: Preprocessing,
) -> np.ndarray:
  """Cuts a window out of an image's canvas; outside it is the mean colour.

  Args:
    image: decoded.
    canvas: (width, height) that the whole image is scaled to.
    corner: (left, top) of the window on the canvas.
    preprocessing: the model's; its image size is the window's.

  Returns:
    uint8 `[height, width, channels]`.
  """
  height, width = preprocessing.image_size
  left, top = corner
  right = min(left + width, canvas[0])
  bottom = min(top + height, canvas[1])
  across, down = image.width / canvas[0], image.height / canvas[1]
  part = image.resize(
    (right - left, bottom - top),
    transforms.RESAMPLING[preprocessing.interpolation],
    box=(left * across, top * down, right * across, bottom * down),
  )
  colour = transforms.fill_colour(image.mode, preprocessing.mean)
  pixels = np.empty((height, width, preprocessing.channels), np.uint8)
  pixels[...] = colour
  pixels[: bottom - top, : right - left] = transforms.to_pixels(part)
  return pixels


def cut_labels(
  labels: np.ndarray,
  canvas: tuple[int, int],
  corner: tuple[int, int],
  window: tuple[int, int],
) -> np.ndarray:
  """Cuts the same window out of the labels, by nearest neighbour.

  Args:
    labels: `[height, width]` of the whole image.
    canvas: (width, height).
    corner: (left, top).
    window: (height, width).

  Returns:
    int16 of the window's size, `IGNORED` outside the canvas.
  """
  left, top = corner
  right = min(left + window[1], canvas[0])
  bottom = min(top + window[0], canvas[1])
  rows = _nearest(np.arange(top, bottom), labels.shape[0], canvas[1])
  columns = _nearest(np.arange(left, right), labels.shape[1], canvas[0])
  found = np.full(window, IGNORED, np.int16)
  found[: len(rows), : len(columns)] = labels[np.ix_(rows, columns)]
  return found


def _nearest(places: np.ndarray, size: int, new_size: int) -> np.ndarray:
  """The stored pixel nearest to each pixel centre of a rescaled axis."""
  return np.minimum(((places + 0.5) * size / new_size).astype(int), size - 1)


def window_starts(length: int, window: int, stride: int) -> list[int]:
  """First pixels of the windows that cover an axis; the last ends at its end."""
  if length <= window:
    return [0]
  count = math.ceil((length - window) / stride) + 1
  return [min(k * stride, length - window) for k in range(count)]
