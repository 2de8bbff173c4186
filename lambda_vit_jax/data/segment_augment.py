"""Augment an image and its mask together, for segmentation training."""

import dataclasses

import numpy as np

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.preprocessing import IGNORED, Preprocessing
from lambda_vit_jax.data import masks
from lambda_vit_jax.data.masks import MaskRules
from lambda_vit_jax.data.sources.dataset import Record

# Crops tried until no class fills too much of one.
_TRIES = 10

# RGB to YIQ: luminance and two axes of colour.
_TO_YIQ = np.array(
  [[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]
)


@dataclasses.dataclass(frozen=True)
class SegmentAugment:
  """The usual recipe for ADE20k; all draws come from one generator.

  The image is scaled to cover the model's image size, times a random factor.
  A window is cut out (padded with pixels without a class if the image is
  smaller), flipped at random, and distorted in brightness, contrast and colour.

  Attributes:
    rules: the meaning of the masks.
    scale: least and greatest random factor, log-uniform.
    most_of_one: a crop in which one class has more than this share of the
      pixels is drawn again, up to ten times; 1 accepts any crop.
    flip: probability of a left-right flip.
    photometric: strength of the distortion, 0 for none: brightness by up to
      an eighth of the range, contrast and saturation by up to a half, hue by
      up to a tenth of a turn, each with probability 1/2.
  """

  rules: MaskRules
  scale: tuple[float, ...] = (0.5, 2.0)
  most_of_one: float = 0.75
  flip: float = 0.5
  photometric: float = 1.0

  def __post_init__(self):
    if len(self.scale) != 2 or not (
      0.05 <= self.scale[0] <= self.scale[1] <= 20
    ):
      raise UsageError(
        f'config.segment.scale={self.scale}: two factors from 0.05 to 20, the '
        'least first'
      )
    for name in ('most_of_one', 'flip', 'photometric'):
      if not 0 <= getattr(self, name) <= 1:
        raise UsageError(
          f'config.segment.{name}={getattr(self, name)}: give a share from 0 '
          'to 1'
        )

  def label_shape(self, preprocessing: Preprocessing) -> tuple[int, ...]:
    """A label per pixel."""
    return preprocessing.image_size

  def training(
    self,
    record: Record,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
  ) -> tuple[np.ndarray, None, np.ndarray]:
    """See `Recipe`; nothing is erased."""
    image, labels = self.rules.read_record(record, preprocessing)
    window = preprocessing.image_size
    low, high = np.log(self.scale)
    factor = masks.covering(image.size, window) * np.exp(rng.uniform(low, high))
    canvas = masks.scaled(image.size, factor)
    corner, found = self._crop(labels, canvas, window, rng)
    pixels = masks.cut(image, canvas, corner, preprocessing)
    if rng.random() < self.flip:
      pixels, found = pixels[:, ::-1], found[:, ::-1]
    if self.photometric:
      pixels = distort(pixels, self.photometric, rng)
    return pixels, None, found

  def evaluation(
    self, record: Record, preprocessing: Preprocessing
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the whole image within one window, and its labels."""
    image, labels = self.rules.read_record(record, preprocessing)
    window = preprocessing.image_size
    canvas = masks.scaled(image.size, masks.fitting(image.size, window))
    return (
      masks.cut(image, canvas, (0, 0), preprocessing),
      masks.cut_labels(labels, canvas, (0, 0), window),
    )

  def _crop(
    self,
    labels: np.ndarray,
    canvas: tuple[int, int],
    window: tuple[int, int],
    rng: np.random.Generator,
  ) -> tuple[tuple[int, int], np.ndarray]:
    """Draws a corner (left, top); returns it with that window's labels."""
    for _ in range(_TRIES):
      corner = (
        int(rng.integers(max(canvas[0] - window[1], 0) + 1)),
        int(rng.integers(max(canvas[1] - window[0], 0) + 1)),
      )
      found = masks.cut_labels(labels, canvas, corner, window)
      counts = np.bincount(found[found != IGNORED])
      if len(counts) and counts.max() <= self.most_of_one * counts.sum():
        break
    return corner, found


def distort(
  pixels: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
  """Changes brightness, contrast, saturation and hue of 8-bit pixels at random.

  Args:
    pixels: uint8 `[height, width, channels]`; grey images have no colour
      to change.
    strength: fraction of the full ranges, see `SegmentAugment`.
    rng: eight numbers are drawn, whatever is changed.

  Returns:
    uint8 of the same shape.
  """
  happens = rng.random(4) < 0.5
  brightness, contrast, saturation, hue = np.where(
    happens, strength * rng.uniform(-1, 1, 4), 0.0
  )
  values = pixels.astype(np.float32) + np.float32(32 * brightness)
  values *= np.float32(1 + contrast / 2)
  if pixels.shape[-1] == 3 and (saturation or hue):
    angle = 0.2 * np.pi * hue
    turn = (1 + saturation / 2) * np.array(
      [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    change = np.eye(3)
    change[1:, 1:] = turn
    matrix = np.linalg.inv(_TO_YIQ) @ change @ _TO_YIQ
    values = values @ matrix.T.astype(np.float32)
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)
