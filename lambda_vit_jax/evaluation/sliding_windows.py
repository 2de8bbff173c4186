"""Segment images of any size, window by window, and score them exactly.

Every image is scaled to a canvas (see `data.masks`): `whole` fits it into one
window of the model's image size, `slide` makes it cover that size and slides a
window over it. Logits are averaged where windows overlap, interpolated to the
stored size of the image, and compared there with its mask. The network sees
batches of windows of one shape. The rest is compiled for rounded-up sizes, with
the true sizes as arguments, so that few programs serve a data set.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.images import normalise
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.data import masks, readers
from lambda_vit_jax.data.masks import MaskRules
from lambda_vit_jax.data.sources.dataset import ImageSource
from lambda_vit_jax.evaluation import confusion
from lambda_vit_jax.runtime import processes

MODES = ('whole', 'slide')
"""Values of `segment.evaluation`."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Windows `[batch, height, width, channels]` of one batch size to logits."""

Keep = Callable[[int, np.ndarray, np.ndarray], None]
"""Takes an image's index, classes and confusion matrix."""

# Compiled sizes are multiples of this.
_ROUND = 64


@dataclasses.dataclass(frozen=True)
class Windowing:
  """How an image is cut into windows.

  Attributes:
    mode: one of `MODES`.
    stride: pixels from window to window, along height and width.
  """

  mode: str
  stride: tuple[int, int]

  def __post_init__(self):
    if self.mode not in MODES:
      raise UsageError(
        f'config.segment.evaluation={self.mode!r} is not known; use '
        f'{" or ".join(MODES)}'
      )

  @classmethod
  def of(
    cls, mode: str, stride: int | None, window: tuple[int, int]
  ) -> 'Windowing':
    """Builds it; the default stride is two thirds of the window.

    Raises:
      UsageError: the stride would leave gaps.
    """
    height, width = window
    if stride is None:
      return cls(mode, (max(1, 2 * height // 3), max(1, 2 * width // 3)))
    if not 1 <= stride <= min(window):
      raise UsageError(
        f'config.segment.stride={stride}: windows of {height} x {width} pixels '
        f'leave gaps beyond {min(window)}'
      )
    return cls(mode, (stride, stride))


@dataclasses.dataclass
class Canvas:
  """One image being segmented.

  Attributes:
    index: its index in the split.
    size: (width, height) that it is scaled to.
    labels: `[height, width]`, as stored.
    corners: (left, top) of its windows.
    windows: uint8 pixels of each window.
    logits: of the windows done so far.
  """

  index: int
  size: tuple[int, int]
  labels: np.ndarray
  corners: list[tuple[int, int]]
  windows: list[np.ndarray]
  logits: list[np.ndarray] = dataclasses.field(default_factory=list)


def make_canvas(
  source: ImageSource,
  index: int,
  preprocessing: Preprocessing,
  rules: MaskRules,
  windowing: Windowing,
) -> Canvas:
  """Decodes an image and its mask, and cuts the windows out.

  Raises:
    DataError: the mask does not fit its image; names the record.
    UndecodableError: not an image; names the record.
  """
  with readers.errors_naming(source, index):
    image, labels = rules.read_record(source[index], preprocessing)
  window = preprocessing.image_size
  scale = masks.fitting if windowing.mode == 'whole' else masks.covering
  size = masks.scaled(image.size, scale(image.size, window))
  corners = [
    (left, top)
    for top in masks.window_starts(size[1], window[0], windowing.stride[0])
    for left in masks.window_starts(size[0], window[1], windowing.stride[1])
  ]
  cut = [masks.cut(image, size, corner, preprocessing) for corner in corners]
  return Canvas(index, size, labels, corners, cut)


def label_map(canvas: Canvas) -> np.ndarray:
  """The most probable class of every pixel, int32 of the labels' shape."""
  height, width = canvas.labels.shape
  logits = np.stack(canvas.logits)
  found = _combine(
    logits,
    np.array([(top, left) for left, top in canvas.corners], np.int32),
    np.array(canvas.size[::-1], np.int32),
    np.array((height, width), np.int32),
    canvas=_rounded(np.maximum(canvas.size[::-1], logits.shape[1:3]).tolist()),
    target=_rounded((height, width)),
  )
  return np.asarray(found)[:height, :width]


def _rounded(size: Any) -> tuple[int, int]:
  height, width = (-(-int(n) // _ROUND) * _ROUND for n in size)
  return height, width


@functools.partial(jax.jit, static_argnames=('canvas', 'target'))
def _combine(
  logits: Array,
  corners: Array,
  size: Array,
  shape: Array,
  *,
  canvas: tuple[int, int],
  target: tuple[int, int],
) -> Array:
  """Averages the logits of windows and picks each pixel's class.

  `logits` are `[windows, height, width, classes]`, `corners` (top, left). The
  image fills `size` of the `canvas`, and is stored as `shape` within `target`.
  """
  # One more channel counts the windows that cover a pixel.
  parts = jnp.pad(logits, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1.0)
  total: Any = jnp.zeros((*canvas, parts.shape[-1]), jnp.float32)
  for corner, part in zip(corners, parts, strict=True):
    place = (*corner, jnp.int32(0))
    before = jax.lax.dynamic_slice(total, place, part.shape)
    total = jax.lax.dynamic_update_slice(total, before + part, place)
  mean = total[..., :-1] / jnp.maximum(total[..., -1:], 1.0)
  left, right, across = _places(target[1], shape[1], size[1])

  def strip(rows: tuple[Array, Array, Array]) -> Array:
    """Classes of some rows, so as never to hold a large image's logits."""
    upper, lower, down = rows
    part = _mix(mean, upper, lower, down[:, None, None], axis=0)
    part = _mix(part, left, right, across[:, None], axis=1)
    return part.argmax(axis=-1).astype(jnp.int32)

  rows = _places(target[0], shape[0], size[0])
  strips = jax.tree.map(lambda places: places.reshape(-1, _ROUND), rows)
  return jax.lax.map(strip, strips).reshape(target)


def _mix(x: Any, low: Array, high: Array, share: Array, axis: int) -> Any:
  """Interpolates linearly between two positions along an axis."""
  first, second = jnp.take(x, low, axis), jnp.take(x, high, axis)
  return first * (1.0 - share) + second * share


def _places(
  count: int, new_size: Array, size: Array
) -> tuple[Array, Array, Array]:
  """Both neighbours, and the second's weight, of `count` interpolated pixels."""
  ratio = size.astype(jnp.float32) / new_size.astype(jnp.float32)
  last = (size - 1).astype(jnp.float32)
  places = (jnp.arange(count, dtype=jnp.float32) + 0.5) * ratio - 0.5
  places = jnp.clip(places, 0.0, last)
  low = jnp.floor(places)
  index = low.astype(jnp.int32)
  return index, jnp.minimum(index + 1, size - 1), places - low


def _batches(
  canvases: Iterator[Canvas], preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[np.ndarray, list[Canvas]]]:
  """Batches of normalised windows with their canvases; the last may be short."""
  owners: list[Canvas] = []
  windows: list[np.ndarray] = []
  for canvas in canvases:
    for pixels in canvas.windows:
      owners.append(canvas)
      windows.append(normalise(pixels, preprocessing))
      if len(windows) == batch_size:
        yield np.stack(windows), owners
        owners, windows = [], []
    canvas.windows = []
  if windows:
    yield np.stack(windows), owners


def evaluate(
  predict: Predict,
  canvases: Iterator[Canvas],
  preprocessing: Preprocessing,
  num_classes: int,
  batch_size: int,
  advance: Callable[[int], None] = lambda images: None,
  keep: Keep = lambda index, labels, matrix: None,
) -> dict[str, Any]:
  """Mean intersection over union and pixel accuracy over all images.

  Args:
    predict: called with exactly `batch_size` windows; in a job of several
      processes, equally often by all.
    canvases: this process's images.
    preprocessing: the model's.
    num_classes: classes of a pixel.
    batch_size: windows per call, in this process.
    advance: called with the number of images done, in this process.
    keep: called with every image's index, classes and confusion matrix.

  Returns:
    `confusion.scores` of the matrix summed over all processes, and
    `num_images`.
  """
  matrix = np.zeros((num_classes, num_classes), np.int64)
  images = 0
  batches = _batches(canvases, preprocessing, batch_size)
  shape = (*preprocessing.image_size, preprocessing.channels)
  while True:
    windows, owners = next(batches, (np.zeros((0, *shape), np.float32), []))
    if not any(processes.gather(bool(owners))):
      break
    padding = [(0, batch_size - len(windows)), (0, 0), (0, 0), (0, 0)]
    logits = predict(np.pad(windows, padding))
    for canvas, row in zip(owners, logits, strict=False):
      canvas.logits.append(np.asarray(row, np.float32))
      if len(canvas.logits) < len(canvas.corners):
        continue
      found = label_map(canvas)
      canvas.logits = []
      part = confusion.confusion_matrix(canvas.labels, found, num_classes)
      matrix += part
      images += 1
      keep(canvas.index, found, part)
      advance(1)
  parts = processes.gather([matrix.tolist(), images])
  whole = np.sum([np.array(part[0], np.int64) for part in parts], axis=0)
  return confusion.scores(whole) | {
    'num_images': sum(part[1] for part in parts)
  }
