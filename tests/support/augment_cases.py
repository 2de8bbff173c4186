"""What the RandAugment operations are compared on, with timm and without."""

import numpy as np
from PIL import Image

MAGNITUDES = (0.0, 4.3, 9.0, 10.0)
FILLS = {'RGB': (124, 116, 104), 'L': 77}


def images() -> dict[str, Image.Image]:
  """A colour and a grey image of 13 x 11 pixels, smooth with some noise."""
  rng = np.random.default_rng(7)
  rows, columns = np.mgrid[:11, :13]
  phases = np.arange(3)
  waves = np.sin(rows[..., None] * 0.7 + columns[..., None] * 0.4 + phases)
  noisy = 120 + 90 * waves + rng.normal(0, 12, waves.shape)
  colour = Image.fromarray(np.clip(noisy, 8, 240).astype(np.uint8))
  return {'RGB': colour, 'L': colour.convert('L')}


def cases(name: str) -> list[tuple[float, int, str, Image.Resampling]]:
  """The (magnitude, sign, mode, filter) that an operation is compared on."""
  return [
    (magnitude, sign, mode, resample)
    for magnitude in MAGNITUDES
    for sign in (1, -1)
    for mode in ('RGB', 'L')
    for resample in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR)
    if resample == Image.Resampling.BICUBIC or magnitude == MAGNITUDES[1]
    # timm asks for 0 bits here, which Pillow refuses from version 13 on.
    if (name, magnitude) != ('Posterize', 10.0)
  ]
