"""Pictures to encode, and EXIF orientations by a table of their own."""

import io

import numpy as np
from PIL import Image

# What a camera stores when the shown picture is x, by the definition in EXIF:
# where the stored first row and first column lie in the picture.
STORED = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: x.swapaxes(0, 1)[::-1],
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: x.swapaxes(0, 1)[:, ::-1],
}


def photo(width, height, rng):
  """Smooth colours, so that scaling commutes nearly with cropping."""
  rows, columns = np.mgrid[:height, :width]
  waves = np.stack(
    [
      np.sin(rows / height * 3 + k) + np.cos(columns / width * 4 - k)
      for k in range(3)
    ],
    axis=-1,
  )
  noise = rng.normal(0, 2, waves.shape)
  return Image.fromarray(
    np.clip(127 + 50 * waves + noise, 0, 255).astype(np.uint8)
  )


def encode(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def tagged(pixels, orientation, kind='PNG', **options):
  """A file that is shown as `pixels`, stored with an EXIF orientation."""
  stored = np.ascontiguousarray(STORED[orientation](np.asarray(pixels)))
  exif = Image.Exif()
  exif[0x0112] = orientation
  return encode(Image.fromarray(stored), kind, exif=exif, **options)
