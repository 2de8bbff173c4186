"""Read prepared TFDS data sets with an image and a mask of class indices."""

import dataclasses
import functools
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.data.sources.dataset import Dataset, Record
from lambda_vit_jax.data.sources.mask_folder import class_numbers
from lambda_vit_jax.data.sources.tfds import data_source, one_line, open_builder

# Feature names of images and of masks, most likely first.
_IMAGES = ('image', 'image_left')
_MASKS = ('annotation', 'segmentation_mask', 'segmentation_label', 'mask')


@dataclasses.dataclass(frozen=True)
class TfdsMaskSource:
  """One split of a prepared data set.

  Attributes:
    name: the data set and split, for messages.
    records: TFDS's data source of encoded bytes.
    image_key: name of the image feature.
    mask_key: name of the mask feature.
  """

  name: str
  records: Any
  image_key: str
  mask_key: str

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, index: int) -> Record:
    try:
      record = self.records[int(index)]
    # ArrayRecord and the protobuf parser raise many types on bad bytes.
    except Exception as error:
      raise DataError(
        f'{self.describe(index)} cannot be read ({type(error).__name__}: '
        f'{one_line(error)}); prepare the data set again'
      ) from error
    return Record(
      image=record[self.image_key], label=record[self.mask_key], index=index
    )

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """`[len(self)]` zeros: images have masks instead of classes."""
    return np.zeros(len(self), np.int32)

  def describe(self, index: int) -> str:
    return f'{self.name}, record {index}'


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
  builder = open_builder(name)
  return dataset_of_builder(f'tfds:{name}', builder, num_classes)


def dataset_of_builder(
  name: str, builder: tfds.core.DatasetBuilder, num_classes: int | None
) -> Dataset:
  """The train and test splits of a prepared builder; see `open_tfds_masks`."""
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
      f'{name} does not say how many classes there are; set segment.num_classes'
    )
  splits = {
    split: TfdsMaskSource(
      f'{name} {split}', data_source(name, builder, split), image_key, mask_key
    )
    for split in ('train', 'test', 'validation')
    if split in builder.info.splits and builder.info.splits[split].num_examples
  }
  test = splits.get('test', splits.get('validation'))
  if 'train' not in splits or test is None:
    raise DataError(
      f'{name} has the splits {", ".join(builder.info.splits)}; a train split '
      'and a test or validation split are needed'
    )
  return Dataset(name, class_numbers(num_classes), splits['train'], test)
