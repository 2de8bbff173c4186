"""Read folders of images and masks: `DIR/{train,val|test}/{images,masks}/NAME`.

ADE20k is read as unpacked: `DIR/{images,annotations}/training/NAME` and so on.
"""

import dataclasses
import functools
import itertools

import numpy as np
from etils import epath

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.data.sources.dataset import Dataset, Record
from lambda_vit_jax.data.sources.image_folder import SUFFIXES

CLASSES = 'classes.txt'
"""Optional file with one class name per line, in the order of the indices."""

_TRAIN = ('train', 'training')
_TEST = ('val', 'validation', 'test')
_MASKS = ('masks', 'annotations')


@dataclasses.dataclass(frozen=True)
class MaskFolderSource:
  """One split; files are read on access.

  Attributes:
    images: folder of the images.
    masks: folder of the masks.
    files: names in `images`, sorted.
    mask_files: names in `masks`, one each.
  """

  images: str
  masks: str
  files: tuple[str, ...]
  mask_files: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> Record:
    image = epath.Path(self.images) / self.files[index]
    mask = epath.Path(self.masks) / self.mask_files[index]
    return Record(image=_bytes(image), label=_bytes(mask), index=index)

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """`[len(self)]` zeros: images have masks instead of classes."""
    return np.zeros(len(self.files), np.int32)

  def describe(self, index: int) -> str:
    return str(epath.Path(self.images) / self.files[index])


def _bytes(path: epath.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise DataError(
      f'{path} cannot be read ({error.strerror or error}); the folder changed '
      'while in use'
    ) from error


def open_segmentation_folder(
  directory: str, num_classes: int | None
) -> Dataset:
  """Opens a folder of images, each with a PNG of class indices.

  Args:
    directory: holds `train` and one of `val` and `test` (`val` if both
      exist), each with `images` and `masks`; or `images` and `masks`, each
      with these splits. `training`, `validation` and `annotations` are
      accepted too. A mask has the name of its image and ends in `.png`.
    num_classes: None if `classes.txt` names them.

  Raises:
    DataError: something is missing or empty, an image has no mask, or the
      number of classes is unknown or differs from the number of names.
  """
  root = epath.Path(directory).expanduser()
  train, test = _parts(root, _TRAIN), _parts(root, _TEST)
  if not train or not test:
    raise DataError(
      f'segmentation_folder: {root} must hold train/images, train/masks, '
      'val/images and val/masks (or test instead of val)'
    )
  names = _class_names(root, num_classes)
  return Dataset(
    name=f'segmentation_folder:{directory}',
    class_names=names,
    train=_open_split(*train),
    test=_open_split(*test),
  )


def class_numbers(num_classes: int) -> tuple[str, ...]:
  """Class names 0, 1, …, for data sets without names."""
  return tuple(map(str, range(num_classes)))


def _parts(root: epath.Path, splits: tuple[str, ...]) -> tuple[epath.Path, ...]:
  """Folders of images and masks of the first split that exists, or ()."""
  for split, masks in itertools.product(splits, _MASKS):
    for order in ((split, '{}'), ('{}', split)):
      found = tuple(
        root / order[0].format(kind) / order[1].format(kind)
        for kind in ('images', masks)
      )
      if all(path.is_dir() for path in found):
        return found
  return ()


def _class_names(root: epath.Path, num_classes: int | None) -> tuple[str, ...]:
  path = root / CLASSES
  if not path.exists():
    if num_classes is None:
      raise DataError(
        f'segmentation_folder: {root} has no {CLASSES}; write one name a line '
        'there, or set segment.num_classes'
      )
    return class_numbers(num_classes)
  try:
    lines = path.read_text(encoding='utf-8').splitlines()
  except UnicodeDecodeError as error:
    raise DataError(
      f'segmentation_folder: {path} is no text in UTF-8 ({error.reason}); save '
      'it as UTF-8'
    ) from error
  names = tuple(filter(None, map(str.strip, lines)))
  if num_classes not in (None, len(names)) or not names:
    raise DataError(
      f'segmentation_folder: {path} names {len(names)} classes, '
      f'segment.num_classes is {num_classes}; make them agree'
    )
  return names


def _open_split(images: epath.Path, masks: epath.Path) -> MaskFolderSource:
  files = sorted(
    path.name
    for path in images.iterdir()
    if path.name.lower().endswith(SUFFIXES) and not path.name.startswith('.')
  )
  if not files:
    raise DataError(
      f'segmentation_folder: {images} holds no image '
      f'({", ".join("*" + suffix for suffix in SUFFIXES)})'
    )
  stored = {path.name for path in masks.iterdir()}
  mask_files = tuple(f'{name.rpartition(".")[0]}.png' for name in files)
  missing = [name for name in mask_files if name not in stored]
  if missing:
    raise DataError(
      f'segmentation_folder: {masks / missing[0]} is missing, and '
      f'{len(missing) - 1} more; every image needs a mask of its name'
    )
  return MaskFolderSource(str(images), str(masks), tuple(files), mask_files)
