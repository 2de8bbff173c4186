"""A whole run on object storage, killed and resumed: no record is lost.

The stand-in takes mode `a` for `w` and has no folders, as gcsfs on `gs://`. A
program that appends to `metrics.jsonl` passes every test on a disk, and here
keeps but the last line.
"""

import json
import re
import time

import numpy as np
import pytest
from etils import epath

import lambda_vit_jax as lv
from lambda_vit_jax import main
from lambda_vit_jax.cli import workdir_lock
from lambda_vit_jax.cli.workdir_lock import WorkdirLock
from lambda_vit_jax.core import files, growing_file
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.training.metrics import MetricsWriter, read_metrics
from tests.support import event_files, object_store
from tests.support.stage_runs import arguments


@pytest.fixture
def store(monkeypatch):
  with object_store.serve(monkeypatch) as store:
    yield store


class KilledError(BaseException):
  """Ends the program as nothing that it catches does."""


@pytest.fixture
def kill(monkeypatch, store):
  """Ends a command at a line of metrics; what was in the store then is kept.

  What the program does while it ends is not: a killed one does not do it.
  """

  def at(bucket, stage, step):
    write = MetricsWriter.write

    def write_and_die(self, at, now, **values):
      write(self, at, now, **values)
      if (at, now) == (stage, step):
        monkeypatch.setattr(MetricsWriter, 'write', write)
        store.copy(bucket, f'{bucket}-later')
        raise KilledError

    monkeypatch.setattr(MetricsWriter, 'write', write_and_die)

  return at


@pytest.mark.slow
def test_a_run_that_was_killed_has_every_record_at_the_end(
  store, kill, monkeypatch
):
  monkeypatch.setattr(workdir_lock, '_SETTLE_SECONDS', 0)
  words = ('--config.metrics.tensorboard=True', '--quiet')
  bucket = 'first'
  for stage, step in (('pretrain', 5), ('dilute', 6)):
    kill(bucket, stage, step)
    with pytest.raises(KilledError):
      main.main(arguments('run', f'gs://{bucket}/run', *words))
    bucket = f'{bucket}-later'
    # Its owner, a killed process, would not be alive.
    store.remove(f'{bucket}/run/lock.json')
  assert main.main(arguments('run', f'gs://{bucket}/run', *words)) == 0
  workdir = epath.Path(f'gs://{bucket}/run')
  rows = read_metrics(workdir / 'metrics.jsonl')
  steps = [(row['stage'], row['step']) for row in rows]
  assert steps == [
    *(('pretrain', step) for step in range(1, 7)),
    *(('dilute', step) for step in range(1, 8)),
  ]
  for stage, count in (('pretrain', 6), ('dilute', 7)):
    shown = event_files.shown(workdir / 'tensorboard' / stage)
    assert {step for step, tag in shown if tag == 'loss'} == {
      *range(1, count + 1)
    }
  model = lv.load_pretrained(workdir / 'export')
  assert model.removed_layers
  scores = json.loads((workdir / 'evaluation.json').read_text())
  np.testing.assert_allclose(
    scores['exported']['loss'], scores['pruned']['loss'], rtol=1e-5
  )
  page = (workdir / 'report.html').read_text()
  assert re.search('dilute', page)
  # Nothing temporary is left.
  names = [name.rpartition('/')[2] for name in store.names(f'{bucket}/')]
  assert not [name for name in names if '.part' in name or name[0] == '.']
  assert 'lock.json' not in names


def test_a_growing_file_is_whole_after_save(store, monkeypatch):
  monkeypatch.setattr(growing_file, '_EVERY_SECONDS', 1000)
  path = 'gs://bucket/run/lines'
  file = growing_file.GrowingFile(path)
  file.write(b'one\n')
  file.flush()
  file.write(b'two\n')
  # Too soon for a second version.
  file.flush()
  assert store.objects['bucket/run/lines'][0] == b'one\n'
  file.save()
  again = growing_file.GrowingFile(path)
  again.write(b'three\n')
  again.close()
  assert store.objects['bucket/run/lines'][0] == b'one\ntwo\nthree\n'


def test_every_line_is_there_before_a_checkpoint(store, monkeypatch):
  monkeypatch.setattr(growing_file, '_EVERY_SECONDS', 1000)
  for begin in (0, 3):
    writer = MetricsWriter('gs://bucket/run')
    writer.rewind('dilute', begin)
    for step in range(begin + 1, begin + 6):
      writer.write('dilute', step, loss=1.0)
      if step == 3:
        writer.save()
    # Killed here: it never closes.
    del writer
  rows = read_metrics('gs://bucket/run/metrics.jsonl')
  assert [row['step'] for row in rows][:4] == [1, 2, 3, 4]


def test_text_is_replaced_without_a_second_name(store):
  files.write_text('gs://bucket/a', 'old')
  seen = []
  store.before = lambda operation, name: seen.append((operation, name))
  files.write_text('gs://bucket/a', 'new')
  store.before = lambda operation, name: None
  assert seen == [('write', 'bucket/a')]


@pytest.mark.parametrize(
  'last', ['export/model.safetensors', 'export/model.json', 'part/config.json']
)
def test_an_export_cut_short_is_none_and_can_be_repeated(store, last):
  """By a rename, `model.json` is there before some of the weights."""
  small_model = lv.create_model('vit_nano_patch2_8', num_classes=3)
  folder = epath.Path('gs://bucket/export')
  formats = ('safetensors',)
  lv.export(small_model, folder, formats=formats)

  def cut(operation, name):
    if operation == 'write' and name.endswith(last):
      raise KilledError

  def is_whole():
    return (folder / 'model.json').exists()

  store.before = cut
  with pytest.raises(KilledError):
    lv.export(small_model, folder, formats=formats)
  store.before = lambda operation, name: None
  # Before the last copy, the one before is still there.
  assert is_whole() == ('part' in last)
  lv.export(small_model, folder, formats=formats)
  assert lv.load_pretrained(folder).num_parameters == (
    small_model.num_parameters
  )
  assert not [name for name in store.objects if 'unfinished' in name]


class TestLock:
  @pytest.fixture(autouse=True)
  def at_once(self, monkeypatch):
    monkeypatch.setattr(workdir_lock, '_SETTLE_SECONDS', 0)
    monkeypatch.setattr(workdir_lock, '_PATIENCE_SECONDS', 0)

  def owner(self, age):
    return {
      'host': 'node7',
      'machine': 'node7 boot',
      'pid': 1,
      'started': '1',
      'since': 'now',
      'token': 'other',
      'beat': time.time() - age,
    }

  def test_a_living_job_keeps_it(self, store):
    path = epath.Path('gs://bucket/run')
    (path / 'lock.json').write_text(json.dumps(self.owner(60)))
    with pytest.raises(LambdaVitError, match='last heard of 60 s ago'):
      WorkdirLock(path).acquire()

  def test_a_job_that_is_gone_leaves_its_place(self, store):
    path = epath.Path('gs://bucket/run')
    (path / 'lock.json').write_text(json.dumps(self.owner(600)))
    lock = WorkdirLock(path)
    lock.acquire()
    lock.release()
    assert not store.objects

  def test_of_two_that_write_at_once_the_later_name_stays(self, store):
    """Both found nothing; each sees, a moment later, whose name is there."""
    path = epath.Path('gs://bucket/run')

    def overtake(operation, name):
      store.after = lambda operation, name: None
      store.put(name, json.dumps(self.owner(0)).encode())

    lock = WorkdirLock(path)
    store.after = overtake
    with pytest.raises(LambdaVitError, match='another job uses it'):
      lock.acquire()
    lock.release()
    assert b'other' in store.objects['bucket/run/lock.json'][0]
