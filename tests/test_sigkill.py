"""Real processes, killed for real, end with the same bits. Slow."""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from lambda_vit_jax import load
from tests.test_stages import ROOT, arguments

pytestmark = pytest.mark.slow

# Kills its own process at a chosen line of metrics: an exact moment, where a
# timer would hit another one on every machine.
_KILLER = """
import os, signal, sys
from lambda_vit_jax import main, metrics
stage, step = sys.argv[1], int(sys.argv[2])
write = metrics.MetricsWriter.write
def write_and_die(self, at, now, **values):
  write(self, at, now, **values)
  if (at, now) == (stage, step):
    os.kill(os.getpid(), signal.SIG{signal})
metrics.MetricsWriter.write = write_and_die
sys.exit(main.main(sys.argv[3:]))
"""


def environment(cache):
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


def run_to_the_end(workdir, cache):
  return subprocess.run(
    [sys.executable, '-m', 'lambda_vit_jax', *arguments('dilute', workdir)],
    env=environment(cache),
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def prepare(workdir, cache):
  for stage in ('pretrain', 'select'):
    subprocess.run(
      [sys.executable, '-m', 'lambda_vit_jax', *arguments(stage, workdir)],
      env=environment(cache),
      cwd=ROOT,
      check=True,
    )


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, cache):
  """A workdir in which everything before dilution is done."""
  workdir = tmp_path_factory.mktemp('prepared') / 'run'
  prepare(workdir, cache)
  return workdir


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, prepared, cache):
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  shutil.copytree(prepared, workdir)
  assert run_to_the_end(workdir, cache).returncode == 0
  return load.load_stage(workdir, 'dilute').params


def assert_same_bits(tree, other):
  import jax

  jax.tree.map(np.testing.assert_array_equal, tree, other)


@pytest.mark.parametrize(
  'name, code', [('KILL', -signal.SIGKILL), ('TERM', 143)]
)
def test_interrupted_in_dilution_ends_with_the_same_bits(
  tmp_path, cache, prepared, undisturbed, name, code
):
  workdir = tmp_path / 'run'
  shutil.copytree(prepared, workdir)
  killed = subprocess.run(
    [
      sys.executable,
      '-c',
      _KILLER.format(signal=name),
      'dilute',
      '6',
      *arguments('dilute', workdir),
    ],
    env=environment(cache),
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert killed.returncode == code, killed.stderr
  if name != 'KILL':
    assert 'saved, run the same command again' in killed.stderr
  # Step 6 lies behind the switch to the pruned program; a save that the kill
  # cut short is not used, the one before it is.
  done = run_to_the_end(workdir, cache)
  assert done.returncode == 0, done.stderr
  assert 'continuing at step' in done.stderr
  assert_same_bits(load.load_stage(workdir, 'dilute').params, undisturbed)
