"""Random views of images that are in memory: crops, half of them mirrored.

The dense network answers for any view of an image, so that views of a few hundred
images, which are read for many epochs, are further images for free.
"""

import dataclasses

import numpy as np

# Of a crop's width over its height, relative to the image's.
_ASPECT = (3 / 4, 4 / 3)


@dataclasses.dataclass(frozen=True)
class Crops:
  """Rectangles of some images, as shares of height and width; each `[images]`.

  Attributes:
    top: 0 is the upper edge.
    left: 0 is the left edge.
    height: above 0, at most 1.
    width: likewise.
    mirrored: whether left and right are exchanged.
  """

  top: np.ndarray
  left: np.ndarray
  height: np.ndarray
  width: np.ndarray
  mirrored: np.ndarray

  def rows(self, begin: int, end: int) -> 'Crops':
    """Those of some of the images."""
    parts = {
      field.name: getattr(self, field.name)[begin:end]
      for field in dataclasses.fields(self)
    }
    return Crops(**parts)


def draw(count: int, least_area: float, seed: tuple[int, ...]) -> Crops:
  """Crops of so many images.

  The share of the area is uniform from `least_area` to 1, and the logarithm of the
  aspect uniform among those that fit into the image.
  """
  rng = np.random.default_rng(seed)
  area = rng.uniform(least_area, 1.0, count)
  # Of width over height: at most 1 / area, and at least area.
  least, most = np.log(_ASPECT)
  room = np.abs(np.log(area))
  aspect = np.exp(rng.uniform(np.maximum(least, -room), np.minimum(most, room)))
  height = np.minimum(np.sqrt(area / aspect), 1.0)
  width = np.minimum(np.sqrt(area * aspect), 1.0)
  return Crops(
    top=rng.uniform(0.0, 1.0, count) * (1.0 - height),
    left=rng.uniform(0.0, 1.0, count) * (1.0 - width),
    height=height,
    width=width,
    mirrored=rng.uniform(0.0, 1.0, count) < 0.5,
  )


def take(images: np.ndarray, crops: Crops) -> np.ndarray:
  """Every crop, scaled to the size of its image by linear interpolation.

  Args:
    images: `[images, height, width, channels]`.
    crops: one for each.

  Returns:
    float32, of the shape of `images`.
  """
  count, height, width, channels = images.shape
  down = interpolation(crops.top, crops.height, height)
  across = interpolation(crops.left, crops.width, width)
  across[crops.mirrored] = across[crops.mirrored, ::-1]
  # One product of matrices an image and axis.
  rows = down @ images.reshape(count, height, width * channels)
  rows = rows.reshape(images.shape).swapaxes(1, 2)
  found = across @ rows.reshape(count, width, height * channels)
  return found.reshape(count, width, height, channels).swapaxes(1, 2)


def interpolation(
  start: np.ndarray, length: np.ndarray, size: int
) -> np.ndarray:
  """Weights `[images, size, size]` of pixels along one axis, float32.

  Output pixel i looks at `start + (i + ½)·length / size`, pixel j at (j + ½) / size;
  beyond the outermost centres the outermost pixel counts.
  """
  steps = (np.arange(size) + 0.5) / size
  places = (start[:, None] + length[:, None] * steps) * size - 0.5
  places = np.clip(places, 0.0, size - 1.0)
  distance = np.abs(places[..., None] - np.arange(size))
  return np.maximum(1.0 - distance, 0.0).astype(np.float32)
