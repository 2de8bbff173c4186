"""Of two jobs in one workdir one is refused, unless the other is gone."""

import json
import os
import threading
import time

import pytest

from lambda_vit_jax import main
from lambda_vit_jax.cli import workdir_lock
from lambda_vit_jax.cli.workdir_lock import STALE_SECONDS, WorkdirLock
from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.runtime import interrupts
from tests.support.stage_runs import arguments


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
  monkeypatch.setattr(workdir_lock, '_PATIENCE_SECONDS', 0)
  monkeypatch.setattr(workdir_lock, '_SETTLE_SECONDS', 0)


def make(workdir):
  return WorkdirLock(files.absolute(workdir))


def owner(age=0, **changes):
  """A living job: the parent of this process; its heartbeat is so old."""
  pid = os.getppid()
  return {
    'host': 'node7',
    'machine': workdir_lock._machine(),
    'pid': pid,
    'started': workdir_lock._started(pid),
    'since': '2026-01-02 03:04:05+00:00',
    'token': 'other',
    'beat': time.time() - age,
    **changes,
  }


def write(workdir, text):
  (workdir / 'lock.json').write_text(text)


ELSEWHERE = {'machine': 'node7 boot'}

ALIVE = {
  'on this machine': {},
  'on this machine, without a heartbeat': {'age': 10**9},
  'elsewhere, heard of lately': ELSEWHERE,
  'elsewhere, late': ELSEWHERE | {'age': STALE_SECONDS - 60},
}

GONE = {
  'no such process': {'pid': 2**22 + 1},
  'another process of that number': {'started': '1'},
  'elsewhere, not heard of': ELSEWHERE | {'age': STALE_SECONDS + 1},
}


@pytest.mark.parametrize('changes', ALIVE.values(), ids=ALIVE)
def test_the_second_job_is_told_of_the_first(tmp_path, changes):
  first = json.dumps(owner(**changes))
  write(tmp_path, first)
  lock = make(tmp_path)
  with pytest.raises(LambdaVitError) as info:
    lock.acquire()
  for part in ('another job uses it', 'node7', str(os.getppid()), '03:04:05'):
    assert part in str(info.value)
  assert '\n' not in str(info.value)
  lock.release()
  assert (tmp_path / 'lock.json').read_text() == first


@pytest.mark.parametrize('changes', GONE.values(), ids=GONE)
def test_a_job_that_is_gone_leaves_its_place(tmp_path, changes):
  write(tmp_path, json.dumps(owner(**changes)))
  lock = make(tmp_path)
  lock.acquire()
  found = json.loads((tmp_path / 'lock.json').read_text())
  assert found['pid'] == os.getpid()
  lock.release()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('lives', [True, False])
def test_a_heartbeat_of_the_future_counts_if_it_changes(
  tmp_path, monkeypatch, lives
):
  """By the clocks alone, its owner would live until then."""
  monkeypatch.setattr(workdir_lock, '_WATCH_SECONDS', 0.1)
  monkeypatch.setattr(workdir_lock, '_RETRY_SECONDS', 0.01)
  first = owner(age=-(10**6), **ELSEWHERE)
  write(tmp_path, json.dumps(first))
  beats = iter(range(1, 100))

  def sleep(seconds):
    # No job writes half a line, as another thread might here.
    if lives:
      write(tmp_path, json.dumps(first | {'beat': first['beat'] + next(beats)}))

  monkeypatch.setattr(workdir_lock.time, 'sleep', sleep)
  lock = make(tmp_path)
  if lives:
    with pytest.raises(LambdaVitError, match='another job uses it'):
      lock.acquire()
  else:
    lock.acquire()
    lock.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'text', ['', '{"host": "node7', '[]', 'null', '{"pid": "7"}', '[' * 20]
)
def test_what_no_job_writes_binds_nobody(tmp_path, text):
  write(tmp_path, text)
  lock = make(tmp_path)
  lock.acquire()
  lock.release()


def test_of_many_at_once_one_gets_it(tmp_path):
  """A check before the write, without `flock`, lets several in."""
  locks = [make(tmp_path) for _ in range(8)]
  start = threading.Barrier(len(locks))
  refused = []

  def acquire(lock):
    start.wait(timeout=30)
    try:
      lock.acquire()
    except LambdaVitError as error:
      refused.append(error)

  threads = [threading.Thread(target=acquire, args=(x,)) for x in locks]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(timeout=60)
  assert len(refused) == len(locks) - 1
  for lock in locks:
    lock.release()
  assert not list(tmp_path.iterdir())


def test_an_owner_that_was_replaced_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lock, '_BEAT_SECONDS', 0.01)
  failed = threading.Event()
  errors = []
  monkeypatch.setattr(
    interrupts, 'fail', lambda error: (errors.append(error), failed.set())
  )
  lock = make(tmp_path)
  lock.acquire()
  first = json.loads((tmp_path / 'lock.json').read_text())
  end = time.monotonic() + 10
  while json.loads((tmp_path / 'lock.json').read_text() or '{}') == first:
    assert time.monotonic() < end, 'no heartbeat'
  with workdir_lock._opened(lock._path) as file:
    file.write(owner())
  assert failed.wait(timeout=10)
  assert 'has taken it over (node7' in str(errors[0])
  lock.release()
  assert json.loads((tmp_path / 'lock.json').read_text())['token'] == 'other'


def test_beside_a_job_only_a_report_is_made(tmp_path, capsys):
  write(tmp_path, json.dumps(owner()))
  config = tmp_path / 'config.json'
  assert main.main(arguments('report', tmp_path)) == 0
  before = config.read_text()
  capsys.readouterr()
  assert main.main(arguments('select', tmp_path, '--config.seed=7')) == 1
  (line,) = capsys.readouterr().err.splitlines()
  assert 'another job uses it (node7' in line
  # Values that bind nothing yet would replace those of the running job.
  assert main.main(arguments('report', tmp_path, '--config.seed=7')) == 0
  assert config.read_text() == before
  assert (tmp_path / 'report.html').exists()


def test_a_command_leaves_no_lock(tmp_path, capsys):
  assert main.main(arguments('select', tmp_path)) == 1
  assert 'pretrain' in capsys.readouterr().err
  assert not (tmp_path / 'lock.json').exists()
