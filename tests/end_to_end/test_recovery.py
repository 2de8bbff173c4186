"""Which checkpoints training keeps, resumes from, and measures."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import CheckpointError, StoppedError, UsageError
from lambda_vit_jax.models.build import init_params
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.runtime.progress import Reporter
from lambda_vit_jax.training import loop, persistence, tracing
from lambda_vit_jax.training.metrics import MetricsWriter, read_metrics
from tests.support import xla_flags
from tests.support.stage_runs import ROOT, arguments
from tests.support.training_jobs import (
  make_batches,
  make_job,
  make_mesh,
  shared_programs,
)
from tests.support.trees import assert_same


@pytest.fixture(scope='module', autouse=True)
def programs():
  with shared_programs():
    yield


@pytest.fixture(scope='module')
def mesh():
  return make_mesh()


@pytest.fixture(scope='module')
def job(tiny_variant):
  return make_job(tiny_variant)


def run(job, workdir, mesh, keep=9, **changes):
  job = dataclasses.replace(job, **changes)
  checkpointer = orbax_store.Checkpointer(
    workdir / 'checkpoints' / job.stage, keep=keep, keep_best=True
  )
  lines = []
  reporter = Reporter(quiet=True)
  reporter.say = lines.append
  try:
    params = loop.fit(
      job,
      lambda: init_params(job.phases[0].module, 0),
      checkpointer,
      mesh,
      MetricsWriter(workdir),
      reporter,
    )
  finally:
    checkpointer.close()
  return params, lines


def steps_in(workdir):
  folder = workdir / 'checkpoints' / 'dilute'
  return sorted(int(path.name) for path in folder.iterdir())


def scorer(*accuracies):
  """Returns these in turn, and records the calls."""
  asked = []

  def evaluate(module, params, factor):
    del params
    asked.append((module.attention_modes, factor))
    accuracy = accuracies[len(asked) - 1]
    return {'loss': 1.0 - accuracy, 'accuracy': accuracy}

  evaluate.asked = asked
  return evaluate


@pytest.fixture(scope='module')
def finished(job, mesh, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('finished')
  return workdir, run(job, workdir, mesh)[0]


class TestBest:
  """The latest by count, and the best; none is best while λ > 0."""

  @pytest.mark.slow
  def test_the_best_at_zero_stays_with_the_latest(self, job, mesh, tmp_path):
    # λ is 0 from step 3 on. Step 1, diluted, scores highest of all.
    evaluate = scorer(0.9, 0.8, 0.6, 0.4, 0.5)
    run(job, tmp_path, mesh, keep=1, evaluate=evaluate, eval_every=1)
    assert steps_in(tmp_path) == [3, 5]
    reader = orbax_store.Checkpointer(
      tmp_path / 'checkpoints' / 'dilute', reader=True
    )
    assert (reader.best_step(), reader.latest_step()) == (3, 5)
    rows = read_metrics(tmp_path / 'metrics.jsonl')
    assert [row['holdout_accuracy'] for row in rows] == [
      0.9,
      0.8,
      0.6,
      0.4,
      0.5,
    ]

  def test_evaluation_sees_the_network_of_the_moment(self, job, mesh, tmp_path):
    evaluate = scorer(0.1, 0.2, 0.3, 0.4)
    run(job, tmp_path, mesh, evaluate=evaluate, eval_every=2)
    (modes, factor), (pruned, none), _, last = evaluate.asked
    assert modes[0] == 'diluted'
    # Step 2 of 3: λ = 1/3 in the diluted blocks, 1 in the other.
    np.testing.assert_allclose(factor, [1 / 3, 1, 1 / 3], rtol=1e-6)
    assert pruned[0] == 'identity'
    assert none is None
    assert last[0] == pruned
    rows = read_metrics(tmp_path / 'metrics.jsonl')
    with_scores = [row['step'] for row in rows if 'holdout_loss' in row]
    # Every second step, and the last of each phase.
    assert with_scores == [2, 3, 4, 5]

  def test_evaluating_changes_no_bit(self, job, mesh, tmp_path, finished):
    evaluate = scorer(*[0.5] * 5)
    params, _ = run(job, tmp_path, mesh, evaluate=evaluate, eval_every=1)
    assert_same(params, finished[1])


class PowerCutError(Exception):
  pass


def until_step_2(step):
  for count, batch in enumerate(make_batches(step)):
    if step + count == 2:
      raise PowerCutError
    yield batch


class TestOtherMesh:
  """A checkpoint arrives on other devices, split another way."""

  @pytest.mark.parametrize('shape', [(1, 1), (2, 2), (4, 1)])
  def test_restored_bits_are_the_saved_ones(
    self, job, finished, shape, tmp_path
  ):
    shutil.copytree(finished[0], tmp_path / 'run')
    count = shape[0] * shape[1]
    grid = np.asarray(jax.devices()[:count]).reshape(shape)
    other = jax.sharding.Mesh(grid, sharding.BATCH_AXES)
    params, lines = run(job, tmp_path / 'run', other)
    assert 'continuing at step 5' in lines[0]
    assert_same(params, finished[1])
    devices = {
      d for x in jax.tree.leaves(params) for d in x.sharding.device_set
    }
    assert devices == set(grid.flat)

  @pytest.mark.slow
  def test_training_goes_on_there_with_the_same_losses(
    self, job, mesh, finished, tmp_path, monkeypatch
  ):
    # Split even the small leaves of this model.
    monkeypatch.setattr(sharding, '_SMALLEST_SHARDED', 1)
    with pytest.raises(PowerCutError):
      run(job, tmp_path, mesh, make_batches=until_step_2)
    grid = np.asarray(jax.devices()[:4]).reshape(1, 4)
    run(job, tmp_path, jax.sharding.Mesh(grid, sharding.BATCH_AXES))
    rows = read_metrics(tmp_path / 'metrics.jsonl')
    expected = read_metrics(finished[0] / 'metrics.jsonl')
    # Sums over the batch in another order.
    np.testing.assert_allclose(
      [row['loss'] for row in rows],
      [row['loss'] for row in expected],
      atol=1e-5,
    )

  def test_the_data_stands_where_it_stood(self, finished):
    reader = orbax_store.Checkpointer(
      finished[0] / 'checkpoints' / 'dilute', reader=True
    )
    assert reader.read_meta(4)['data'] == {'seed': 0, 'next_step': 4}


class TestResumeFrom:
  """Workdir, then resume_from, then the given parameters."""

  def test_goes_on_with_the_moments(self, job, mesh, finished, tmp_path):
    start = orbax_store.Source(finished[0] / 'checkpoints' / 'dilute', 2)
    params, lines = run(job, tmp_path, mesh, start=start)
    assert 'continuing at step 2 of 5, from' in lines[0]
    assert_same(params, finished[1])
    assert steps_in(tmp_path) == [3, 4, 5]
    # Its own checkpoints come first from now on.
    _, lines = run(job, tmp_path, mesh, start=start)
    assert 'continuing at step 5 of 5' in lines[0]
    assert 'from' not in lines[0]

  def test_another_job_is_refused(self, job, mesh, finished, tmp_path):
    folder = finished[0] / 'checkpoints' / 'dilute'
    short = tuple(dataclasses.replace(p, until=1) for p in job.phases)
    with pytest.raises(CheckpointError, match='is past the 1 steps'):
      run(
        job,
        tmp_path,
        mesh,
        start=orbax_store.Source(folder, 5),
        phases=short,
      )
    other = (dataclasses.replace(job.phases[0], until=5),)
    with pytest.raises(CheckpointError, match='attention_modes'):
      run(
        job,
        tmp_path,
        mesh,
        start=orbax_store.Source(folder, 5),
        phases=other,
      )

  @pytest.mark.parametrize(
    'below, step',
    [('', 5), ('checkpoints/dilute', 5), ('checkpoints/dilute/3', 3)],
  )
  def test_a_workdir_a_stage_or_a_step(self, finished, below, step):
    found = persistence.find(str(finished[0] / below), 'dilute')
    assert (found.directory.name, found.step) == ('dilute', step)
    # Not for the other stage, which starts as if nothing was given.
    assert persistence.find(str(finished[0] / below), 'pretrain') is None

  @pytest.mark.parametrize('name', ['dilute', 'pretrain', 'pretrain/5'])
  def test_a_workdir_may_have_any_name(self, finished, tmp_path, name):
    workdir = tmp_path / name
    shutil.copytree(finished[0], workdir)
    found = persistence.find(str(workdir), 'dilute')
    assert str(found.directory) == str(workdir / 'checkpoints' / 'dilute')
    assert persistence.find(str(workdir), 'pretrain') is None

  def test_nothing_and_nowhere(self, tmp_path):
    assert persistence.find('', 'dilute') is None
    with pytest.raises(CheckpointError, match='no checkpoint there'):
      persistence.find(str(tmp_path), 'dilute')


def test_a_gradient_that_is_not_finite_stops_before_it_spoils(
  job, mesh, tmp_path, monkeypatch
):
  """The loss of that step is finite: the next one's would not be."""
  make = loop.make_train_step

  def poisoned(*args, **options):
    step = make(*args, **options)

    def run_step(state, batch, teacher):
      bad = int(state.step) == 2
      state, values = step(state, batch, teacher)
      if bad:
        values = values | {'gradient_norm': np.float32(np.inf)}
      return state, values

    run_step.lower = step.lower
    return run_step

  monkeypatch.setattr(loop, 'make_train_step', poisoned)
  with pytest.raises(loop.DivergedError, match='gradient norm is inf at st'):
    run(job, tmp_path, mesh)
  assert steps_in(tmp_path) == [1, 2]


class TestProfile:
  def test_a_window_is_traced(self, job, mesh, tmp_path):
    window = tracing.window('1,3', tmp_path / 'profile')
    run(job, tmp_path, mesh, window=window)
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))

  def test_a_window_cut_short_is_closed(self, job, mesh, tmp_path):
    window = tracing.window((4, 99), tmp_path / 'profile')
    run(job, tmp_path, mesh, window=window)
    assert list((tmp_path / 'profile').rglob('*.xplane.pb'))

  @pytest.mark.parametrize('text', ['5', '5,5', '9,3', 'a,b', '1,2,3', 7])
  def test_anything_else_is_refused(self, text, tmp_path):
    with pytest.raises(UsageError, match='START,STOP'):
      tracing.window(text, tmp_path)

  def test_nothing_is_nothing(self, tmp_path):
    assert tracing.window('', tmp_path).directory is None


# Files of this process may not grow past so many bytes from the fifth step
# on: what a full disk is, at the one place where every write ends.
_FULL = """
import resource, signal, sys
from lambda_vit_jax import main
from lambda_vit_jax.training import metrics
write = metrics.MetricsWriter.write
def write_then_full(self, stage, step, **values):
  write(self, stage, step, **values)
  if step == 5:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))
metrics.MetricsWriter.write = write_then_full
main.run()
"""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
  argv = arguments('pretrain', tmp_path / 'run')
  done = subprocess.run(
    [sys.executable, '-c', _FULL, *argv],
    cwd=ROOT,
    env=os.environ
    | {'XLA_FLAGS': xla_flags.flags(), 'LAMBDA_VIT_CACHE': 'off'},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 1, done.stderr
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('lambda-vit:')]
  assert 'Traceback' not in done.stderr
  assert 'intact' in line
  assert 'File too large' in line
  assert 'free some space' in line
  stage = pathlib.Path(tmp_path / 'run' / 'checkpoints' / 'pretrain')
  finished = [p for p in stage.iterdir() if p.name.isdigit()]
  # The save at step 4 waited for that at step 2.
  assert '2' in [p.name for p in finished]
  assert json.loads((tmp_path / 'run' / 'config.json').read_text())


def test_a_signal_is_not_taken_for_damage(finished, mesh):
  """Nobody is told to remove what is whole."""
  checkpointer = orbax_store.Checkpointer(
    finished[0] / 'checkpoints' / 'dilute', reader=True
  )

  class Manager:
    def restore(self, *args, **kwargs):
      raise StoppedError(15, 'interrupted')

  checkpointer._manager = Manager()
  with pytest.raises(StoppedError):
    checkpointer.restore(5, {'params': {}})


def test_what_is_not_written_to_its_end_is_not_there(finished, monkeypatch):
  """On object storage a step has its name before it is complete."""
  folder = files.absolute(finished[0]) / 'checkpoints' / 'dilute'
  assert orbax_store.newest_step(folder) == 5
  step = orbax_store.orbax().path.step
  monkeypatch.setattr(step, 'is_path_finalized', lambda path: path.name != '5')
  assert orbax_store.newest_step(folder) == 4
