"""Programs of other runtimes beside each other: what is measured of them."""

import subprocess
import sys

import numpy as np
import pytest

from lambda_vit_jax.evaluation import programs
from lambda_vit_jax.evaluation.programs import Candidate, Samples
from lambda_vit_jax.evaluation.timing import Limits
from lambda_vit_jax.runtime import resident
from lambda_vit_jax.runtime.progress import Reporter

CLASSES = 3


def pretend(logits, calls, name):
  """A program with these logits for the first images, which notes its calls."""

  def run(images):
    calls.append(name)
    return logits[: len(images)]

  return lambda: run


@pytest.fixture(scope='module')
def compared():
  images = np.zeros((4, 2, 2, 1), np.float32)
  dense = np.eye(4, CLASSES, dtype=np.float32)
  off = dense + np.float32(0.25) * (np.arange(4)[:, None] == 1)
  # Two batches of two; the last image is padding.
  labels = np.asarray([[0, 1], [0, 0]])
  masks = np.asarray([[True, True], [True, False]])
  batches = [
    {'image': images[:2], 'label': label, 'mask': mask}
    for label, mask in zip(labels, masks, strict=True)
  ]
  calls = []
  found = programs.compare_programs(
    [
      Candidate('dense', 'float32', pretend(dense, calls, 'dense')),
      Candidate('pruned', 'float32', pretend(off, calls, 'pruned')),
      Candidate('dense', 'int8', pretend(dense * np.nan, calls, 'int8')),
    ],
    Samples(images, {'dense': dense, 'pruned': dense}, images, batches),
    Limits(rounds=2),
    Reporter(quiet=True),
    'a test',
  )
  return found, calls


def test_the_largest_difference_is_that_of_the_worst_logit(compared):
  rows = compared[0]['float32']
  assert rows['dense']['largest_difference'] == 0
  assert rows['pruned']['largest_difference'] == 0.25
  # NaN, which JSON does not hold.
  assert compared[0]['int8']['dense']['largest_difference'] is None


def test_the_accuracy_leaves_out_padding(compared):
  row = compared[0]['float32']['dense']
  assert (row['num_images'], row['top1']) == (3, 1.0)


def test_programs_take_turns(compared):
  """A program timed alone would be called twice in a row at the end."""
  distinct = [
    name
    for name, before in zip(compared[1], ['', *compared[1]], strict=False)
    if name != before
  ]
  assert distinct[-6:] == ['dense', 'pruned', 'int8'] * 2


def test_speed_is_over_dense_of_the_same_dtype(compared):
  found = compared[0]
  for rows in found.values():
    assert rows['dense']['speedup'] == 1
    for row in rows.values():
      rates = row['images_per_second']
      assert 0 < rates['min'] <= rates['median'] <= rates['max']


def test_speed_of_known_seconds():
  row = programs.speed(8, [2.0, 4.0, 4.0], [6.0, 8.0, 8.0])
  assert row['images_per_second'] == {'min': 2, 'median': 2, 'max': 4}
  assert row['speedup'] == 2
  low, high = row['speedup_interval']
  assert low <= 2 <= high


def test_memory_that_work_adds_is_seen_even_if_it_is_given_back():
  """Resident memory after the work alone would miss what was freed.

  In a process of its own: this one may give back memory meanwhile, or take
  the bytes from what other tests freed.
  """
  code = """
import mmap
from lambda_vit_jax.runtime import resident

SIZE, PAGE = 1 << 26, 4096

def work():
  with mmap.mmap(-1, SIZE) as memory:
    for start in range(0, SIZE, PAGE):
      memory[start] = 1

print(*(resident.peak_growth(w)[1] for w in (work, lambda: None)))
"""
  found = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  ).stdout.split()
  if found == ['None', 'None']:
    pytest.skip('this system does not report peaks of memory')
  # 64 MiB, and what Python and the kernel's counters add: less than 8 MiB.
  grown, idle = map(int, found)
  assert abs(grown - (1 << 26)) < 1 << 23
  assert idle < 1 << 23


def test_a_system_without_proc_reports_no_memory(monkeypatch, tmp_path):
  monkeypatch.setattr(resident, '_PROCESS', tmp_path / 'none')
  assert resident.peak_growth(lambda: 7) == (7, None)
