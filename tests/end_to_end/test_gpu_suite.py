"""`benchmarks/gpu.py`: what it measures, at toy size, and how it resumes."""

import functools
import json

import pytest

from benchmarks import gpu


@pytest.fixture
def clock():
  """A clock that rows move on."""

  class Clock:
    now = 0.0

    def __call__(self):
      return self.now

  return Clock()


@pytest.fixture
def three(monkeypatch, clock):
  """Three rows of 100 s each, the second of which fails; and who ran."""
  ran = []

  def run(name):
    ran.append(name)
    clock.now += 100
    if name == 'b':
      raise RuntimeError('out of\nmemory')
    return {'value': 1}

  table = {name: functools.partial(run, name) for name in 'abc'}
  monkeypatch.setattr(gpu, 'rows', lambda size: table)
  return ran


def test_no_row_begins_that_may_not_end_in_time(three, clock):
  results = {}
  saved = []

  def save(found):
    saved.append(json.dumps(found))

  # The third would begin within a minute of the end.
  left = gpu.measure(gpu.TOY, results, 250, save=save, clock=clock)
  assert left == ['c']
  assert three == ['a', 'b']
  # Each row is saved when it is there.
  assert [len(json.loads(text)['rows']) for text in saved] == [1, 2]
  assert results['rows']['a'] == {'value': 1, 'took_seconds': 100}
  assert results['rows']['b']['error'] == 'RuntimeError: out of memory'


def test_the_same_command_measures_what_is_left(three, clock):
  results = {}
  gpu.measure(gpu.TOY, results, 250, clock=clock)
  del three[:]
  assert gpu.measure(gpu.TOY, results, 250, clock=clock) == []
  assert three == ['c']


def test_rows_can_be_chosen(three, clock):
  assert gpu.measure(gpu.TOY, {}, 250, only='c', clock=clock) == []
  assert three == ['c']


def test_the_rows_are_those_that_its_head_lists():
  names = list(gpu.rows(gpu.FULL))
  for kind in ('infer', 'train', 'attention', 'nose', 'pipeline'):
    assert kind in {name.split()[0] for name in names}
  infer = {name for name in names if name.startswith('infer')}
  assert len(infer) == len(gpu.FULL.variants) * len(gpu.FULL.batches)
  assert names[:2] == [
    'infer deit_base_patch16_224 256',
    'train deit_base_patch16_224 128',
  ]


@pytest.mark.slow
def test_the_whole_suite_at_toy_size():
  """Every row has its figures, so that nothing fails first on a GPU."""
  results = {}
  assert gpu.measure(gpu.TOY, results, 1e6) == []
  rows = results['rows']
  json.dumps(results)
  assert not [name for name, row in rows.items() if 'error' in row], rows
  (infer,) = [row for name, row in rows.items() if name.startswith('infer')]
  for name in ('dense', 'without_1', 'without_2', 'merged', 'plan'):
    assert infer[name]['fraction_of_matmul'] > 0
    assert infer[name]['images_per_second']['median'] > 0
  assert infer['dense']['speedup'] == 1
  (train,) = [row for name, row in rows.items() if name.startswith('train')]
  assert {'dense', 'without_1', 'without_2'} <= set(train)
  attention = rows['attention 2']
  assert {'explicit', 'explicit_gradients'} <= set(attention)
  # What a CPU has not is named, and does not cost the row.
  assert 'cudnn' in attention['not_run']
  assert rows['nose vit_nano_patch2_8']['layers'] == 1
  assert rows['pipeline']['images_per_cpu_second'] > 0
