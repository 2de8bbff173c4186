"""Read prepared TFDS data sets as random-access records, without TensorFlow.

TFDS parses the ArrayRecord files; images stay encoded (`SkipDecoding`), and the
pipeline decodes them with Pillow.
"""

import dataclasses
import functools
import hashlib
import os
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.data.sources.dataset import Dataset, Record

# A split of at most this many bytes is parsed once and kept in memory: for tiny
# images, parsing a record costs more than decoding it.
_HELD_BYTES = 2**25
# Reading the labels of a split means reading all of it, so the labels of splits
# with at least this many images are cached.
_CACHED_FROM = 20_000
# Feature names of images and of masks, most likely first.
_IMAGES = ('image', 'image_left')
_MASKS = ('annotation', 'segmentation_mask', 'segmentation_label', 'mask')


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """One split of a prepared data set.

  Attributes:
    name: the data set and split, for messages.
    records: TFDS's data source of `{image_key: bytes, label_key: int}`, or of
      encoded masks.
    image_key: name of the image feature.
    label_key: name of the label or mask feature.
    labels_file: where the labels of a large split are cached.
    is_small: whether all records are kept in memory once read.
    has_masks: whether labels are encoded masks.
    cure: what the user should do about a record that cannot be read.
  """

  name: str
  records: Any
  image_key: str
  label_key: str
  labels_file: str | None = None
  is_small: bool = False
  has_masks: bool = False
  cure: str = 'prepare the data set again'

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Record:
    record = self._held[index] if self.is_small else self._read(index)
    label = record[self.label_key]
    return Record(
      image=record[self.image_key],
      label=label if self.has_masks else int(label),
      index=index,
    )

  def describe(self, index: int) -> str:
    return f'{self.name}, record {index}'

  @functools.cached_property
  def _held(self) -> list[dict[str, Any]]:
    return [self._read(index) for index in range(len(self))]

  def _read(self, index: int) -> dict[str, Any]:
    try:
      return self.records[int(index)]
    # ArrayRecord and the protobuf parser raise many types on bad bytes.
    except Exception as error:
      raise DataError(
        f'{self.describe(index)} cannot be read '
        f'({type(error).__name__}: {_one_line(error)}); {self.cure}'
      ) from error

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """`[len(self)]` int32; reads the whole split once if not cached."""
    if self.has_masks:
      return np.zeros(len(self), np.int32)
    found = self._cached_labels()
    if found is None:
      found = self.read_labels(0, len(self))
      self._cache(found)
    return found

  def knows_labels(self) -> bool:
    """See `ReadForLabels`."""
    known = self.has_masks or self.is_small or 'labels' in vars(self)
    return known or self._cached_labels() is not None

  def read_labels(self, start: int, stop: int) -> np.ndarray:
    """See `ReadForLabels`; no image is decoded."""
    return np.fromiter(
      (self._read(index)[self.label_key] for index in range(start, stop)),
      np.int32,
      count=stop - start,
    )

  def keep_labels(self, labels: np.ndarray) -> None:
    """See `ReadForLabels`."""
    # Where the cached property looks first.
    vars(self)['labels'] = labels
    self._cache(labels)

  def _cached_labels(self) -> np.ndarray | None:
    if self.labels_file is None:
      return None
    found = _cached_labels(epath.Path(self.labels_file))
    return found if found is not None and len(found) == len(self) else None

  def _cache(self, labels: np.ndarray) -> None:
    if self.labels_file is None:
      return
    cached = epath.Path(self.labels_file)
    cached.parent.mkdir(parents=True, exist_ok=True)
    unfinished = cached.parent / f'{cached.name}.{uuid.uuid4().hex}'
    with unfinished.open('wb') as file:
      np.save(file, labels)
    unfinished.replace(cached)


def _cached_labels(path: epath.Path) -> np.ndarray | None:
  """What an earlier run has cached, or None to read the labels again."""
  try:
    with path.open('rb') as file:
      found = np.load(file, allow_pickle=False)
  except Exception:
    # Missing or damaged: numpy raises many types for a header.
    return None
  is_row = getattr(found, 'dtype', None) == np.int32 and found.ndim == 1
  return found if is_row else None


def open_tfds(name: str, cache_dir: epath.Path) -> Dataset:
  """Opens `tfds:NAME`, a data set prepared as ArrayRecord.

  `NAME` is TFDS's, with optional config and version (`name/config:1.0.0`),
  looked up in `TFDS_DATA_DIR` or else in TFDS's default folder. The
  test split is `test`, or `validation` if `test` is missing or has no
  labels (ImageNet).

  Raises:
    DataError: not prepared, in another file format, or not a labelled data
      set of 8-bit images.
  """
  return dataset_of_builder(f'tfds:{name}', _open_builder(name), cache_dir)


def open_tfds_masks(name: str, num_classes: int | None) -> Dataset:
  """Opens `tfds:NAME`, prepared as ArrayRecord, as images with masks.

  Args:
    name: TFDS's; the test split is `test`, or `validation` if that is
      missing.
    num_classes: required, since builders do not record it.

  Raises:
    DataError: not prepared, without a mask, or the number of classes is not
      given.
  """
  builder = _open_builder(name)
  name = f'tfds:{name}'
  features = dict(builder.info.features or {})
  images = [
    k for k, v in features.items() if isinstance(v, tfds.features.Image)
  ]
  image_key = next((key for key in _IMAGES if key in images), None)
  mask_key = next((key for key in _MASKS if key in images), None)
  if image_key is None or mask_key is None:
    raise DataError(
      f'{name} has the features {", ".join(features) or "none"}; an image and '
      f'a mask ({", ".join(_MASKS)}) are needed'
    )
  if num_classes is None:
    raise DataError(
      f'{name} does not record how many classes it has; set '
      'config.segment.num_classes'
    )

  def open_split(split: str) -> TfdsSource:
    records = _data_source(name, builder, split)
    return TfdsSource(
      f'{name} {split}', records, image_key, mask_key, has_masks=True
    )

  class_names = tuple(map(str, range(num_classes)))
  return _with_splits(name, class_names, builder, open_split)


def _open_builder(name: str) -> tfds.core.DatasetBuilder:
  data_dir = os.environ.get('TFDS_DATA_DIR') or None
  try:
    builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
  # TFDS has no common base class for "unknown" and "not found".
  except Exception as error:
    raise DataError(
      f'tfds:{name} cannot be opened ({_one_line(error)}); check the name, '
      'and TFDS_DATA_DIR for where it was prepared'
    ) from error
  if not builder.info.splits:
    raise DataError(
      f'tfds:{name} is not prepared in {builder.data_path}; run `tfds build '
      f'{name} --file_format=array_record` or set TFDS_DATA_DIR'
    )
  return builder


def dataset_of_builder(
  name: str,
  builder: tfds.core.DatasetBuilder,
  cache_dir: epath.Path,
  cure: str = TfdsSource.cure,
) -> Dataset:
  """The train and test splits of a prepared builder.

  Args:
    name: of the data set, for messages.
    builder: prepared as ArrayRecord.
    cache_dir: where the labels of large splits are kept.
    cure: what the user should do about records that cannot be read.

  Raises:
    DataError: no image or class feature, no train or test split, or files
      without random access.
  """
  image_key, label_key = _image_and_label(name, builder.info.features)

  def open_split(split: str) -> TfdsSource:
    return TfdsSource(
      name=f'{name} {split}',
      records=_data_source(name, builder, split),
      image_key=image_key,
      label_key=label_key,
      labels_file=_labels_file(cache_dir, builder, split),
      is_small=0 < builder.info.splits[split].num_bytes <= _HELD_BYTES,
      cure=cure,
    )

  class_names = tuple(builder.info.features[label_key].names)
  return _with_splits(name, class_names, builder, open_split)


def _with_splits(
  name: str,
  class_names: tuple[str, ...],
  builder: tfds.core.DatasetBuilder,
  open_split: Callable[[str], TfdsSource],
) -> Dataset:
  """A data set tested on `test`, or on `validation` if that has no labels."""
  known = builder.info.splits
  splits = {
    split: open_split(split)
    for split in ('train', 'test', 'validation')
    if split in known and known[split].num_examples
  }
  tested, test = 'test', splits.get('test')
  if test is None or (not test.has_masks and test[0]['label'] < 0):
    tested, test = 'validation', splits.get('validation')
  if 'train' not in splits or test is None:
    raise DataError(
      f'{name} has the splits {", ".join(known)}; a labelled train split and a '
      'labelled test or validation split are needed'
    )
  return Dataset(name, class_names, splits['train'], test, ('train', tested))


def _image_and_label(name: str, features: Any) -> tuple[str, str]:
  features = dict(features or {})

  def first(usual: str, kind: Any, other: Any = ()) -> str | None:
    keys = [
      key
      for key, feature in features.items()
      if isinstance(feature, kind) and not isinstance(feature, other)
    ]
    return usual if usual in keys else next(iter(keys), None)

  image_key = first('image', tfds.features.Image, tfds.features.LabeledImage)
  label_key = first('label', tfds.features.ClassLabel)
  if image_key is None or label_key is None:
    raise DataError(
      f'{name} has the features {", ".join(features) or "none"}; one image '
      'and one class label are needed'
    )
  if features[image_key].np_dtype != np.uint8:
    raise DataError(
      f'{name} stores {features[image_key].np_dtype} images; 8-bit images '
      'are needed'
    )
  return image_key, label_key


def _data_source(
  name: str, builder: tfds.core.DatasetBuilder, split: str
) -> Any:
  """The records of a split by index, with images as encoded bytes."""
  encoded = {
    key: tfds.decode.SkipDecoding()
    for key, feature in builder.info.features.items()
    if isinstance(feature, tfds.features.Image)
  }
  try:
    return builder.as_data_source(split, decoders=encoded)
  # NotImplementedError, or ValueError and RuntimeError of older files.
  except Exception as error:
    raise DataError(
      f'{name} in {builder.data_path} does not allow random access '
      f'({_one_line(error)}); prepare it with --file_format=array_record'
    ) from error


def _labels_file(
  cache_dir: epath.Path, builder: tfds.core.DatasetBuilder, split: str
) -> str | None:
  num_examples = builder.info.splits[split].num_examples
  if num_examples < _CACHED_FROM:
    return None
  place = f'{builder.data_path} {builder.info.full_name} {split} {num_examples}'
  digest = hashlib.sha256(place.encode()).hexdigest()[:16]
  return os.fspath(cache_dir / 'labels' / f'{digest}.npy')


def _one_line(error: Exception) -> str:
  """The first 200 characters of an error's text, on one line."""
  return ' '.join(str(error).split())[:200]
