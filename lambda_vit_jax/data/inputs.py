"""A model's input from files, arrays and folders: `lv.preprocess`.

Every image goes through the evaluation transform that `evaluate` and `predict`
use.
"""

import dataclasses
import math
import os
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath
from PIL import Image

from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.files import user_path
from lambda_vit_jax.core.images import normalise, to_array
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import decode, masks, transforms
from lambda_vit_jax.data.decode import UndecodableError
from lambda_vit_jax.data.sources.image_folder import find_images


@runtime_checkable
class TakesImages(Protocol):
  """What is needed of a `Model` here."""

  @property
  def preprocessing(self) -> Preprocessing: ...

  @property
  def module(self) -> Any: ...


@check_arguments
def preprocess(images: Any, model: TakesImages) -> np.ndarray:
  """Makes a batch for a model: decoded, resized, cropped and normalised.

  Args:
    images: one image or a list of them: a path (local or `gs://…`), the bytes
      of a file, a Pillow image, or an array or tensor `[height, width]`,
      `[height, width, channels]` or, with channels first,
      `[channels, height, width]`; or a batch of arrays, with a leading axis.
      Arrays hold whole numbers from 0 to 255 or floats from 0 to 1.
    model: whose image size and normalisation are used.

  Returns:
    float32 `[batch, height, width, channels]`, as in evaluation; a batch of 1
    for one image. A model that segments sees the whole image, scaled to fit,
    with the mean colour on the right or below.

  Raises:
    DataError: not an image; named by its path or place in the list.
  """
  images = to_array(images)
  is_batch = isinstance(images, list | tuple) or np.ndim(images) == 4
  items = list(images) if is_batch else [images]
  if not items:
    raise DataError('no image to preprocess: the list is empty')
  arrays = []
  for index, item in enumerate(items):
    if isinstance(item, str | os.PathLike):
      arrays.append(read_image(os.fspath(item), model)[0])
      continue
    try:
      arrays.append(_window(_opened(item), model)[0])
    except UndecodableError as error:
      raise DataError(f'image {index}: {error}') from error
  return np.stack(arrays)


@dataclasses.dataclass(frozen=True)
class ImageBatches:
  """Batches of a folder's images; can be iterated any number of times.

  Attributes:
    folder: holds the images, also in subfolders.
    files: paths below it.
    model: whose input they become.
    batch_size: images per batch; the last may have fewer.
    labels: class index of each file, or empty for batches without labels.
  """

  folder: str
  files: tuple[str, ...]
  model: TakesImages
  batch_size: int
  labels: tuple[int, ...] = ()

  def __repr__(self) -> str:
    # Not the names of all files.
    labelled = ', with labels' if self.labels else ''
    return (
      f'ImageBatches({self.folder!r}, {len(self.files)} images in {len(self)} '
      f'batches{labelled})'
    )

  def __len__(self) -> int:
    """Number of batches."""
    return math.ceil(len(self.files) / self.batch_size)

  def __iter__(self) -> Iterator[Any]:
    root = epath.Path(self.folder)
    paths = [str(root / name) for name in self.files]
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      for start in range(0, len(paths), self.batch_size):
        part = paths[start : start + self.batch_size]
        found = pool.map(lambda path: read_image(path, self.model)[0], part)
        images = np.stack(list(found))
        if self.labels:
          part_of = self.labels[start : start + self.batch_size]
          yield {'image': images, 'label': np.asarray(part_of, np.int32)}
        else:
          yield images


@check_arguments
def image_batches(
  folder: str | os.PathLike[str],
  model: TakesImages,
  num_images: int | None = None,
  batch_size: int = 32,
  labels: bool = False,
) -> ImageBatches:
  """Batches of the images in a folder, for `lv.nose`, `lv.linearize` and so on.

  Args:
    folder: any folder, local or `gs://…`; images may lie in subfolders, such as
      one per class. Of a data set, give the training split.
    model: whose image size and normalisation are used.
    num_images: only this many, spread evenly over the sorted files, so that
      every class has its share; all of them by default.
    batch_size: images per batch.
    labels: whether each image comes with its class, the name of the subfolder
      that it is in: for `lv.evaluate`. Classes are those of
      `model.class_names`, or else the sorted names of all subfolders.

  Returns:
    An iterable of float32 `[batch, height, width, channels]`, see
    `preprocess`; with labels of dicts with these as `image`, and int32 `label`.
    It reads the files again each time.

  Raises:
    DataError: no folder, fewer images than asked for, subfolders that are not
      the model's classes, or, while iterating, an image that cannot be read.
  """
  root = user_path(folder)
  if not root.is_dir():
    raise DataError(f'{root}: is not a folder of images')
  names = find_images(root).images
  if not names:
    raise DataError(f'{root}: a folder that holds no image')
  count = len(names) if num_images is None else num_images
  if not 1 <= count <= len(names):
    raise DataError(
      f'{root}: has {len(names)} images; num_images={num_images} must be from 1 '
      'to that number'
    )
  if batch_size < 1:
    raise DataError(f'batch_size={batch_size}: must be at least 1')
  chosen = np.linspace(0, len(names) - 1, count).round().astype(int)
  files = tuple(names[k] for k in chosen)
  found = _classes(root, names, model) if labels else {}
  classes = tuple(found[name.partition('/')[0]] for name in files if labels)
  return ImageBatches(str(root), files, model, batch_size, classes)


def _classes(
  root: epath.Path, names: list[str], model: TakesImages
) -> dict[str, int]:
  """The class index of each subfolder."""
  loose = [name for name in names if '/' not in name]
  if loose:
    raise DataError(
      f'{root}: {loose[0]} lies in no subfolder, whose name would be its class'
    )
  folders = sorted({name.partition('/')[0] for name in names})
  known = getattr(model, 'class_names', ()) or folders
  unknown = sorted(set(folders) - set(known))
  if unknown:
    raise DataError(
      f'{root}: the subfolder {unknown[0]!r} is no class of the model, such as '
      f'{known[0]!r}; name subfolders as model.class_names'
    )
  number = model.module.num_classes
  if len(known) != number:
    raise DataError(
      f'{root}: has {len(folders)} subfolders, and the model, which does not '
      f'name its classes, has {number}; give a folder for every class'
    )
  return {name: index for index, name in enumerate(known)}


def read_image(
  path: str, model: TakesImages
) -> tuple[np.ndarray, tuple[int, int]]:
  """Reads a file as the model's input.

  Returns:
    float32 `[height, width, channels]`, and the (height, width) from its first
    row and column that hold the image.

  Raises:
    DataError: no file, or not an image; names it.
  """
  file = user_path(path)
  try:
    data = file.read_bytes()
  except OSError as error:
    if file.is_dir():
      raise DataError(
        f'{path}: is a folder; lv.image_batches(folder, model) reads its images'
      ) from error
    raise DataError(
      f'{path}: cannot be read ({error.strerror or error})'
    ) from error
  try:
    found = _window(decode.open_image(data), model)
    # Decoding reads over a PNG's checksums where the pixels suffice.
    with decode.decoding():
      decode.open_image(data).verify()
  except UndecodableError as error:
    raise DataError(f'{path}: not a readable image ({error})') from error
  return found


def _window(
  image: Image.Image, model: TakesImages
) -> tuple[np.ndarray, tuple[int, int]]:
  """The model's input, and the (height, width) that hold the image."""
  preprocessing = model.preprocessing
  window = preprocessing.image_size
  image = decode.load(image, preprocessing.channels)
  if model.module.segmentation is None:
    found = transforms.resize_and_crop(image, preprocessing)
    pixels, (height, width) = transforms.to_pixels(found), window
  else:
    width, height = masks.scaled(image.size, masks.fitting(image.size, window))
    pixels = masks.cut(image, (width, height), (0, 0), preprocessing)
  return normalise(pixels, preprocessing), (height, width)


def _opened(item: Any) -> Image.Image:
  """Bytes, a Pillow image or an array, as an image that is not decoded yet."""
  if isinstance(item, Image.Image):
    return item
  if isinstance(item, bytes):
    return decode.open_image(item)
  array = np.asarray(to_array(item))
  if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
    if array.shape[0] not in (1, 3, 4):
      raise UndecodableError(
        f'has shape {array.shape}; give (height, width), (height, width, '
        'channels) or (channels, height, width)'
      )
    array = array.transpose(1, 2, 0)
  if array.ndim not in (2, 3) or array.dtype.kind not in 'iuf':
    raise UndecodableError(
      'is no path, bytes, Pillow image or array of numbers (height, width, '
      'channels)'
    )
  floats = array.dtype.kind == 'f'
  least, most = array.min(initial=0), array.max(initial=0)
  if not (least >= 0 and most <= (1 if floats else 255)):
    raise UndecodableError(
      f'has values from {least:.4g} to {most:.4g}; give whole numbers from 0 to '
      '255 or floats from 0 to 1, not normalised'
    )
  if floats:
    array = np.rint(array * 255)
  return decode.open_image(np.ascontiguousarray(array.astype(np.uint8)))
