"""Batches for training and evaluation, in an order that survives restarts.

Every random choice is a function of the seed and of the image's place in the
endless stream of training images (step times batch size plus place in the
batch), so neither a restart nor another number of processes, threads or
workers changes a pixel. Grain runs the work: its elements are chunks of a
batch, large enough that its cost per element does not show and small enough
that few batches are in memory.
"""

import dataclasses
import functools
import logging
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import chunks as chunks_lib
from lambda_vit_jax.data.augment import RECIPES, Recipe
from lambda_vit_jax.data.chunks import Batch, Chunk
from lambda_vit_jax.data.masks import MaskError
from lambda_vit_jax.data.randaugment import Patch
from lambda_vit_jax.data.sources.dataset import ImageSource
from lambda_vit_jax.data.transforms import UndecodableError

# Chunks hold about this many pixels: 20 images of 224 px, 256 of 64 px.
_CHUNK_PIXELS = 2**20
_CHUNK_IMAGES = 256
# A run of undecodable images longer than this is no accident.
_MAX_SKIPPED = 100
# Purposes of random numbers: the order of a pass, the changes to an image.
_ORDER, _PIXELS = 0, 1


def train_batches(
  source: ImageSource,
  indices: np.ndarray,
  preprocessing: Preprocessing,
  augment: Recipe,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  repeats: int = 1,
  workers: int = 0,
  prefetch: int = 2,
  skip_undecodable: bool = False,
) -> Iterator[Batch]:
  """Endless training batches, from `start_step` on.

  The images of `indices` are shuffled anew for every pass; batches run
  across the ends of passes. The batch of step s is the concatenation over
  processes of their parts, the same for any `process_count`.

  Args:
    source: the split to read.
    indices: `[n]` places in `source` that may be used, n >= 1.
    preprocessing: the model's input.
    augment: what a record becomes, with its random changes.
    batch_size: global; a multiple of `process_count`.
    seed: any integer.
    start_step: the step whose batch comes first.
    process_index: this process, 0-based.
    process_count: processes that share a batch.
    repeats: repeated augmentation: each draw gives this many versions of an
      image, next to each other in the batch. A pass over the data then
      takes `repeats` times as many steps.
    workers: processes that decode; 0 decodes in threads of this process.
    prefetch: batches made ahead, at least 1. Memory is bounded by about
      `prefetch + 1` local batches, plus three chunks per worker.
    skip_undecodable: takes the next image instead of a broken one, with a
      warning that names it.

  Returns:
    An iterator of `{'image': float32 [local, height, width, channels],
    'label': int32 [local]}` (per pixel where records have masks); its `close()`
    stops threads and workers.

  Raises:
    UsageError: sizes that do not fit together.
    DataError: from the iterator: an image that cannot be decoded, named.
  """
  local_size = _local_size(batch_size, process_index, process_count)
  indices = _checked_indices(source, indices)
  if repeats < 1 or start_step < 0:
    raise UsageError(
      f'repeats = {repeats} must be at least 1, start_step = {start_step} at '
      'least 0.'
    )
  reader = _TrainReader(
    layout=_Layout.of(
      batch_size, local_size, process_index, preprocessing.image_size
    ),
    source=source,
    preprocessing=preprocessing,
    recipe=augment,
    indices=indices,
    seed=seed,
    repeats=repeats,
    skip_undecodable=skip_undecodable,
  )
  chunks = reader.layout.chunks
  numbers = grain.MapDataset.range(start_step * chunks, sys.maxsize)
  return _run(numbers, reader, chunks, workers, prefetch)


def eval_batches(
  source: ImageSource,
  indices: np.ndarray,
  preprocessing: Preprocessing,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  workers: int = 0,
  prefetch: int = 2,
  skip_undecodable: bool = False,
  recipe: Recipe = RECIPES['none'],
) -> Iterator[Batch]:
  """Every image of `indices` once, in order, in batches of one fixed shape.

  Args:
    source: the split to read.
    indices: `[n]` places in `source`, n >= 1.
    preprocessing: the model's; its evaluation transform is applied.
    batch_size: global; a multiple of `process_count`.
    process_index: this process, 0-based.
    process_count: processes that share a batch; each gets the same number
      of batches, ceil(n / batch_size).
    workers: processes that decode; 0 decodes in threads of this process.
    prefetch: batches made ahead, at least 1.
    skip_undecodable: masks a broken image out, with a warning that names it.
    recipe: what a record becomes; nothing random.

  Returns:
    An iterator of `{'image': float32 [local, height, width, channels],
    'label': int32 [local], 'mask': bool [local]}`. Rows whose mask is False
    are padding: zeros, not to be counted.

  Raises:
    UsageError: sizes that do not fit together.
    DataError: from the iterator: an image that cannot be decoded, named.
  """
  local_size = _local_size(batch_size, process_index, process_count)
  reader = _EvalReader(
    layout=_Layout.of(
      batch_size, local_size, process_index, preprocessing.image_size
    ),
    source=source,
    preprocessing=preprocessing,
    indices=_checked_indices(source, indices),
    skip_undecodable=skip_undecodable,
    recipe=recipe,
  )
  chunks = reader.layout.chunks
  numbers = grain.MapDataset.range(
    math.ceil(len(reader.indices) / batch_size) * chunks
  )
  return _run(numbers, reader, chunks, workers, prefetch)


def _local_size(batch_size: int, process_index: int, process_count: int) -> int:
  if not 0 <= process_index < process_count:
    raise UsageError(
      f'process_index = {process_index} must lie in 0..{process_count - 1}.'
    )
  if batch_size < 1 or batch_size % process_count:
    raise UsageError(
      f'batch_size = {batch_size} must be a positive multiple of the '
      f'{process_count} processes.'
    )
  return batch_size // process_count


def _checked_indices(source: ImageSource, indices: np.ndarray) -> np.ndarray:
  indices = np.asarray(indices, np.int64)
  if not len(indices):
    raise DataError('No image is left to read: the list of indices is empty.')
  if indices.min() < 0 or indices.max() >= len(source):
    raise DataError(
      f'Indices {indices.min()}..{indices.max()} exceed the split, which has '
      f'{len(source)} images.'
    )
  return indices


@dataclasses.dataclass(frozen=True)
class _Layout:
  """How a process's part of a global batch is cut into chunks."""

  batch_size: int
  local_size: int
  process_index: int
  chunk_size: int

  @classmethod
  def of(
    cls,
    batch_size: int,
    local_size: int,
    process_index: int,
    image_size: tuple[int, int],
  ) -> '_Layout':
    fitting = max(1, _CHUNK_PIXELS // (image_size[0] * image_size[1]))
    chunk_size = min(local_size, _CHUNK_IMAGES, fitting)
    return cls(batch_size, local_size, process_index, chunk_size)

  @property
  def chunks(self) -> int:
    """Chunks per local batch; the last may be smaller."""
    return math.ceil(self.local_size / self.chunk_size)

  def positions(self, number: int) -> range:
    """Places in the stream of all batches that chunk `number` covers."""
    step, chunk = divmod(number, self.chunks)
    first = chunk * self.chunk_size
    last = min(first + self.chunk_size, self.local_size)
    start = step * self.batch_size + self.process_index * self.local_size
    return range(start + first, start + last)


@dataclasses.dataclass(frozen=True)
class _TrainReader:
  """Makes one chunk of a training batch."""

  layout: _Layout
  source: ImageSource
  preprocessing: Preprocessing
  recipe: Recipe
  indices: np.ndarray
  seed: int
  repeats: int
  skip_undecodable: bool

  def __call__(self, number: int) -> Chunk:
    positions = self.layout.positions(number)
    chunk = chunks_lib.empty(
      len(positions),
      self.preprocessing,
      self.recipe.label_shape(self.preprocessing),
    )
    patches = []
    for row, position in enumerate(positions):
      pixels, patch, label = self._example(position)
      chunk['pixels'][row] = pixels
      chunk['label'][row] = label
      patches.append(patch)
    return chunk | chunks_lib.pack_patches(patches)

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
        raise of_record(self.source, record['index'], error) from error
      except UndecodableError as error:
        message = undecodable(self.source, record['index'], error)
        if not self.skip_undecodable:
          raise DataError(message) from error
        _warn_once(message)
    raise DataError(
      f'{_MAX_SKIPPED} images in a row cannot be decoded, the last: {message}'
    )


@dataclasses.dataclass(frozen=True)
class _EvalReader:
  """Makes one chunk of an evaluation batch."""

  layout: _Layout
  source: ImageSource
  preprocessing: Preprocessing
  indices: np.ndarray
  skip_undecodable: bool
  recipe: Recipe

  def __call__(self, number: int) -> Chunk:
    positions = self.layout.positions(number)
    chunk = chunks_lib.empty(
      len(positions),
      self.preprocessing,
      self.recipe.label_shape(self.preprocessing),
    )
    mask = np.zeros(len(positions), bool)
    for row, position in enumerate(positions):
      if position >= len(self.indices):
        break
      record = self.source[int(self.indices[position])]
      try:
        pixels, label = self.recipe.evaluation(record, self.preprocessing)
      except MaskError as error:
        raise of_record(self.source, record['index'], error) from error
      except UndecodableError as error:
        message = undecodable(self.source, record['index'], error)
        if not self.skip_undecodable:
          raise DataError(message) from error
        _warn_once(message)
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
  counter, so that streams of different places never meet.
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


def undecodable(
  source: ImageSource, index: int, error: UndecodableError
) -> str:
  """The line about a record that is no image."""
  return (
    f'{source.describe(index)} cannot be decoded ({error}); replace or '
    'remove it, or skip such images with data.skip_undecodable.'
  )


def of_record(source: ImageSource, index: int, error: MaskError) -> DataError:
  """The error with the name of its record."""
  return DataError(f'{source.describe(index)}: {error}')


@functools.lru_cache(maxsize=10_000)
def _warn_once(message: str) -> None:
  logging.getLogger(__name__).warning(message)


def _run(
  numbers: grain.MapDataset,
  reader: _TrainReader | _EvalReader,
  chunks: int,
  workers: int,
  prefetch: int,
) -> Iterator[Batch]:
  """Maps chunk numbers to chunks in the background, joins them to batches."""
  if prefetch < 1 or workers < 0:
    raise UsageError(
      f'prefetch = {prefetch} must be at least 1, workers = {workers} at '
      'least 0.'
    )
  ahead = prefetch * chunks
  if workers:
    # Grain reads absl's global flags here: the caller has them parsed, as
    # `cli/workdir.py` does.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    dataset = (
      numbers.map(reader)
      .to_iter_dataset(options)
      .mp_prefetch(
        grain.MultiprocessingOptions(
          num_workers=workers,
          per_worker_buffer_size=max(1, math.ceil(ahead / workers)),
        )
      )
    )
  else:
    options = grain.ReadOptions(
      num_threads=min(_usable_cores(), ahead),
      prefetch_buffer_size=ahead,
    )
    dataset = numbers.map(reader).to_iter_dataset(options)
  join = functools.partial(chunks_lib.join, preprocessing=reader.preprocessing)
  return _closing(iter(dataset.batch(chunks, batch_fn=join)))


def _usable_cores() -> int:
  """Cores that this process may run on, where the system tells."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _closing(iterator: grain.DatasetIterator) -> Iterator[Batch]:
  """Stops threads and workers when the consumer stops, for any reason."""
  try:
    yield from iterator
  finally:
    iterator.close()
