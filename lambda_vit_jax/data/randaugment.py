"""RandAugment and random erasing, with Pillow for the pixels.

RandAugment: Cubuk et al., arXiv 1909.13719. Policies are written as in timm
(`rand-m9-mstd0.5-inc1`), and an operation at a given magnitude yields the
same pixels as timm's. Random erasing: Zhong et al., arXiv 1708.04896, with noise per pixel.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from lambda_vit_jax.core.errors import UsageError

MAX_MAGNITUDE = 10.0
"""Magnitudes are clipped to 0..10; at 10 an operation is at its strongest."""


@dataclasses.dataclass(frozen=True)
class Draw:
  """The drawn parameters of one operation.

  Attributes:
    strength: magnitude / 10, from 0 to 1.
    sign: +1 or -1, for operations that have two directions.
    fill: colour of pixels from outside the image.
    resample: Pillow's filter for the geometric operations.
  """

  strength: float
  sign: int
  fill: int | tuple[int, ...]
  resample: Image.Resampling

  @property
  def signed(self) -> float:
    """`sign * strength`."""
    return self.sign * self.strength

  @property
  def enhancement(self) -> float:
    """1 changes nothing; with strength it moves to 0.1 or 1.9."""
    return max(0.1, 1.0 + self.signed * 0.9)

  def warp(self, image: Image.Image, *coefficients: float) -> Image.Image:
    """Applies an affine map given as Pillow's six coefficients."""
    return image.transform(
      image.size,
      Image.Transform.AFFINE,
      coefficients,
      resample=self.resample,
      fillcolor=self.fill,
    )


def _solarize_add(image: Image.Image, draw: Draw) -> Image.Image:
  amount = int(110 * draw.strength)
  levels = range(256)
  table = [min(255, n + amount) if n < 128 else n for n in levels]
  return image.point(table * len(image.getbands()))


def _posterize(image: Image.Image, bits: int) -> Image.Image:
  # Pillow's own refuses 0 bits (black) from version 13 on.
  mask = 256 - 2 ** (8 - bits)
  return image.point([n & mask for n in range(256)] * len(image.getbands()))


Operation = Callable[[Image.Image, Draw], Image.Image]


def _enhance(kind: Callable[[Image.Image], Any]) -> Operation:
  return lambda image, draw: kind(image).enhance(draw.enhancement)


# Greatest angle: 30 degrees. Greatest shear: 0.3. Greatest shift: 0.45 of the
# side. Posterize keeps 4 bits down to none, solarize inverts levels from 256
# down to 0: all get stronger with the magnitude (`inc1`).
OPERATIONS: dict[str, Operation] = {
  'AutoContrast': lambda image, draw: ImageOps.autocontrast(image),
  'Equalize': lambda image, draw: ImageOps.equalize(image),
  'Invert': lambda image, draw: ImageOps.invert(image),
  'Rotate': lambda image, draw: image.rotate(
    30 * draw.signed, resample=draw.resample, fillcolor=draw.fill
  ),
  'Posterize': lambda image, draw: _posterize(
    image, 4 - int(4 * draw.strength)
  ),
  'Solarize': lambda image, draw: ImageOps.solarize(
    image, 256 - int(256 * draw.strength)
  ),
  'SolarizeAdd': _solarize_add,
  'Color': _enhance(ImageEnhance.Color),
  'Contrast': _enhance(ImageEnhance.Contrast),
  'Brightness': _enhance(ImageEnhance.Brightness),
  'Sharpness': _enhance(ImageEnhance.Sharpness),
  'ShearX': lambda image, draw: draw.warp(
    image, 1, 0.3 * draw.signed, 0, 0, 1, 0
  ),
  'ShearY': lambda image, draw: draw.warp(
    image, 1, 0, 0, 0.3 * draw.signed, 1, 0
  ),
  'TranslateX': lambda image, draw: draw.warp(
    image, 1, 0, 0.45 * draw.signed * image.width, 0, 1, 0
  ),
  'TranslateY': lambda image, draw: draw.warp(
    image, 1, 0, 0, 0, 1, 0.45 * draw.signed * image.height
  ),
}
"""The fifteen operations of the increasing set."""

_NAMES = tuple(OPERATIONS)


@dataclasses.dataclass(frozen=True)
class Policy:
  """Applies `num_operations` of `OPERATIONS`, drawn with replacement.

  Attributes:
    magnitude: mean magnitude, 0..10.
    magnitude_std: standard deviation of the magnitude of each application;
      it is clipped to 0..10.
    num_operations: operations drawn per image.
    probability: chance that a drawn operation is applied.
  """

  magnitude: float = 10.0
  magnitude_std: float = 0.0
  num_operations: int = 2
  probability: float = 0.5

  def __call__(
    self,
    image: Image.Image,
    rng: np.random.Generator,
    fill: int | tuple[int, ...],
    resample: Image.Resampling,
  ) -> Image.Image:
    """Returns `image` (mode L or RGB) with the drawn operations applied."""
    for _ in range(self.num_operations):
      operation = OPERATIONS[_NAMES[rng.integers(len(_NAMES))]]
      # Always drawn, so that one decision does not shift later ones.
      applied = rng.random() < self.probability
      magnitude = self.magnitude + self.magnitude_std * rng.standard_normal()
      sign = 1 if rng.random() < 0.5 else -1
      if applied:
        strength = min(max(magnitude, 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
        image = operation(image, Draw(strength, sign, fill, resample))
    return image


@functools.cache
def parse_policy(text: str) -> Policy:
  """Reads a policy written as `rand-mM-mstdS-nN-pP-inc1`.

  Args:
    text: `m` magnitude (10 if left out), `mstd` its standard deviation (0),
      `n` operations per image (2), `p` probability of each (0.5), `inc1`
      the increasing set, the only one supported.

  Raises:
    UsageError: `text` is not such a policy.
  """
  head, *parts = text.split('-')
  fields = {'m': 'magnitude', 'mstd': 'magnitude_std', 'p': 'probability'}
  values: dict[str, Any] = {}
  increasing = False
  for part in parts:
    match = re.fullmatch(r'(mstd|m|n|p|inc)(\d+(?:\.\d+)?)', part)
    if not match:
      raise UsageError(_malformed(text, f'{part!r} is not understood'))
    key, number = match.groups()
    if key == 'inc':
      increasing = number == '1'
    elif key == 'n':
      values['num_operations'] = int(float(number))
    else:
      values[fields[key]] = float(number)
  if head != 'rand' or not increasing:
    raise UsageError(_malformed(text, 'must start with rand and contain inc1'))
  policy = Policy(**values)
  if policy.magnitude > MAX_MAGNITUDE or policy.probability > 1:
    raise UsageError(_malformed(text, 'm must be at most 10, p at most 1'))
  return policy


def _malformed(text: str, why: str) -> str:
  return (
    f'config.data.augment.randaugment={text!r}: {why}; an example is '
    'rand-m9-mstd0.5-inc1'
  )


@dataclasses.dataclass(frozen=True)
class Patch:
  """A rectangle of noise and its position.

  Attributes:
    top: its first row.
    left: its first column.
    noise: standard normal, float32 `[height, width, channels]`.
  """

  top: int
  left: int
  noise: np.ndarray

  def paste(self, pixels: np.ndarray) -> None:
    """Overwrites its rectangle of normalised `[height, width, channels]`."""
    height, width, _ = self.noise.shape
    pixels[self.top : self.top + height, self.left : self.left + width] = (
      self.noise
    )


def draw_patch(
  shape: tuple[int, int, int],
  rng: np.random.Generator,
  area: tuple[float, float] = (0.02, 1 / 3),
  aspect: tuple[float, float] = (0.3, 1 / 0.3),
) -> Patch | None:
  """Draws the rectangle of noise that random erasing pastes over an image.

  The rectangle's share of the image is uniform in `area`, the logarithm of
  its height over width uniform in `aspect`.

  Args:
    shape: (height, width, channels) of the image.
    rng: source of the draws.
    area: least and greatest share of the image.
    aspect: least and greatest height / width.

  Returns:
    The patch, or None after ten draws that do not fit.
  """
  height, width, channels = shape
  log_aspect = (math.log(aspect[0]), math.log(aspect[1]))
  for _ in range(10):
    target = height * width * rng.uniform(*area)
    ratio = math.exp(rng.uniform(*log_aspect))
    erased_height = round(math.sqrt(target * ratio))
    erased_width = round(math.sqrt(target / ratio))
    if erased_height < height and erased_width < width:
      top = int(rng.integers(height - erased_height + 1))
      left = int(rng.integers(width - erased_width + 1))
      noise = rng.standard_normal(
        (erased_height, erased_width, channels), dtype=np.float32
      )
      return Patch(top, left, noise)
  return None
