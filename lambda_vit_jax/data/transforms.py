"""Decode, resize, crop, warp and normalise images with Pillow.

Images are `PIL.Image` of mode L (grey) or RGB between `load` and `to_pixels`.
What bytes become pixels, and how, is in `decode.py`.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lambda_vit_jax.core.images import normalise
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data.decode import load, open_image, shown_size

RESAMPLING = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}
"""Pillow's filter for `Preprocessing.interpolation`."""

_MAX_PROPORTION = 16

Box = tuple[float, float, float, float]
"""A rectangle `(left, top, right, bottom)` in pixels."""


def resize_and_crop(
  image: Image.Image, preprocessing: Preprocessing
) -> Image.Image:
  """Resizes to cover the model's image size and crops the centre.

  The image is scaled so that it just covers `floor(size / crop_ratio)`
  (for a square, the shorter side gets that length and the longer one its
  proportional length rounded down), then `size` is cropped from the middle.

  Args:
    image: decoded, of any size and proportions.
    preprocessing: the model's.

  Returns:
    The image, exactly of the model's size.
  """
  height, width = preprocessing.image_size
  image = _limit_proportions(image, max(height, width) / min(height, width))
  scaled_height = math.floor(height / preprocessing.crop_ratio)
  scaled_width = math.floor(width / preprocessing.crop_ratio)
  if image.width * scaled_height <= image.height * scaled_width:
    scaled_height = max(height, scaled_width * image.height // image.width)
  else:
    scaled_width = max(width, scaled_height * image.width // image.height)
  if image.size != (scaled_width, scaled_height):
    resample = RESAMPLING[preprocessing.interpolation]
    image = image.resize((scaled_width, scaled_height), resample)
  if image.size == (width, height):
    return image
  left = round((scaled_width - width) / 2)
  top = round((scaled_height - height) / 2)
  return image.crop((left, top, left + width, top + height))


def _limit_proportions(image: Image.Image, proportion: float) -> Image.Image:
  """Trims the ends of an extremely long or tall image.

  Scaled up to cover, a strip of 1 x 100,000 pixels would take gigabytes; the
  centre crop of the model's `proportion` never sees its ends.
  """
  limit = math.ceil(_MAX_PROPORTION * proportion * min(image.size))
  if max(image.size) <= limit:
    return image
  width, height = min(image.width, limit), min(image.height, limit)
  left, top = (image.width - width) // 2, (image.height - height) // 2
  return image.crop((left, top, left + width, top + height))


def sample_crop(
  image_size: tuple[int, int],
  area: tuple[float, float],
  aspect: tuple[float, float],
  rng: np.random.Generator,
) -> Box:
  """Draws the rectangle of a random resized crop.

  Its share of the image's area is uniform in `area`, the logarithm of its
  width over height uniform in `aspect`. After ten draws that do not fit, it is
  the largest centred rectangle of an allowed aspect.

  Args:
    image_size: (width, height) of the image.
    area: least and greatest share of the image's area.
    aspect: least and greatest width / height.
    rng: source of the draws.

  Returns:
    The rectangle, on whole pixels.
  """
  width, height = image_size
  log_aspect = (math.log(aspect[0]), math.log(aspect[1]))
  for _ in range(10):
    pixels = width * height * rng.uniform(*area)
    ratio = math.exp(rng.uniform(*log_aspect))
    crop_width = round(math.sqrt(pixels * ratio))
    crop_height = round(math.sqrt(pixels / ratio))
    if 0 < crop_width <= width and 0 < crop_height <= height:
      left = int(rng.integers(width - crop_width + 1))
      top = int(rng.integers(height - crop_height + 1))
      return left, top, left + crop_width, top + crop_height
  ratio = min(max(width / height, aspect[0]), aspect[1])
  crop_width = min(width, max(1, round(height * ratio)))
  crop_height = min(height, max(1, round(width / ratio)))
  left = (width - crop_width) // 2
  top = (height - crop_height) // 2
  return left, top, left + crop_width, top + crop_height


def crop_and_resize(
  image: Image.Image, box: Box, preprocessing: Preprocessing
) -> Image.Image:
  """Decodes an image, crops `box` and scales it to the model's image size.

  Args:
    image: as `open_image` returned it, not yet decoded.
    box: rectangle in pixels of the full-size image, turned as `load` does.
    preprocessing: the model's.

  Raises:
    UndecodableError: see `load`.
  """
  full_width, full_height = shown_size(image)
  left, top, right, bottom = box
  height, width = preprocessing.image_size
  needed = (
    math.ceil(full_width * width / (right - left)),
    math.ceil(full_height * height / (bottom - top)),
  )
  image = load(image, preprocessing.channels, draft_size=needed)
  across = image.width / full_width
  down = image.height / full_height
  return image.resize(
    (width, height),
    RESAMPLING[preprocessing.interpolation],
    box=(left * across, top * down, right * across, bottom * down),
  )


def affine_coefficients(
  image_size: tuple[int, int],
  angle: float = 0.0,
  shift: tuple[float, float] = (0.0, 0.0),
  scale: float = 1.0,
  aspect: float = 1.0,
  shear: float = 0.0,
) -> tuple[float, float, float, float, float, float]:
  """Coefficients for `Image.transform` of a small warp about the centre.

  They map a position in the result to one in the source, as Pillow expects:
  `source = R(angle) · [[aspect, shear], [0, 1]] / scale · (result −
  centre − shift) + centre`.

  Args:
    image_size: (width, height).
    angle: radians, clockwise on the screen, of the source frame.
    shift: how far the content moves right and down, in pixels.
    scale: above 1 the content grows.
    aspect: above 1 the content gets narrower.
    shear: horizontal shear per unit of height.

  Returns:
    `(a, b, c, d, e, f)` with `x' = a·x + b·y + c`, `y' = d·x + e·y + f`.
  """
  centre_x, centre_y = image_size[0] / 2, image_size[1] / 2
  cosine, sine = math.cos(angle) / scale, math.sin(angle) / scale
  a, b = cosine * aspect, cosine * shear - sine
  d, e = sine * aspect, sine * shear + cosine
  x, y = centre_x + shift[0], centre_y + shift[1]
  return a, b, centre_x - a * x - b * y, d, e, centre_y - d * x - e * y


def fill_colour(mode: str, mean: Sequence[float]) -> int | tuple[int, ...]:
  """The mean colour in 0..255, in the form that Pillow expects for `mode`."""
  levels = tuple(min(255, round(255 * value)) for value in mean)
  return levels[0] if mode == 'L' else levels


def to_pixels(image: Image.Image) -> np.ndarray:
  """A decoded image as uint8 `[height, width, channels]`."""
  return np.asarray(image).reshape(image.height, image.width, -1)


def evaluation_pixels(
  data: bytes | np.ndarray, preprocessing: Preprocessing
) -> np.ndarray:
  """The evaluation transform of stored data, before normalisation.

  Returns:
    uint8 `[height, width, channels]`.

  Raises:
    UndecodableError: see `open_image` and `load`.
  """
  image = load(open_image(data), preprocessing.channels)
  return to_pixels(resize_and_crop(image, preprocessing))


def evaluation_array(
  data: bytes | np.ndarray, preprocessing: Preprocessing
) -> np.ndarray:
  """`evaluation_pixels`, normalised: float32 `[height, width, channels]`."""
  return normalise(evaluation_pixels(data, preprocessing), preprocessing)
