"""The stage `linearize` with steps of Adam: stopped anywhere, the same bits."""

import json
import shutil

import numpy as np
import pytest

from lambda_vit_jax.checkpoints import load, orbax_store
from lambda_vit_jax.cli.stages import registry
from lambda_vit_jax.core.errors import StoppedError
from lambda_vit_jax.training.metrics import MetricsWriter, read_metrics
from tests.support.stage_runs import open_run
from tests.support.trees import assert_same

pytestmark = pytest.mark.slow

OPTIONS = (
  '--config.method=linearize',
  '--config.pretrain.steps=2',
  '--config.pretrain.warmup_steps=0',
  '--config.select.criterion=first',
  '--config.eval_every=0',
  '--config.linearize.polish_steps=4',
)


def run_stage(workdir, name):
  run = open_run(workdir, *OPTIONS)
  registry.STAGES[name].run(run)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('polish') / 'run'
  for name in ('pretrain', 'select', 'linearize'):
    run_stage(workdir, name)
  return workdir


def test_a_run_that_was_stopped_ends_with_the_same_bits(
  finished, tmp_path, monkeypatch
):
  workdir = tmp_path / 'run'
  shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns('linear'))
  write, save = MetricsWriter.write, orbax_store.Checkpointer.save
  steps = []

  def stop(self, stage, step, **values):
    write(self, stage, step, **values)
    steps.append(step)
    # After the checkpoint of step 2.
    if steps == [1, 2, 3]:
      raise StoppedError(15, 'stopped')

  def save_and_wait(self, *values):
    save(self, *values)
    self.wait()

  monkeypatch.setattr(MetricsWriter, 'write', stop)
  monkeypatch.setattr(orbax_store.Checkpointer, 'save', save_and_wait)
  with pytest.raises(StoppedError):
    run_stage(workdir, 'linearize')
  assert not (workdir / 'linear').exists()
  assert (workdir / 'checkpoints/linearize/2').exists()
  run_stage(workdir, 'linearize')
  assert steps == [1, 2, 3, 3, 4]
  found, wanted = (
    load.load_export(path / 'linear').params for path in (workdir, finished)
  )
  assert_same(found, wanted)
  # Nothing is left for a later fit of another config to go on from.
  assert not (workdir / 'checkpoints/linearize').exists()


def test_the_steps_are_in_the_metrics_and_in_the_record(finished):
  rows = [
    row
    for row in read_metrics(finished / 'metrics.jsonl')
    if row['stage'] == 'linearize'
  ]
  assert [row['step'] for row in rows] == [1, 2, 3, 4]
  assert all(np.isfinite(row['loss']) for row in rows)
  assert not any('accuracy' in row for row in rows)
  model = json.loads((finished / 'linear' / 'model.json').read_text())
  assert model['linearize']['polish_steps'] == 4
