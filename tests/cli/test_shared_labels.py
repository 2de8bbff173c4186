"""The labels of a split: each process of a job reads its part, once."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from lambda_vit_jax.cli import shared_labels
from lambda_vit_jax.data.sources import tfds
from lambda_vit_jax.runtime import processes
from tests.support.processes import run_processes


class Records(list):
  """Counts how often a record is read."""

  def __init__(self, labels):
    super().__init__({'image': b'', 'label': int(label)} for label in labels)
    self.read = []

  def __getitem__(self, index):
    self.read.append(index)
    return super().__getitem__(index)


def split_of(labels, path):
  records = Records(labels)
  return tfds.TfdsSource('x', records, 'image', 'label', str(path)), records


@pytest.mark.parametrize('number', [2, 9, 10])
def test_each_process_reads_its_share_and_knows_them_all(
  monkeypatch, tmp_path, number
):
  labels = np.arange(number)[::-1]
  each = -(-number // 3)
  padded = np.pad(labels, (0, 3 * each - number)).reshape(3, each)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(processes, 'gather', lambda value: [value] * 3)
  seen = []
  for index in range(3):

    def allgather(part, index=index):
      np.testing.assert_array_equal(part, padded[index])
      return padded.astype(part.dtype)

    monkeypatch.setattr(jax, 'process_index', lambda index=index: index)
    monkeypatch.setattr(multihost_utils, 'process_allgather', allgather)
    split, records = split_of(labels, tmp_path / f'{index}.npy')
    shared_labels.share(split)
    np.testing.assert_array_equal(split.labels, labels)
    assert split.labels.dtype == np.int32
    assert len(records.read) <= each
    seen += records.read
  assert seen == list(range(number))
  # The cache of a host has them all: the next time nothing is read or sent.
  monkeypatch.setattr(multihost_utils, 'process_allgather', pytest.fail)
  split, records = split_of(labels, tmp_path / '2.npy')
  shared_labels.share(split)
  np.testing.assert_array_equal(split.labels, labels)
  assert not records.read


def test_all_take_part_if_one_host_has_no_cache(monkeypatch, tmp_path):
  """The one would wait for the others for ever."""
  split, _ = split_of([4, 5], tmp_path / 'x.npy')
  assert split.labels.tolist() == [4, 5]
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(processes, 'gather', lambda value: [value, False])
  taken = []

  def allgather(part):
    taken.append(part)
    return np.asarray([[4], [5]], np.int32)

  monkeypatch.setattr(multihost_utils, 'process_allgather', allgather)
  shared_labels.share(split)
  assert len(taken) == 1
  assert split.labels.tolist() == [4, 5]


def test_one_process_reads_when_it_is_asked(tmp_path):
  split, records = split_of([3, 1], tmp_path / 'x.npy')
  shared_labels.share(split)
  assert not records.read
  assert split.labels.tolist() == [3, 1]
  assert records.read == [0, 1]


_PROCESS = """
import sys
import jax
address, index = sys.argv[1], int(sys.argv[2])
jax.distributed.initialize(address, 2, index)
import pathlib, tempfile
from lambda_vit_jax.cli import shared_labels
from tests.cli.test_shared_labels import split_of
with tempfile.TemporaryDirectory() as folder:
  split, records = split_of(range(7), pathlib.Path(folder) / 'x.npy')
  shared_labels.share(split)
  read, found = [*records.read], split.labels.tolist()
print(f'{read};{found}'.replace(' ', ''))
"""


@pytest.mark.slow
def test_two_processes_share_them():
  first, second = run_processes(_PROCESS)
  assert first == '[0,1,2,3];[0,1,2,3,4,5,6]'
  assert second == '[4,5,6];[0,1,2,3,4,5,6]'
