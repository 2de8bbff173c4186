"""The resize, crop and normalisation that a model expects of its images."""

import dataclasses
from typing import Any

from lambda_vit_jax.core.tables import Shown, Table

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INCEPTION_MEAN = (0.5, 0.5, 0.5)
INCEPTION_STD = (0.5, 0.5, 0.5)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

LEAST_CROP = 0.1
"""Of `crop_ratio`; with less, a photograph would be enlarged to many times its
pixels."""

IGNORED = -1
"""Label of pixels that are excluded from losses and metrics."""


@dataclasses.dataclass(frozen=True, repr=False)
class Preprocessing(Shown):
  """Evaluation transform: resize, centre crop, scale to [0, 1], normalise.

  Attributes:
    image_size: (height, width) of the model's input, in pixels.
    mean: per channel, of values in [0, 1]; its length is the channel count.
    std: per channel, of values in [0, 1].
    crop_ratio: share of the resized image that the centre crop keeps.
    interpolation: `bicubic` or `bilinear`.
  """

  image_size: tuple[int, int]
  mean: tuple[float, ...] = IMAGENET_MEAN
  std: tuple[float, ...] = IMAGENET_STD
  crop_ratio: float = 0.875
  interpolation: str = 'bicubic'

  @property
  def channels(self) -> int:
    """Channels of the input: 1 (grey) or 3 (RGB)."""
    return len(self.mean)

  def __repr__(self) -> str:
    height, width = self.image_size
    colours = {1: 'grey', 3: 'RGB'}.get(self.channels, 'multi-channel')
    return (
      f'Preprocessing({height} × {width} {colours}, {self.interpolation}, '
      f'crop {self.crop_ratio:g}, mean {self.mean}, std {self.std})'
    )

  def table(self) -> Table:
    """One row per field."""
    rows = [(name, str(value)) for name, value in self.to_json().items()]
    return Table('Preprocessing', ('field', 'value'), rows)

  def to_json(self) -> dict[str, Any]:
    """Returns a plain dict, the form in `model.json`."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> 'Preprocessing':
    """Inverse of `to_json`; lists become tuples."""
    height, width = fields['image_size']
    return cls(
      image_size=(int(height), int(width)),
      mean=tuple(float(v) for v in fields['mean']),
      std=tuple(float(v) for v in fields['std']),
      crop_ratio=float(fields['crop_ratio']),
      interpolation=str(fields['interpolation']),
    )
