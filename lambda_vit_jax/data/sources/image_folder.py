"""Read image folders: `DIR/{train,val|test}/CLASS/*.{png,jpg,jpeg}`."""

import dataclasses
import functools

import numpy as np
from etils import epath

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.data.sources.dataset import Dataset, Record

SUFFIXES = ('.png', '.jpg', '.jpeg')
"""Endings of image files, in upper or lower case; others are ignored."""


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """One split; files are read on access.

  Attributes:
    root: folder of the split.
    files: paths below `root`, sorted within classes.
    class_numbers: one class number per file.
  """

  root: str
  files: tuple[str, ...]
  class_numbers: tuple[int, ...]

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> Record:
    try:
      data = self._path(index).read_bytes()
    except OSError as error:
      raise DataError(
        f'{self.describe(index)} cannot be read '
        f'({error.strerror or error}); the folder changed while in use'
      ) from error
    return Record(image=data, label=self.class_numbers[index], index=index)

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """`[len(self)]` int32."""
    return np.array(self.class_numbers, np.int32)

  def describe(self, index: int) -> str:
    return str(self._path(index))

  def _path(self, index: int) -> epath.Path:
    return epath.Path(self.root) / self.files[index]


def open_image_folder(directory: str) -> Dataset:
  """Opens a folder of images; its classes are the sorted folder names.

  Args:
    directory: holds `train` and one of `val` and `test` (`val` if both
      exist, as `test` seldom has labels), each with one folder per class.

  Raises:
    DataError: something is missing or empty, a class has no image, or the
      classes differ between the splits.
  """
  root = epath.Path(directory).expanduser()
  if not root.is_dir():
    raise DataError(
      f'image_folder: {root} is not a folder; it must hold train/CLASS/ and '
      'val/CLASS/ (or test/CLASS/)'
    )
  train = root / 'train'
  test = next((root / n for n in ('val', 'test') if (root / n).is_dir()), None)
  if not train.is_dir() or test is None:
    raise DataError(
      f'image_folder: {root} must hold a folder train and a folder val or '
      'test; it holds ' + (_listing(root) or 'nothing')
    )
  train_names, test_names = _classes(train), _classes(test)
  if train_names != test_names:
    raise DataError(
      f'image_folder: the classes of {train} and {test} differ: '
      + _difference(train_names, test_names)
      + '; both need the same folders'
    )
  return Dataset(
    name=f'image_folder:{directory}',
    class_names=train_names,
    train=_open_split(train, train_names),
    test=_open_split(test, test_names),
  )


def _classes(split: epath.Path) -> tuple[str, ...]:
  names = sorted(
    path.name
    for path in split.iterdir()
    if not path.name.startswith('.') and path.is_dir()
  )
  if not names:
    raise DataError(
      f'image_folder: {split} is empty; it needs one folder per class'
    )
  return tuple(names)


def _open_split(split: epath.Path, names: tuple[str, ...]) -> FolderSource:
  files: list[str] = []
  class_numbers: list[int] = []
  for number, name in enumerate(names):
    found = sorted(
      path.name
      for path in (split / name).iterdir()
      if path.name.lower().endswith(SUFFIXES) and not path.name.startswith('.')
    )
    if not found:
      raise DataError(
        f'image_folder: the class {split / name} has no image '
        f'({", ".join("*" + suffix for suffix in SUFFIXES)}); add some or '
        'remove the class from both splits'
      )
    files.extend(f'{name}/{file}' for file in found)
    class_numbers.extend([number] * len(found))
  return FolderSource(str(split), tuple(files), tuple(class_numbers))


def _difference(first: tuple[str, ...], second: tuple[str, ...]) -> str:
  parts = [
    f'only {where} has {", ".join(sorted(names)[:5])}'
    + (f' and {len(names) - 5} more' if len(names) > 5 else '')
    for where, names in (
      ('train', set(first) - set(second)),
      ('the other', set(second) - set(first)),
    )
    if names
  ]
  return ', '.join(parts)


def _listing(root: epath.Path) -> str:
  names = sorted(path.name for path in root.iterdir())
  return ', '.join(names[:8]) + (', ...' if len(names) > 8 else '')
