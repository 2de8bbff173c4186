"""Read image folders: `DIR/{train,val|valid|validation|test}/CLASS/…/FILE`."""

import collections
import dataclasses
import functools
from collections.abc import Collection, Mapping

import numpy as np
from etils import epath

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.files import user_path
from lambda_vit_jax.data.decode import suffixes
from lambda_vit_jax.data.sources.dataset import Dataset, Record

TEST_NAMES = ('val', 'valid', 'validation', 'test')
"""Names of the held-out split; the first that exists is read."""

HIDDEN = 'hidden'
"""What files and folders whose name starts with a dot are counted as."""

_DEEPEST = 20


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


@dataclasses.dataclass(frozen=True)
class Found:
  """The files of a folder and its subfolders.

  Attributes:
    images: paths below the folder, those of a folder before those of its
      subfolders, each sorted.
    left_out: by ending, how many files are no images; hidden files and folders
      (`.name`) are not looked into.
  """

  images: list[str]
  left_out: Mapping[str, int]


def find_images(folder: epath.Path) -> Found:
  """Finds files whose ending, in upper or lower case, is that of an image.

  Raises:
    DataError: a link that leads back up, or folders that are nested as deep.
  """
  images: list[str] = []
  left_out: collections.Counter[str] = collections.Counter()

  def visit(where: epath.Path, prefix: str) -> None:
    if prefix.count('/') > _DEEPEST:
      raise DataError(
        f'{where}: more than {_DEEPEST} folders within each other; remove '
        'links that lead back up'
      )
    subfolders = []
    for path in sorted(where.iterdir(), key=lambda path: path.name):
      if path.name.startswith('.'):
        left_out[HIDDEN] += 1
      elif path.name.lower().endswith(suffixes()):
        images.append(prefix + path.name)
      elif path.is_dir():
        subfolders.append(path)
      else:
        left_out[_ending(path)] += 1
    for path in subfolders:
      visit(path, f'{prefix}{path.name}/')

  visit(folder, '')
  return Found(images, dict(left_out.most_common()))


def _ending(path: epath.Path) -> str:
  return path.suffix.lower() or 'without an ending'


def open_image_folder(directory: str) -> Dataset:
  """Opens a folder of images; its classes are the sorted folder names.

  Args:
    directory: holds `train` and one of `TEST_NAMES`, the first that exists
      (`test` seldom has labels), each with one folder per class. Images may
      lie in subfolders of a class.

  Raises:
    DataError: something is missing or empty, a class has no image, or the
      classes differ between the splits.
  """
  root = user_path(directory)
  if not root.is_dir():
    raise DataError(
      f'image_folder: {root} is not a folder; it must hold train/CLASS/ and '
      'val/CLASS/ (or test/CLASS/)'
    )
  train = root / 'train'
  test = next((root / n for n in TEST_NAMES if (root / n).is_dir()), None)
  if not train.is_dir() or test is None:
    raise DataError(
      f'image_folder: {root} must hold a folder train and one of '
      f'{", ".join(TEST_NAMES)}; it holds '
      + (_some([p.name for p in root.iterdir()]) or 'nothing')
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
  train_source, train_left_out = _open_split(train, train_names)
  test_source, test_left_out = _open_split(test, test_names)
  return Dataset(
    name=f'image_folder:{directory}',
    class_names=train_names,
    train=train_source,
    test=test_source,
    splits=(train.name, test.name),
    left_out=(train_left_out, test_left_out),
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


def _open_split(
  split: epath.Path, names: tuple[str, ...]
) -> tuple[FolderSource, Mapping[str, int]]:
  """Returns the split, and by ending the files in it that are not read."""
  files: list[str] = []
  class_numbers: list[int] = []
  left_out: collections.Counter[str] = collections.Counter(
    HIDDEN if path.name.startswith('.') else f'{_ending(path)} in no class'
    for path in split.iterdir()
    if path.name not in names
  )
  for number, name in enumerate(names):
    found = find_images(split / name)
    if not found.images:
      holds = sum(found.left_out.values())
      raise DataError(
        f'image_folder: the class {split / name} has no image (of {holds} '
        'files none is of a format that is read, such as PNG, JPEG or WebP); '
        'add some or remove the class from both splits'
      )
    files.extend(f'{name}/{file}' for file in found.images)
    class_numbers.extend([number] * len(found.images))
    left_out.update(found.left_out)
  source = FolderSource(str(split), tuple(files), tuple(class_numbers))
  return source, dict(left_out.most_common())


def _some(names: Collection[str]) -> str:
  """The first of these names, sorted, and how many more there are."""
  more = f' and {len(names) - 8} more' if len(names) > 8 else ''
  return ', '.join(sorted(names)[:8]) + more
