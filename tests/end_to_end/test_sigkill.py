"""Real processes, killed for real at drawn moments, end with the same bits.

Slow. A moment is a place in the run, not a time: a timer would hit another
one on every machine.
"""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.training.metrics import read_metrics
from tests.support import xla_flags
from tests.support.stage_runs import ROOT, arguments
from tests.support.trees import assert_same

pytestmark = pytest.mark.slow

# Kills its own process when a line of metrics is written, or while a step is
# being saved: as soon as this many files of that checkpoint exist.
_KILLER = """
import os, pathlib, signal, sys, threading, time
from lambda_vit_jax.checkpoints import orbax_store as checkpoint
from lambda_vit_jax import main
from lambda_vit_jax.training import metrics
signum, stage, step, files = getattr(signal, sys.argv[1]), *sys.argv[2:5]
write, save = metrics.MetricsWriter.write, checkpoint.Checkpointer.save
def write_and_die(self, at, now, **values):
  write(self, at, now, **values)
  if files == 'metrics' and (at, now) == (stage, int(step)):
    os.kill(os.getpid(), signum)
def save_and_die(self, now, *rest):
  if files != 'metrics' and (self.directory.name, now) == (stage, int(step)):
    folder = pathlib.Path(self.directory)
    def watch():
      # Until the save is complete: its folder then has its final name.
      while not (folder / step).exists():
        parts = [p for p in folder.glob(step + '*') if p.name != step]
        if sum(len(list(p.rglob('*'))) for p in parts) >= int(files):
          break
      os.kill(os.getpid(), signum)
    threading.Thread(target=watch, daemon=True).start()
  save(self, now, *rest)
metrics.MetricsWriter.write = write_and_die
checkpoint.Checkpointer.save = save_and_die
sys.exit(main.main(sys.argv[5:]))
"""


def moments(count):
  """Draws (stage, step, `metrics` or how many files of its checkpoint)."""
  rng = np.random.default_rng(2024)
  steps = {'pretrain': 6, 'dilute': 7}
  # Steps at which OVERRIDES has a checkpoint; the switch is at 4.
  saved = {'pretrain': (2, 4, 6), 'dilute': (2, 4, 6, 7)}
  found = []
  for _ in range(count):
    stage = str(rng.choice(list(steps)))
    if rng.random() < 0.5:
      step, place = rng.integers(1, steps[stage] + 1), 'metrics'
    else:
      step, place = rng.choice(saved[stage]), rng.integers(1, 25)
    found.append((stage, str(step), str(place)))
  return found


def environment(cache):
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': xla_flags.flags(),
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


def call(argv, cache):
  return subprocess.run(
    [sys.executable, *argv],
    env=environment(cache),
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, cache):
  """Both training stages, and the choice between them."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  for stage in ('pretrain', 'select', 'dilute'):
    finish(stage, workdir, cache)
  return workdir


@pytest.fixture
def before(tmp_path, undisturbed):
  """The undisturbed run as it was before one of its training stages."""

  def of(stage):
    workdir = tmp_path / 'run'
    if stage == 'dilute':
      shutil.copytree(undisturbed, workdir)
      shutil.rmtree(workdir / 'checkpoints' / 'dilute')
    return workdir

  return of


def assert_same_end(workdir, undisturbed, stage):
  assert_same(
    load.load_stage(workdir, stage).params,
    load.load_stage(undisturbed, stage).params,
  )
  mine, theirs = (
    [
      (row['step'], row['loss'])
      for row in read_metrics(path / 'metrics.jsonl')
      if row['stage'] == stage
    ]
    for path in (workdir, undisturbed)
  )
  assert mine == theirs


def finish(stage, workdir, cache):
  done = call(['-m', 'lambda_vit_jax', *arguments(stage, workdir)], cache)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('moment', moments(10), ids='-'.join)
def test_killed_at_any_moment_ends_with_the_same_bits(
  before, cache, undisturbed, moment
):
  stage = moment[0]
  workdir = before(stage)
  argv = arguments(stage, workdir)
  killed = call(['-c', _KILLER, 'SIGKILL', *moment, *argv], cache)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  finish(stage, workdir, cache)
  assert_same_end(workdir, undisturbed, stage)


@pytest.mark.parametrize('stage', ['select', 'export'])
def test_a_signal_ends_a_stage_that_has_nothing_to_save(
  tmp_path, cache, undisturbed, stage
):
  workdir = tmp_path / 'run'
  shutil.copytree(undisturbed, workdir)
  (workdir / 'selection.json').unlink()
  if stage == 'export':
    shutil.copy(undisturbed / 'selection.json', workdir)
  command = subprocess.Popen(
    [sys.executable, '-m', 'lambda_vit_jax', *arguments(stage, workdir)],
    env=environment(cache),
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
  )
  while f'{stage}: starting' not in command.stderr.readline():
    assert command.poll() is None
  command.terminate()
  _, said = command.communicate(timeout=60)
  assert command.returncode == 143, said
  (line,) = [x for x in said.splitlines() if x.startswith('lambda-vit:')]
  assert 'interrupted by SIGTERM' in line
  # The lock of a process that is gone keeps nobody out.
  finish(stage, workdir, cache)


@pytest.mark.parametrize('moment', [('dilute', '6', 'metrics'), *moments(2)])
def test_sigterm_saves_and_ends_with_the_same_bits(
  before, cache, undisturbed, moment
):
  stage = moment[0]
  workdir = before(stage)
  argv = arguments(stage, workdir)
  stopped = call(['-c', _KILLER, 'SIGTERM', *moment, *argv], cache)
  assert stopped.returncode == 143, stopped.stderr
  assert 'saved, run the same command again' in stopped.stderr
  finish(stage, workdir, cache)
  assert_same_end(workdir, undisturbed, stage)
