"""Random changes to training images, and the recipes that combine them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from PIL import Image

from lambda_vit_jax.core.errors import UsageError, nearest
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import decode, transforms
from lambda_vit_jax.data.randaugment import Patch, draw_patch, parse_policy
from lambda_vit_jax.data.sources.dataset import Record

GREATEST = {
  'rotation': 360,
  'shift': 1,
  'scale': 3,
  'aspect': 3,
  'shear': 3,
  'flip': 1,
  'erasing': 1,
}
"""The range of each field that is one number: from 0 to this."""

# Of the width / height of a crop.
_WIDEST = 100


class Recipe(Protocol):
  """Turns a stored record into an example, for training or evaluation."""

  def label_shape(self, preprocessing: Preprocessing) -> tuple[int, ...]:
    """Shape of one label."""
    ...

  def training(
    self,
    record: Record,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
  ) -> tuple[np.ndarray, Patch | None, Any]:
    """Returns pixels, erasing noise and label, with random changes.

    Pixels are uint8 `[height, width, channels]`; the noise is None where
    nothing is erased.

    Raises:
      UndecodableError: the bytes are not an image.
      MaskError: the mask does not fit its image.
    """
    ...

  def evaluation(
    self, record: Record, preprocessing: Preprocessing
  ) -> tuple[np.ndarray, Any]:
    """Returns pixels and label without random changes; raises the same."""
    ...


@dataclasses.dataclass(frozen=True)
class Augment:
  """Which random changes are made, in the order of the fields.

  A field at its default makes none. Mixup and cutmix work on whole batches,
  within the training step (`training/mixing.py`).

  Attributes:
    kind: the recipe that the other values started from.
    crop_area: least and greatest share of the image's area that a random
      resized crop keeps; `None`: resize and centre crop as in evaluation.
    crop_aspect: least and greatest width / height of that crop.
    rotation: greatest angle of the affine warp, in degrees.
    shift: greatest move of the content, as a share of each side.
    scale: greatest |log| of the warp's scale.
    aspect: greatest |log| of its horizontal stretch.
    shear: greatest |shear|.
    flip: probability of a left-right flip.
    randaugment: policy such as `rand-m9-mstd0.5-inc1`, or `''`.
    erasing: probability that a rectangle is replaced by noise.
  """

  kind: str = 'none'
  crop_area: tuple[float, float] | None = None
  crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
  rotation: float = 0.0
  shift: float = 0.0
  scale: float = 0.0
  aspect: float = 0.0
  shear: float = 0.0
  flip: float = 0.0
  randaugment: str = ''
  erasing: float = 0.0

  def __post_init__(self):
    for name, greatest in GREATEST.items():
      value = getattr(self, name)
      number = isinstance(value, (int, float))
      _check(name, value, number and 0 <= value <= greatest)
    if self.crop_area is not None:
      low, high = self.crop_area
      _check('crop_area', self.crop_area, 0 < low <= high <= 1)
    low, high = self.crop_aspect
    _check(
      'crop_aspect', self.crop_aspect, 1 / _WIDEST <= low <= high <= _WIDEST
    )
    policy = self.randaugment
    _check('randaugment', policy, isinstance(policy, str))
    if policy:
      parse_policy(policy)

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> 'Augment':
    """Builds it from the config's `data.augment`: a `kind` and overrides.

    Args:
      config: `kind` is `none`, `affine` (small shifts, turns and scales, for
        images such as digits) or `deit` (the recipe of arXiv 2012.12877);
        other keys override the recipe's fields. Keys whose value is None are
        ignored.

    Raises:
      UsageError: an unknown kind or field, or a value out of range.
    """
    given = {key: value for key, value in config.items() if value is not None}
    kind = given.pop('kind', 'none')
    if kind not in RECIPES:
      raise UsageError(
        f'config.data.augment.kind={kind!r}: must be one of '
        f'{", ".join(RECIPES)}{nearest(str(kind), RECIPES)}'
      )
    known = [field.name for field in dataclasses.fields(cls)]
    for key in given:
      if key not in known:
        raise UsageError(
          f'config.data.augment has no field {key!r}{nearest(key, known)}'
        )
    for key in ('crop_area', 'crop_aspect'):
      if key in given:
        given[key] = _pair(key, given[key])
    return dataclasses.replace(RECIPES[kind], **given)

  def label_shape(self, preprocessing: Preprocessing) -> tuple[int, ...]:
    """One label per image."""
    del preprocessing
    return ()

  def training(
    self,
    record: Record,
    preprocessing: Preprocessing,
    rng: np.random.Generator,
  ) -> tuple[np.ndarray, Patch | None, Any]:
    """See `Recipe`; random choices are drawn in a fixed order."""
    image = decode.open_image(record['image'])
    if self.crop_area is None:
      image = decode.load(image, preprocessing.channels)
      image = transforms.resize_and_crop(image, preprocessing)
    else:
      box = transforms.sample_crop(
        decode.shown_size(image), self.crop_area, self.crop_aspect, rng
      )
      image = transforms.crop_and_resize(image, box, preprocessing)
    if self.is_affine:
      image = _random_affine(image, self, rng)
    if self.flip and rng.random() < self.flip:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if self.randaugment:
      image = parse_policy(self.randaugment)(
        image,
        rng,
        fill=transforms.fill_colour(image.mode, preprocessing.mean),
        resample=transforms.RESAMPLING[preprocessing.interpolation],
      )
    pixels = transforms.to_pixels(image)
    patch = None
    if self.erasing and rng.random() < self.erasing:
      patch = draw_patch(pixels.shape, rng)
    return pixels, patch, record['label']

  def evaluation(
    self, record: Record, preprocessing: Preprocessing
  ) -> tuple[np.ndarray, Any]:
    """See `Recipe`; independent of the augmentation."""
    pixels = transforms.evaluation_pixels(record['image'], preprocessing)
    return pixels, record['label']

  @property
  def is_affine(self) -> bool:
    """Whether the image is warped at all."""
    return any((self.rotation, self.shift, self.scale, self.aspect, self.shear))


def _check(name: str, value: Any, valid: bool) -> None:
  if not valid:
    raise UsageError(f'config.data.augment.{name}={value!r}: out of range')


def _pair(name: str, value: Any) -> tuple[float, float]:
  try:
    low, high = (float(number) for number in value)
  except (TypeError, ValueError) as error:
    raise UsageError(
      f'config.data.augment.{name}={value!r}: two numbers are needed'
    ) from error
  return low, high


RECIPES = {
  'none': Augment(),
  'affine': Augment(
    kind='affine', rotation=12.0, shift=0.12, scale=0.15, aspect=0.1, shear=0.1
  ),
  'deit': Augment(
    kind='deit',
    crop_area=(0.08, 1.0),
    flip=0.5,
    randaugment='rand-m9-mstd0.5-inc1',
    erasing=0.25,
  ),
}
"""The recipe of each `kind`."""


def _random_affine(
  image: Image.Image, augment: Augment, rng: np.random.Generator
) -> Image.Image:
  angle, across, down, scale, aspect, shear = rng.uniform(-1, 1, 6).tolist()
  coefficients = transforms.affine_coefficients(
    image.size,
    angle=math.radians(angle * augment.rotation),
    shift=(
      across * augment.shift * image.width,
      down * augment.shift * image.height,
    ),
    scale=math.exp(scale * augment.scale),
    aspect=math.exp(aspect * augment.aspect),
    shear=shear * augment.shear,
  )
  # Pixels from outside the image are black, the background of the small grey
  # data sets that this warp is meant for.
  return image.transform(
    image.size,
    Image.Transform.AFFINE,
    coefficients,
    resample=Image.Resampling.BILINEAR,
  )
