"""Read the images of one chunk of a batch, with keyed randomness.

Every random choice is a function of the seed and of the image's position in
the endless stream of training images (step times batch size plus row of the
batch), so neither a restart nor another number of processes, threads or
workers changes a pixel.
"""

import dataclasses
import functools
import logging
import math
from typing import Any

import numpy as np

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import chunks
from lambda_vit_jax.data.augment import Recipe
from lambda_vit_jax.data.chunks import Chunk
from lambda_vit_jax.data.masks import MaskError
from lambda_vit_jax.data.randaugment import Patch
from lambda_vit_jax.data.sources.dataset import ImageSource
from lambda_vit_jax.data.transforms import UndecodableError

# Chunks hold about this many pixels: 20 images of 224 px, 256 of 64 px.
_CHUNK_PIXELS = 2**20
_CHUNK_IMAGES = 256
# More undecodable images in a row than this are no accident.
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

  @classmethod
  def of(
    cls,
    batch_size: int,
    process_index: int,
    process_count: int,
    image_size: tuple[int, int],
  ) -> 'ChunkLayout':
    """The layout for images of (height, width) pixels."""
    local_size = batch_size // process_count
    fitting = max(1, _CHUNK_PIXELS // (image_size[0] * image_size[1]))
    chunk_size = min(local_size, _CHUNK_IMAGES, fitting)
    return cls(batch_size, local_size, process_index, chunk_size)

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
    shape = self.recipe.label_shape(self.preprocessing)
    return chunks.empty(count, self.preprocessing, shape)

  def _skip(self, index: int, error: UndecodableError) -> str:
    """Warns about a broken image and returns the line, or raises it."""
    message = undecodable_message(self.source, index, error)
    if not self.skip_undecodable:
      raise DataError(message) from error
    _warn_once(message)
    return message


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
    for attempt in range(_MAX_SKIPPED + 1):
      turn, place = divmod(draw + attempt, len(self.indices))
      order = _permutation(self.seed, turn, len(self.indices))
      record = self.source[int(self.indices[order[place]])]
      rng = _generator(self.seed, _PIXELS, position, attempt)
      try:
        return self.recipe.training(record, self.preprocessing, rng)
      except MaskError as error:
        raise mask_error(self.source, record['index'], error) from error
      except UndecodableError as error:
        message = self._skip(record['index'], error)
    raise DataError(
      f'{_MAX_SKIPPED} images in a row cannot be decoded, the last: {message}'
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
        pixels, label = self.recipe.evaluation(record, self.preprocessing)
      except MaskError as error:
        raise mask_error(self.source, record['index'], error) from error
      except UndecodableError as error:
        self._skip(record['index'], error)
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


def undecodable_message(
  source: ImageSource, index: int, error: UndecodableError
) -> str:
  """The error message for a record that cannot be decoded."""
  return (
    f'{source.describe(index)} cannot be decoded ({error}); replace or '
    'remove it, or skip such images with data.skip_undecodable'
  )


def mask_error(source: ImageSource, index: int, error: MaskError) -> DataError:
  """`error` with the name of the record that it is about."""
  return DataError(f'{source.describe(index)}: {error}')


@functools.lru_cache(maxsize=10_000)
def _warn_once(message: str) -> None:
  logging.getLogger(__name__).warning(message)
