"""Batches: one order for any process count, restart, thread or worker."""

import contextlib
import dataclasses
import io
import itertools
import logging
import multiprocessing
import os
import pathlib
import re
import sys
import threading
import time

import numpy as np
import pytest
from absl import flags
from PIL import Image

from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.data import pipeline, readers
from lambda_vit_jax.data.augment import Augment
from lambda_vit_jax.data.pipeline import Loading, eval_batches, train_batches
from lambda_vit_jax.data.sources.idx_folder import ArraySource

GREY = Preprocessing((6, 6), (0.5,), (0.5,), 1.0, 'bilinear')
NONE = Augment()
AFFINE = Augment.from_config({'kind': 'affine', 'erasing': 0.5})
NUM_IMAGES = 23


@pytest.fixture(autouse=True)
def parsed_flags():
  """Grain's worker processes read absl's flags, which `cli/workdir.py` marks as parsed."""
  flags.FLAGS.mark_as_parsed()


def _source(num_images=NUM_IMAGES, size=6):
  """Image i has grey value i everywhere, and label i."""
  numbers = np.arange(num_images)
  images = np.broadcast_to(
    numbers[:, None, None].astype(np.uint8), (num_images, size, size)
  )
  return ArraySource('grey', images, numbers.astype(np.int32))


def _take(batches, number):
  taken = list(itertools.islice(batches, number))
  batches.close()
  return taken


def _train(number=5, recipe=AFFINE, seed=0, start_step=0, repeats=1, **loading):
  return _take(
    train_batches(
      _source(),
      np.arange(2, NUM_IMAGES),
      GREY,
      recipe,
      Loading(**{'batch_size': 8, **loading}),
      seed,
      start_step,
      repeats,
    ),
    number,
  )


def _assert_same(first, second):
  assert len(first) == len(second)
  for one, other in zip(first, second, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def _labels(batches):
  return np.concatenate([batch['label'] for batch in batches])


@pytest.fixture(scope='module')
def undisturbed():
  return _train()


def test_shapes_and_values(undisturbed):
  for batch in undisturbed:
    assert batch['image'].shape == (8, 6, 6, 1)
    assert batch['image'].dtype == np.float32
    assert batch['label'].shape == (8,)
    assert batch['label'].dtype == np.int32
  plain = _train(recipe=NONE)
  for batch in plain:
    expected = (batch['label'] / 255 - 0.5) / 0.5
    # One float32 multiplication and addition.
    np.testing.assert_allclose(batch['image'][:, 3, 3, 0], expected, atol=2e-7)


def test_each_pass_sees_each_image_once_in_a_new_order():
  # 21 images in batches of 7: three batches a pass.
  labels = _labels(_train(9, batch_size=7)).reshape(3, 21)
  for order in labels:
    np.testing.assert_array_equal(np.sort(order), np.arange(2, NUM_IMAGES))
  assert (labels[0] != labels[1]).any()
  assert (labels[1] != labels[2]).any()


def test_passes_run_on_across_batches():
  labels = _labels(_train(8))[:63].reshape(3, 21)
  for order in labels:
    np.testing.assert_array_equal(np.sort(order), np.arange(2, NUM_IMAGES))


def test_same_seed_same_bytes_other_seed_other_order(undisturbed):
  _assert_same(undisturbed, _train())
  assert (_labels(undisturbed) != _labels(_train(seed=1))).any()
  # Not one pass late either: pass e of seed s is not pass 0 of seed s + e.
  first = _labels(_train(3, seed=1, batch_size=7))
  second = _labels(_train(6, seed=0, batch_size=7))[21:]
  assert (first != second).any()


def _words(seed, purpose, place, attempt=0, number=64):
  """The first random words of one stream."""
  return readers._generator(seed, purpose, place, attempt).bytes(8 * number)


@pytest.mark.parametrize(
  'one, other',
  [
    ((0, readers._ORDER, 3), (0, readers._PIXELS, 3)),
    ((0, readers._PIXELS, 3), (1, readers._PIXELS, 3)),
    ((0, readers._PIXELS, 3), (0, readers._PIXELS, 4)),
    ((0, readers._PIXELS, 3), (0, readers._PIXELS, 3, 1)),
    ((0, readers._ORDER, 1), (1, readers._ORDER, 0)),
  ],
  ids=['purpose', 'seed', 'place', 'attempt', 'pass and seed'],
)
def test_streams_differ_and_do_not_overlap(one, other):
  first, second = (
    np.frombuffer(_words(*which), np.uint64) for which in (one, other)
  )
  # 64 words of 64 bits: two independent streams share none.
  assert not set(first.tolist()) & set(second.tolist())
  np.testing.assert_array_equal(first, np.frombuffer(_words(*one), np.uint64))


@pytest.mark.parametrize('start', [1, 4])
def test_a_restart_resumes_where_it_stopped(undisturbed, start):
  _assert_same(undisturbed[start:], _train(5 - start, start_step=start))


def _joined(parts):
  """Batches of several processes, put together."""
  return [
    {name: np.concatenate([p[name] for p in step]) for name in step[0]}
    for step in zip(*parts, strict=True)
  ]


@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_the_same_batches(undisturbed, count):
  parts = [
    _train(process_index=index, process_count=count) for index in range(count)
  ]
  _assert_same(undisturbed, _joined(parts))


@pytest.mark.parametrize('count', [3, 5, 6])
def test_processes_that_divide_no_power_of_two(count):
  """Of 30 images a batch, more than a pass: repeats cross the processes."""
  loading = {'batch_size': 30, 'repeats': 3}
  parts = [
    _train(2, process_index=index, process_count=count, **loading)
    for index in range(count)
  ]
  _assert_same(_train(2, **loading), _joined(parts))


@pytest.mark.parametrize('count', [3, 5, 6])
def test_fewer_images_than_processes(count):
  """Training goes round; evaluation gives some processes padding alone."""
  source, indices = _source(), np.array([7, 4])
  sizes = [Loading(count, index, count) for index in range(count)]
  trained = [
    _take(train_batches(source, indices, GREY, NONE, size, 0), 2)
    for size in sizes
  ]
  labels = _labels(_joined(trained))
  for turn in labels[: 2 * count].reshape(-1, 2):
    assert set(turn.tolist()) == {7, 4}
  parts = [list(eval_batches(source, indices, GREY, size)) for size in sizes]
  (batch,) = _joined(parts)
  np.testing.assert_array_equal(batch['mask'], np.arange(count) < 2)
  np.testing.assert_array_equal(batch['label'][:2], indices)
  assert not batch['image'][2:].any()


def test_chunks_change_nothing(undisturbed, monkeypatch):
  monkeypatch.setattr(pipeline, '_CHUNK_IMAGES', 3)
  _assert_same(undisturbed, _train())
  _assert_same(undisturbed[2:], _train(3, start_step=2))


def test_workers_change_nothing(undisturbed):
  _assert_same(undisturbed, _train(workers=2))


def test_repeats_give_versions_of_one_image():
  batches = _train(3, batch_size=9, repeats=3)
  labels = _labels(batches).reshape(-1, 3)
  assert (labels == labels[:, :1]).all()
  assert len(np.unique(labels[:7])) == 7
  images = batches[0]['image'].reshape(3, 3, -1)
  assert (images[:, 0] != images[:, 1]).any(-1).all()


def test_images_of_one_batch_are_changed_differently():
  source = ArraySource(
    'one', np.full((1, 6, 6), 255, np.uint8), np.zeros(1, np.int32)
  )
  (batch,) = _take(train_batches(source, [0], GREY, AFFINE, Loading(8), 0), 1)
  flat = batch['image'].reshape(8, -1)
  assert len(np.unique(flat, axis=0)) == 8


# --- evaluation -------------------------------------------------------------


@pytest.mark.parametrize(
  'batch_size, count',
  [
    *itertools.product([4, 6, 24, 64], [1, 2]),
    (6, 3),
    (24, 3),
    (5, 5),
    (10, 5),
    (6, 6),
    (30, 6),
  ],
)
def test_every_image_once_whatever_the_batch_size(batch_size, count):
  source = _source()
  indices = np.arange(NUM_IMAGES)[::-1]
  parts = [
    list(eval_batches(source, indices, GREY, Loading(batch_size, i, count)))
    for i in range(count)
  ]
  number = -(-NUM_IMAGES // batch_size)
  seen = []
  for step in zip(*parts, strict=True):
    for batch in step:
      assert batch['image'].shape == (batch_size // count, 6, 6, 1)
      assert batch['mask'].dtype == bool
      padding = ~batch['mask']
      assert not batch['image'][padding].any()
      assert not batch['label'][padding].any()
      seen.extend(batch['label'][batch['mask']])
  assert all(len(part) == number for part in parts)
  np.testing.assert_array_equal(seen, indices)


def test_evaluation_workers_change_nothing():
  split = (_source(), np.arange(NUM_IMAGES), GREY)
  _assert_same(
    list(eval_batches(*split, Loading(8))),
    list(eval_batches(*split, Loading(8, workers=2))),
  )


# --- what goes wrong --------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BrokenSource:
  """Image 3 is cut short, image 4 no image."""

  labels = np.arange(6, dtype=np.int32)

  def __len__(self):
    return 6

  def __getitem__(self, index):
    file = io.BytesIO()
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8) + index
    Image.fromarray(pixels).save(file, 'PNG')
    data = {3: file.getvalue()[:45], 4: b'text'}.get(index, file.getvalue())
    return {'image': data, 'label': index, 'index': index}

  def describe(self, index):
    return f'photos/{index}.png'


@pytest.mark.parametrize('workers', [0, 1])
def test_undecodable_image_is_named(workers):
  loading = Loading(2, workers=workers)
  batches = eval_batches(BrokenSource(), np.arange(6), GREY, loading)
  next(batches)
  with pytest.raises(DataError, match=r'photos/3\.png cannot be') as raised:
    next(batches)
  message = str(raised.value)
  assert '\n' not in message
  assert 'data.skip_undecodable' in message
  assert not re.search(r'0x[0-9a-f]{6}', message)


def test_undecodable_training_image_is_named():
  batches = train_batches(BrokenSource(), [4], GREY, NONE, Loading(2), 0)
  with pytest.raises(DataError, match=r'photos/4\.png cannot be decoded'):
    next(batches)


def test_undecodable_images_are_skipped_if_asked(caplog):
  readers._warn_once.cache_clear()
  loading = Loading(6, skip_undecodable=True)
  with caplog.at_level(logging.WARNING):
    (batch,) = eval_batches(BrokenSource(), np.arange(6), GREY, loading)
  np.testing.assert_array_equal(batch['mask'], [1, 1, 1, 0, 0, 1])
  assert 'photos/3.png' in caplog.text
  assert 'photos/4.png' in caplog.text

  def train(start, number):
    return _take(
      train_batches(
        BrokenSource(), np.arange(6), GREY, AFFINE, loading, 0, start_step=start
      ),
      number,
    )

  caplog.clear()
  batches = train(0, 4)
  assert set(_labels(batches)) == {0, 1, 2, 5}
  _assert_same(batches[2:], train(2, 2))
  # Each broken image is named once, not once a pass.
  assert not caplog.text


def test_nothing_but_broken_images_is_an_error():
  loading = Loading(2, skip_undecodable=True)
  batches = train_batches(BrokenSource(), [3, 4], GREY, NONE, loading, 0)
  with pytest.raises(DataError, match='images in a row cannot be decoded'):
    next(batches)


@pytest.mark.parametrize('broken', [99, 100])
def test_a_hundred_broken_images_in_a_row_are_too_many(monkeypatch, broken):
  monkeypatch.setattr(
    readers, '_permutation', lambda seed, turn, n: np.arange(n)
  )
  loading = Loading(1, skip_undecodable=True)
  indices = [3] * broken + [0] * 9
  batches = train_batches(BrokenSource(), indices, GREY, NONE, loading, 0)
  if broken == 99:
    assert next(batches)['label'] == 0
    return
  with pytest.raises(
    DataError, match=r'^100 images in a row cannot be decoded'
  ):
    next(batches)


@pytest.mark.parametrize(
  'settings, error, message',
  [
    ({'batch_size': 9, 'process_count': 2}, UsageError, 'multiple of the 2'),
    ({'batch_size': 0}, UsageError, 'batch_size=0'),
    ({'process_index': 1}, UsageError, 'process_index=1'),
    ({'repeats': 0}, UsageError, 'repeats=0'),
    ({'prefetch': 0}, UsageError, 'prefetch=0'),
    ({'workers': -1}, UsageError, 'workers=-1'),
    ({'start_step': -1}, UsageError, 'start_step=-1'),
    ({'indices': []}, DataError, 'no image is left'),
    ({'indices': [23]}, DataError, 'exceed the split'),
  ],
)
def test_sizes_that_do_not_fit(settings, error, message):
  own = {'indices': [0, 1], 'repeats': 1, 'start_step': 0}
  arguments = {key: settings.get(key, value) for key, value in own.items()}
  loading = {key: settings[key] for key in settings.keys() - own.keys()}
  with pytest.raises(error, match=message):
    train_batches(
      _source(),
      preprocessing=GREY,
      recipe=NONE,
      loading=Loading(**{'batch_size': 8, **loading}),
      seed=0,
      **arguments,
    )


def test_few_batches_are_in_memory():
  read = []

  class Counting(ArraySource):
    def __getitem__(self, index):
      read.append(index)
      return super().__getitem__(index)

  source = Counting('grey', _source().images, _source().labels)
  loading = Loading(8, prefetch=2)
  batches = train_batches(source, np.arange(23), GREY, NONE, loading, 0)
  for taken in range(1, 6):
    next(batches)
    # What was handed out, two batches ahead, one being started.
    assert len(read) <= 8 * (taken + 3)
  batches.close()


@dataclasses.dataclass(frozen=True)
class LoggingSource:
  """Notes each read as a byte in a pipe with a name, from any process."""

  pipe: str
  labels: np.ndarray = dataclasses.field(
    default_factory=lambda: np.arange(NUM_IMAGES, dtype=np.int32)
  )

  def __len__(self):
    return NUM_IMAGES

  def __getitem__(self, index):
    descriptor = os.open(self.pipe, os.O_WRONLY)
    os.write(descriptor, b'.')
    os.close(descriptor)
    return {'image': np.zeros((6, 6), np.uint8), 'label': 0, 'index': index}

  def describe(self, index):
    return f'image {index}'


def _all_sleep():
  """Whether all threads of this process and its workers sleep, but this one."""
  processes = (os.getpid(), *(c.pid for c in multiprocessing.active_children()))
  for process in processes:
    for thread in pathlib.Path(f'/proc/{process}/task').iterdir():
      # `ID (NAME) STATE ...`; a thread may end in the meantime.
      with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = (thread / 'stat').read_text().rpartition(')')[2].split()[0]
        if state != 'S' and thread.name != str(threading.get_native_id()):
          return False
  return True


def _read_to_the_end(descriptor):
  """How many images are read until all workers wait for the consumer."""
  read, quiet = 0, 0
  while quiet < 100:
    found = 0
    with contextlib.suppress(BlockingIOError):
      found = len(os.read(descriptor, 4096))
    read += found
    quiet = quiet + 1 if _all_sleep() and not found else 0
    time.sleep(0.001)
  return read


@pytest.mark.skipif(sys.platform != 'linux', reason='thread states from /proc')
@pytest.mark.parametrize(
  'workers, prefetch, ahead',
  [
    (2, 2, 2 + 2 * 3),
    pytest.param(2, 5, 5 + 2 * 3, marks=pytest.mark.slow),
    pytest.param(1, 4, 4 + 3, marks=pytest.mark.slow),
    # More workers than batches ahead.
    pytest.param(3, 1, 3 * 4, marks=pytest.mark.slow),
  ],
)
def test_few_batches_are_in_memory_of_workers(
  tmp_path, workers, prefetch, ahead
):
  pipe = tmp_path / 'reads'
  os.mkfifo(pipe)
  descriptor = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
  source = LoggingSource(str(pipe))
  loading = Loading(8, workers=workers, prefetch=prefetch)
  batches = train_batches(source, np.arange(23), GREY, NONE, loading, 0)
  read = 0
  for taken in range(1, 6):
    next(batches)
    read += _read_to_the_end(descriptor)
    # A batch is one chunk here.
    assert 8 * (taken + prefetch) <= read <= 8 * (taken + ahead)
  batches.close()
  os.close(descriptor)


def test_close_stops_the_threads():
  before = threading.active_count()
  for _ in range(3):
    batches = train_batches(_source(), [0], GREY, NONE, Loading(4), 0)
    next(batches)
    batches.close()
  for thread in threading.enumerate():
    if thread.name.startswith('grain-prefetch'):
      thread.join(10)
  assert threading.active_count() <= before
