"""Read image folders: `DIR/{train,val|test}/CLASS/*.{png,jpg,jpeg}`."""

import dataclasses
import functools
from collections.abc import Collection

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
    class_numbers: one class number per file; empty if there are masks.
    mask_files: one path below `root` per file; empty if there are classes.
  """

  root: str
  files: tuple[str, ...]
  class_numbers: tuple[int, ...] = ()
  mask_files: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> Record:
    image = self._read(self.files[index])
    label = (
      self._read(self.mask_files[index])
      if self.mask_files
      else self.class_numbers[index]
    )
    return Record(image=image, label=label, index=index)

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """`[len(self)]` int32, zeros if there are masks."""
    return np.array(self.class_numbers or [0] * len(self), np.int32)

  def describe(self, index: int) -> str:
    return str(epath.Path(self.root) / self.files[index])

  def _read(self, file: str) -> bytes:
    path = epath.Path(self.root) / file
    try:
      return path.read_bytes()
    except OSError as error:
      raise DataError(
        f'{path} cannot be read ({error.strerror or error}); the folder '
        'changed while in use'
      ) from error


def image_names(folder: epath.Path) -> list[str]:
  """Sorted names of the image files in a folder, other than hidden ones."""
  return sorted(
    path.name
    for path in folder.iterdir()
    if path.name.lower().endswith(SUFFIXES) and not path.name.startswith('.')
  )


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
      'test; it holds ' + (_some([p.name for p in root.iterdir()]) or 'nothing')
    )
  train_names, test_names = _classes(train), _classes(test)
  if train_names != test_names:
    only_train = set(train_names) - set(test_names)
    only_test = set(test_names) - set(train_names)
    raise DataError(
      f'image_folder: the classes of {train} and {test} differ: only train has '
      f'{_some(only_train) or "none"}, only the other {_some(only_test) or "none"}; '
      'both need the same folders'
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
    found = image_names(split / name)
    if not found:
      raise DataError(
        f'image_folder: the class {split / name} has no image '
        f'({", ".join("*" + suffix for suffix in SUFFIXES)}); add some or '
        'remove the class from both splits'
      )
    files.extend(f'{name}/{file}' for file in found)
    class_numbers.extend([number] * len(found))
  return FolderSource(str(split), tuple(files), tuple(class_numbers))


def _some(names: Collection[str]) -> str:
  """The first of these names, sorted, and how many more there are."""
  more = f' and {len(names) - 8} more' if len(names) > 8 else ''
  return ', '.join(sorted(names)[:8]) + more
