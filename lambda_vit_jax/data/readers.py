"""Read the images of one chunk of a batch, with keyed randomness.

Every random choice is a function of the seed and of the image's position in
the endless stream of training images (step times batch size plus row of the
batch), so neither a restart nor another number of processes, threads or
workers changes a pixel.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import chunks
from lambda_vit_jax.data.augment import Recipe
from lambda_vit_jax.data.chunks import Chunk
from lambda_vit_jax.data.decode import UndecodableError
from lambda_vit_jax.data.masks import MaskError
from lambda_vit_jax.data.randaugment import Patch
from lambda_vit_jax.data.sources.dataset import ImageSource

# So many undecodable images in a row are no accident.
_MAX_SKIPPED = 100
# Purposes of random numbers: the order of a pass, the changes to an image.
_ORDER, _PIXELS = 0, 1


@dataclasses.dataclass(frozen=True)
class ChunkLayout:
  """How one process's part of a global batch is cut into chunks.

  Attributes:
    batch_size: images of a global batch.
    local_size: images of this process's part.
    process_index: this process, 0-based.
    chunk_size: images per chunk; the last of a batch may have fewer.
  """

  batch_size: int
  local_size: int
  process_index: int
  chunk_size: int

  @property
  def chunks_per_batch(self) -> int:
    """Chunks of one process's part of a batch."""
    return math.ceil(self.local_size / self.chunk_size)

  def positions(self, number: int) -> range:
    """Positions in the stream of all batches that chunk `number` covers."""
    step, chunk = divmod(number, self.chunks_per_batch)
    first = chunk * self.chunk_size
    last = min(first + self.chunk_size, self.local_size)
    start = step * self.batch_size + self.process_index * self.local_size
    return range(start + first, start + last)


@dataclasses.dataclass(frozen=True)
class Reader:
  """What training and evaluation readers share.

  Attributes:
    layout: which images a chunk holds.
    source: the split to read.
    indices: `[n]` int64, the records of `source` that are used.
    preprocessing: the model's.
    recipe: turns a record into an example.
    skip_undecodable: leaves broken images out instead of raising.
  """

  layout: ChunkLayout
  source: ImageSource
  indices: np.ndarray
  preprocessing: Preprocessing
  recipe: Recipe
  skip_undecodable: bool

  def _empty_chunk(self, count: int) -> Chunk:
    size, channels = self.preprocessing.image_size, self.preprocessing.channels
    label_shape = self.recipe.label_shape(self.preprocessing)
    return {
      'pixels': np.empty((count, *size, channels), np.uint8),
      'label': np.zeros((count, *label_shape), np.int32),
    }

  def _skip(self, error: UndecodableError) -> None:
    """Warns about a broken image, or raises the error."""
    if not self.skip_undecodable:
      raise error
    _warn_once(str(error))


@dataclasses.dataclass(frozen=True)
class TrainReader(Reader):
  """Reads one chunk of a training batch, with random changes.

  Attributes:
    seed: any integer.
    repeats: versions of each image, next to each other in the batch.
  """

  seed: int
  repeats: int

  def __call__(self, number: int) -> Chunk:
    positions = self.layout.positions(number)
    chunk = self._empty_chunk(len(positions))
    patches = []
    for row, position in enumerate(positions):
      pixels, patch, label = self._example(position)
      chunk['pixels'][row] = pixels
      chunk['label'][row] = label
      patches.append(patch)
    return chunk | chunks.pack_patches(patches)

  def _example(self, position: int) -> tuple[np.ndarray, Patch | None, Any]:
    draw = position // self.repeats
    for attempt in range(_MAX_SKIPPED):
      turn, place = divmod(draw + attempt, len(self.indices))
      order = _permutation(self.seed, turn, len(self.indices))
      record = self.source[int(self.indices[order[place]])]
      rng = _generator(self.seed, _PIXELS, position, attempt)
      try:
        with errors_naming(self.source, record['index']):
          return self.recipe.training(record, self.preprocessing, rng)
      except UndecodableError as error:
        self._skip(error)
        last = error
    raise DataError(
      f'{_MAX_SKIPPED} images in a row cannot be decoded, the last: {last}'
    )


@dataclasses.dataclass(frozen=True)
class EvalReader(Reader):
  """Reads one chunk of an evaluation batch; rows past the end are padding."""

  def __call__(self, number: int) -> Chunk:
    positions = self.layout.positions(number)
    chunk = self._empty_chunk(len(positions))
    mask = np.zeros(len(positions), bool)
    for row, position in enumerate(positions):
      if position >= len(self.indices):
        break
      record = self.source[int(self.indices[position])]
      try:
        with errors_naming(self.source, record['index']):
          pixels, label = self.recipe.evaluation(record, self.preprocessing)
      except UndecodableError as error:
        self._skip(error)
        continue
      chunk['pixels'][row] = pixels
      chunk['label'][row] = label
      mask[row] = True
    return chunk | {'mask': mask}


def _generator(
  seed: int, purpose: int, place: int, attempt: int = 0
) -> np.random.Generator:
  """The stream of random numbers for one purpose and place.

  Philox is keyed by seed and purpose and counts up the low words of its
  counter, so streams of different places never overlap.
  """
  return np.random.Generator(
    np.random.Philox(
      key=((seed % 2**64) << 64) | purpose,
      counter=(place << 192) | (attempt << 128),
    )
  )


# A batch may run across the end of a pass, and threads may be a pass apart.
@functools.lru_cache(maxsize=4)
def _permutation(seed: int, turn: int, length: int) -> np.ndarray:
  """The order of pass number `turn` over the data."""
  return _generator(seed, _ORDER, turn).permutation(length)


@contextlib.contextmanager
def errors_naming(source: ImageSource, index: int) -> Iterator[None]:
  """While open, errors about an image or its mask name the record."""
  try:
    yield
  except MaskError as error:
    raise DataError(f'{source.describe(index)}: {error}') from error
  except UndecodableError as error:
    raise UndecodableError(
      f'{source.describe(index)} cannot be decoded ({error}); replace or '
      'remove it, or skip such images with config.data.skip_undecodable'
    ) from error


@functools.lru_cache(maxsize=10_000)
def _warn_once(message: str) -> None:
  logging.getLogger(__name__).warning(message)
