"""What every data source provides: two labelled, random-access splits."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np

from lambda_vit_jax.core.errors import UsageError


class Record(TypedDict):
  """One image as stored, with its label and its index in the split.

  Attributes:
    image: an encoded file (PNG, JPEG) as bytes, or a uint8 array
      `[height, width]` or `[height, width, 3]`.
    label: class number, 0-based; where pixels have classes, the mask: an
      encoded file, or an array of class indices `[height, width]`.
    index: the record's index in its split, 0-based.
  """

  image: bytes | np.ndarray
  label: Any
  index: int


class ImageSource(Protocol):
  """One split. Reading is thread-safe; the object can be pickled."""

  @property
  def labels(self) -> np.ndarray:
    """`[len(self)]` int32 class numbers, in the order of the records.

    Zeros where images have masks instead of classes.
    """
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...

  def describe(self, index: int) -> str:
    """Names a record for an error message: its file, or split and index."""
    ...


@runtime_checkable
class ReadForLabels(Protocol):
  """A split whose records have to be read to know their labels.

  In a job of several processes each reads a part of them (`cli/shared_labels`).
  """

  def knows_labels(self) -> bool:
    """Whether `labels` reads no record, or few."""
    ...

  def read_labels(self, start: int, stop: int) -> np.ndarray:
    """The labels of records `start` to `stop`, int32."""
    ...

  def keep_labels(self, labels: np.ndarray) -> None:
    """Takes the labels of all records, and caches them."""
    ...


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A data set as `open_dataset` returns it.

  Attributes:
    name: the source it was opened from, as in `data.source`.
    class_names: one name per class, in the order of the labels.
    train: the training split.
    test: the held-out split.
    splits: what the source calls the two.
    left_out: of each of the two, by ending, how many files are no images.
  """

  name: str
  class_names: tuple[str, ...]
  train: ImageSource
  test: ImageSource
  splits: tuple[str, str] = ('train', 'test')
  left_out: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})

  @property
  def num_classes(self) -> int:
    """Number of classes."""
    return len(self.class_names)

  def summary(self) -> str:
    """One line: the number of images, and the files that are left out."""
    left_out = ', '.join(
      f'{name} without {counted(files)}'
      for name, files in zip(self.splits, self.left_out, strict=True)
      if files
    )
    return (
      f'{len(self.train):,} images to train on ({self.splits[0]}), '
      f'{len(self.test):,} to test on ({self.splits[1]}), '
      f'{self.num_classes} classes' + (f'; {left_out}' if left_out else '')
    )


def counted(files: Mapping[str, int]) -> str:
  """Numbers of files by ending, as text: `12 .txt, 1 .csv`."""
  return ', '.join(f'{number:,} {name}' for name, number in files.items())


def split_holdout(
  labels: np.ndarray, num_holdout: int
) -> tuple[np.ndarray, np.ndarray]:
  """Splits off a fixed, stratified slice, such as the images for selection.

  Each class contributes its share of `num_holdout` by largest remainder. The
  draw depends on `labels` and `num_holdout` only, never on a seed.

  Args:
    labels: `[n]` class numbers.
    num_holdout: size of the slice, from 0 to n.

  Returns:
    `(train_indices, holdout_indices)`, int64, ascending, disjoint, together
    all of 0..n-1.

  Raises:
    UsageError: `num_holdout` is negative or above n.
  """
  labels = np.asarray(labels)
  if not 0 <= num_holdout <= len(labels):
    raise UsageError(
      f'config.data.holdout_images={num_holdout}: must be in '
      f'0..{len(labels)}, the number of training images'
    )
  # RandomState's stream never changes, Generator's may (NEP 19).
  order = np.random.RandomState(0).permutation(len(labels))
  classes, counts = np.unique(labels, return_counts=True)
  share = counts * (num_holdout / max(len(labels), 1))
  quota = np.floor(share).astype(int)
  largest_remainder = np.argsort(quota - share, kind='stable')
  quota[largest_remainder[: num_holdout - quota.sum()]] += 1
  held = np.zeros(len(labels), bool)
  for label, count in zip(classes, quota, strict=True):
    held[order[labels[order] == label][:count]] = True
  return np.flatnonzero(~held), np.flatnonzero(held)
