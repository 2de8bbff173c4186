"""Training and evaluation batches, in an order that survives restarts.

The order and the random changes are functions of the seed and the step alone
(see `readers`). Grain runs the work in the background. Its elements are chunks
of a batch: large enough that Grain's cost per element does not matter, small
enough that few batches are in memory.
"""

import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Iterator

import grain
import numpy as np

from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import chunks, readers
from lambda_vit_jax.data.augment import RECIPES, Recipe
from lambda_vit_jax.data.chunks import Batch
from lambda_vit_jax.data.sources.dataset import ImageSource

# Chunks hold about this many pixels: 20 images of 224 px, 256 of 64 px.
_CHUNK_PIXELS = 2**20
_CHUNK_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Loading:
  """How batches are read: their size, who reads them, and how far ahead.

  Attributes:
    batch_size: images of a global batch; a multiple of `process_count`.
    process_index: this process, 0-based.
    process_count: processes that share each batch.
    workers: processes that decode; 0 decodes in threads of this process.
    prefetch: batches made ahead, at least 1. Memory is bounded by about
      `prefetch + 1` local batches, plus three chunks per worker; four per
      worker if there are more workers than chunks in `prefetch` batches.
    skip_undecodable: leaves broken images out, with a warning that names
      them. Training takes the next image, evaluation masks the row.

  Raises:
    UsageError: values out of range, or sizes that do not fit together.
  """

  batch_size: int
  process_index: int = 0
  process_count: int = 1
  workers: int = 0
  prefetch: int = 2
  skip_undecodable: bool = False

  def __post_init__(self):
    if not 0 <= self.process_index < self.process_count:
      raise UsageError(
        f'process_index={self.process_index}: must be in '
        f'0..{self.process_count - 1}'
      )
    if self.batch_size < 1 or self.batch_size % self.process_count:
      raise UsageError(
        f'batch_size={self.batch_size}: must be a positive multiple of the '
        f'{self.process_count} processes'
      )
    if self.prefetch < 1:
      raise UsageError(f'prefetch={self.prefetch}: must be at least 1')
    if self.workers < 0:
      raise UsageError(f'workers={self.workers}: must be at least 0')

  def layout(self, preprocessing: Preprocessing) -> readers.ChunkLayout:
    """How this process's part of a batch is cut into chunks."""
    local_size = self.batch_size // self.process_count
    fitting = max(1, _CHUNK_PIXELS // math.prod(preprocessing.image_size))
    chunk_size = min(local_size, _CHUNK_IMAGES, fitting)
    return readers.ChunkLayout(
      self.batch_size, local_size, self.process_index, chunk_size
    )


def train_batches(
  source: ImageSource,
  indices: np.ndarray,
  preprocessing: Preprocessing,
  recipe: Recipe,
  loading: Loading,
  seed: int,
  start_step: int = 0,
  repeats: int = 1,
) -> Iterator[Batch]:
  """Endless training batches, starting with that of `start_step`.

  The images of `indices` are shuffled anew for every pass; batches run
  across the ends of passes. The batch of step s is the concatenation over
  processes of their parts, the same for any number of processes.

  Args:
    source: the split to read.
    indices: `[n]` records of `source` that may be used, n >= 1.
    preprocessing: the model's.
    recipe: turns a record into an example, with its random changes.
    loading: batch size, processes and workers.
    seed: any integer.
    start_step: the step whose batch comes first.
    repeats: repeated augmentation: each draw yields this many versions of an
      image, next to each other in the batch. A pass over the data then
      takes `repeats` times as many steps.

  Returns:
    An iterator of `{'image': float32 [local, height, width, channels],
    'label': int32 [local]}` (per pixel where records have masks); its `close()`
    stops threads and workers.

  Raises:
    UsageError: `repeats` or `start_step` is out of range.
    DataError: indices that the split does not have; from the iterator, an
      image that cannot be decoded, named.
  """
  indices = _checked_indices(source, indices)
  if repeats < 1:
    raise UsageError(f'repeats={repeats}: must be at least 1')
  if start_step < 0:
    raise UsageError(f'start_step={start_step}: must be at least 0')
  reader = readers.TrainReader(
    layout=loading.layout(preprocessing),
    source=source,
    indices=indices,
    preprocessing=preprocessing,
    recipe=recipe,
    skip_undecodable=loading.skip_undecodable,
    seed=seed,
    repeats=repeats,
  )
  first = start_step * reader.layout.chunks_per_batch
  return _run(grain.MapDataset.range(first, sys.maxsize), reader, loading)


def eval_batches(
  source: ImageSource,
  indices: np.ndarray,
  preprocessing: Preprocessing,
  loading: Loading,
  recipe: Recipe = RECIPES['none'],
) -> Iterator[Batch]:
  """Every image of `indices` once, in order, in batches of one fixed shape.

  Args:
    source: the split to read.
    indices: `[n]` records of `source`, n >= 1.
    preprocessing: the model's; its evaluation transform is applied.
    loading: batch size, processes and workers. Every process gets the same
      number of batches, ceil(n / batch_size).
    recipe: turns a record into an example, without random changes.

  Returns:
    An iterator of `{'image': float32 [local, height, width, channels],
    'label': int32 [local], 'mask': bool [local]}`. Rows whose mask is False
    are padding: zeros, not to be counted.

  Raises:
    DataError: indices that the split does not have; from the iterator, an
      image that cannot be decoded, named.
  """
  reader = readers.EvalReader(
    layout=loading.layout(preprocessing),
    source=source,
    indices=_checked_indices(source, indices),
    preprocessing=preprocessing,
    recipe=recipe,
    skip_undecodable=loading.skip_undecodable,
  )
  batches = math.ceil(len(reader.indices) / loading.batch_size)
  count = batches * reader.layout.chunks_per_batch
  return _run(grain.MapDataset.range(count), reader, loading)


def _checked_indices(source: ImageSource, indices: np.ndarray) -> np.ndarray:
  indices = np.asarray(indices, np.int64)
  if not len(indices):
    raise DataError('no image is left to read: the list of indices is empty')
  if indices.min() < 0 or indices.max() >= len(source):
    raise DataError(
      f'indices {indices.min()}..{indices.max()} exceed the split, which has '
      f'{len(source)} images'
    )
  return indices


def _run(
  numbers: grain.MapDataset, reader: readers.Reader, loading: Loading
) -> Iterator[Batch]:
  """Maps chunk numbers to chunks in the background, joins them to batches."""
  chunks_per_batch = reader.layout.chunks_per_batch
  ahead = loading.prefetch * chunks_per_batch
  if loading.workers:
    # Grain reads absl's global flags here; the caller must have parsed them,
    # as `cli/workdir.py` does. It buffers twice, in the worker and in a thread
    # of this process, and holds one more chunk before either buffer.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    workers = loading.workers
    buffer_size = max(1, (ahead + workers) // (2 * workers))
    dataset = (
      numbers.map(reader)
      .to_iter_dataset(options)
      .mp_prefetch(grain.MultiprocessingOptions(workers, buffer_size))
    )
  else:
    options = grain.ReadOptions(
      num_threads=min(_usable_cores(), ahead),
      prefetch_buffer_size=ahead,
    )
    dataset = numbers.map(reader).to_iter_dataset(options)
  join = functools.partial(chunks.join, preprocessing=reader.preprocessing)
  return _closing(iter(dataset.batch(chunks_per_batch, batch_fn=join)))


def _usable_cores() -> int:
  """Cores that this process may run on, where the system reports them."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _closing(iterator: grain.DatasetIterator) -> Iterator[Batch]:
  """Stops threads and workers when the consumer stops, for any reason."""
  with contextlib.closing(iterator):
    yield from iterator
