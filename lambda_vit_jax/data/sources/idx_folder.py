"""Read the MNIST family's idx files: four `.gz` in one folder, kept in memory."""

import dataclasses
import gzip
import math
import struct
import zlib

import numpy as np
from etils import epath

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.files import user_path
from lambda_vit_jax.data.sources.dataset import Dataset, Record

FASHION_CLASSES = (
  'T-shirt/top',
  'Trouser',
  'Pullover',
  'Dress',
  'Coat',
  'Sandal',
  'Shirt',
  'Sneaker',
  'Bag',
  'Ankle boot',
)
"""Class names for folders named after Fashion-MNIST; idx files have none."""

_UNSIGNED_BYTE = 8
# Twenty times MNIST's training images; a header that claims more is damaged or
# meant to exhaust memory.
_MAX_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """One split in memory.

  Attributes:
    name: its origin, for messages.
    images: uint8 `[n, height, width]`.
    labels: int32 `[n]`.
  """

  name: str
  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, index: int) -> Record:
    return Record(
      image=self.images[index], label=int(self.labels[index]), index=index
    )

  def describe(self, index: int) -> str:
    return f'{self.name}, image {index}'


def open_idx_folder(directory: str) -> Dataset:
  """Opens `{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz` of a folder.

  Raises:
    DataError: a file is missing, cut short or malformed, or images and
      labels do not match.
  """
  root = user_path(directory)
  if not root.is_dir():
    raise DataError(
      f'idx_folder: {root} is not a folder; it must hold the four files '
      'train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the same '
      'with t10k'
    )
  train, test = (_open_split(root, prefix) for prefix in ('train', 't10k'))
  if train.images.shape[1:] != test.images.shape[1:]:
    raise DataError(
      f'idx_folder: the images of {root} are {_size(train)} for training but '
      f'{_size(test)} for testing; the files belong to different data sets'
    )
  num_classes = int(train.labels.max()) + 1
  missing = np.setdiff1d(np.arange(num_classes), train.labels)
  if missing.size or test.labels.max() >= num_classes:
    raise DataError(
      f'idx_folder: the labels in {root} do not fit: training has '
      + (
        f'no image of class {missing[0]}'
        if missing.size
        else f'{num_classes} classes, testing a label {test.labels.max()}'
      )
      + '; the files are damaged or belong to different data sets'
    )
  names = tuple(str(number) for number in range(num_classes))
  if 'fashion' in root.name.lower() and num_classes == len(FASHION_CLASSES):
    names = FASHION_CLASSES
  return Dataset(f'idx_folder:{directory}', names, train, test)


def _open_split(root: epath.Path, prefix: str) -> ArraySource:
  images_path = root / f'{prefix}-images-idx3-ubyte.gz'
  labels_path = root / f'{prefix}-labels-idx1-ubyte.gz'
  images = _read(images_path, 3)
  labels = _read(labels_path, 1)
  if len(images) != len(labels):
    raise DataError(
      f'idx_folder: {images_path} holds {len(images)} images but '
      f'{labels_path.name} {len(labels)} labels; they belong to different '
      'data sets'
    )
  if not images.size:
    raise DataError(f'idx_folder: {images_path} holds no image')
  return ArraySource(str(images_path), images, labels.astype(np.int32))


def _read(path: epath.Path, num_axes: int) -> np.ndarray:
  """A gzipped idx file of unsigned bytes with `num_axes` axes."""
  header_size = 4 + 4 * num_axes
  try:
    with path.open('rb') as stored, gzip.open(stored) as file:
      header = file.read(header_size)
      expected = bytes([0, 0, _UNSIGNED_BYTE, num_axes])
      if len(header) < header_size or header[:4] != expected:
        raise DataError(
          f'idx_folder: {path} is no idx file of unsigned bytes with '
          f'{num_axes} axes; download it again'
        )
      # Python integers, as a damaged header may claim more than 2^64 bytes.
      shape = struct.unpack(f'>{num_axes}I', header[4:])
      claimed = math.prod(shape)
      if claimed > _MAX_BYTES:
        raise DataError(
          f'idx_folder: {path} claims {claimed} bytes, more than the '
          f'{_MAX_BYTES} that are read; it is damaged'
        )
      # One byte more than claimed, to notice trailing data.
      data = file.read(claimed + 1)
  except FileNotFoundError as error:
    raise DataError(
      f'idx_folder: {path} is missing; the folder must hold images and '
      'labels for train and t10k'
    ) from error
  except (OSError, EOFError, zlib.error) as error:
    raise DataError(
      f'idx_folder: {path} cannot be unpacked ({error}); download it again'
    ) from error
  if len(data) != claimed:
    raise DataError(
      f'idx_folder: {path} holds {"more" if len(data) > claimed else "fewer"} '
      f'bytes than the {claimed} its header claims; download it again'
    )
  return np.frombuffer(data, np.uint8).reshape(shape)


def _size(source: ArraySource) -> str:
  return '{} x {}'.format(*source.images.shape[1:])
