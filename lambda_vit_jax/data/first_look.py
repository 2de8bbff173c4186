"""Look at a few images of a data set before a run: what will become of them?"""

import os
from collections.abc import Iterator
from concurrent import futures

import numpy as np

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.preprocessing import IGNORED, Preprocessing
from lambda_vit_jax.data import decode
from lambda_vit_jax.data.decode import UndecodableError
from lambda_vit_jax.data.masks import MaskError, MaskRules
from lambda_vit_jax.data.sources.dataset import Dataset, ImageSource

# Images whose size and colours are looked at, and masks whose classes are.
_IMAGES, _MASKS = 32, 500
# Classes that a warning names.
_NAMED = 8


def _spread(source: ImageSource, most: int) -> list[int]:
  """Indices of at most this many records, spread over the whole split."""
  count = min(len(source), most)
  return np.linspace(0, len(source) - 1, count).round().astype(int).tolist()


def describe_images(source: ImageSource, preprocessing: Preprocessing) -> str:
  """One line on what happens to the images, from a few of them.

  Args:
    source: the split.
    preprocessing: the model's.

  Returns:
    For example `images of 32 x 32 pixels, RGB, become 8 x 8, grey`, width
    before height.
  """
  sizes, colours = set(), set()
  for index in _spread(source, _IMAGES):
    try:
      image = decode.open_image(source[index]['image'])
      sizes.add(decode.shown_size(image))
    except UndecodableError:
      # The first stage that reads it names it.
      continue
    grey = image.mode in decode.GREY_MODES
    colours.add('grey' if grey else 'RGB')
  height, width = preprocessing.image_size
  wanted = 'grey' if preprocessing.channels == 1 else 'RGB'
  if sizes == {(width, height)} and colours == {wanted}:
    return (
      f'images of {width} x {height} pixels, {wanted}, are read as they are'
    )
  ordered = sorted(sizes, key=lambda size: size[0] * size[1])
  ends = dict.fromkeys(f'{w} x {h}' for w, h in (*ordered[:1], *ordered[-1:]))
  return (
    f'images of {" to ".join(ends)} pixels, {" and ".join(sorted(colours))}, '
    f'become {width} x {height}, {wanted}'
  )


def check_classes(dataset: Dataset, rules: MaskRules) -> str | None:
  """Looks for classes that no mask has, in up to 500 training masks.

  Args:
    dataset: with masks.
    rules: the meaning of their numbers.

  Returns:
    A warning, where all masks were read and some class is in none of them.

  Raises:
    DataError: the masks hold at most one class, beside pixels without one:
      every score would be perfect, or of nothing; or one does not fit the
      number of classes, or its image.
  """
  indices = _spread(dataset.train, _MASKS)
  found: set[int] = set()
  for classes in _classes(dataset.train, rules, indices):
    found |= classes
  number_ignored = f'{rules.ignore_index}' + ' and 0' * rules.reduce_zero_label
  ignored = IGNORED in found
  found.discard(IGNORED)
  if ignored and len(found) <= 1 < rules.num_classes:
    held = ', '.join(dataset.class_names[k] for k in found) or 'none'
    raise DataError(
      f'{dataset.name}: of {rules.num_classes} classes the training masks hold '
      f'{held}, beside {number_ignored} for no class; write classes as 0, 1, … '
      'in masks, or set config.segment.ignore_index to a number that is no class'
    )
  missing = [
    name for k, name in enumerate(dataset.class_names) if k not in found
  ]
  if not missing or len(indices) < len(dataset.train):
    return None
  more = f' and {len(missing) - _NAMED} more' * (len(missing) > _NAMED)
  but = f', but {number_ignored} (no class) does' * ignored
  return (
    f'no training mask holds the class {", ".join(missing[:_NAMED])}{more}{but}'
  )


def _classes(
  source: ImageSource, rules: MaskRules, indices: list[int]
) -> Iterator[set[int]]:
  """The classes in each of these masks; nothing of what cannot be decoded."""

  def read(index: int) -> set[int]:
    record = source[index]
    try:
      image = decode.open_image(record['image'])
      labels = rules.read(record['label'], decode.shown_size(image))
    except UndecodableError:
      return set()
    except MaskError as error:
      raise DataError(f'{source.describe(index)}: {error}') from error
    return set(np.unique(labels).tolist())

  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    yield from pool.map(read, indices)
