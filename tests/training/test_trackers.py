"""TensorBoard event files, read back; Weights & Biases, simulated."""

import sys
import types

import numpy as np
import pytest
from etils import epath

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.training import trackers
from lambda_vit_jax.training.metrics import MetricsWriter, read_metrics
from tests.support import event_files, object_store


@pytest.mark.parametrize('value', [0.0, -0.0, 1 / 3, 1e-30, 3e38, np.inf])
@pytest.mark.parametrize('step', [1, 2**31, 2**62])
def test_a_value_is_on_disk_when_write_returns(tmp_path, step, value):
  tracker = trackers.TensorBoardTracker(tmp_path)
  tracker.begin('dilute', step - 1)
  tracker.write(step, {'λ': value, 'loss': 1.0})
  shown = event_files.shown(tmp_path / 'tensorboard' / 'dilute')
  assert shown == {(step, 'λ'): np.float32(value), (step, 'loss'): 1.0}
  tracker.close()


def _train_twice(workdir):
  """Five steps, then from step 4 on to 8; the halves are exact in float32."""
  for start, stop in ((0, 6), (4, 9)):
    writer = MetricsWriter(
      workdir, trackers=[trackers.TensorBoardTracker(workdir)]
    )
    writer.rewind('dilute', start)
    for step in range(start + 1, stop):
      writer.write('dilute', step, loss=start + step / 2)
    writer.close()
  rows = read_metrics(workdir / 'metrics.jsonl')
  assert [row['step'] for row in rows] == list(range(1, 9))
  return {(row['step'], 'loss'): row['loss'] for row in rows}


def test_a_resumed_stage_shows_each_step_once(tmp_path):
  rows = _train_twice(tmp_path)
  assert event_files.shown(tmp_path / 'tensorboard' / 'dilute') == rows


def test_a_stage_begun_by_version_0_1_shows_each_step_once(tmp_path):
  folder = tmp_path / 'tensorboard' / 'dilute'
  tracker = trackers.TensorBoardTracker(tmp_path)
  tracker.begin('dilute', 0)
  tracker.write(1, {'loss': 9.0})
  tracker.write(2, {'loss': 9.0})
  tracker.close()
  (path,) = folder.iterdir()
  path.rename(folder / 'events.out.tfevents.0000000000.lambda_vit_jax')
  tracker = trackers.TensorBoardTracker(tmp_path)
  tracker.begin('dilute', 1)
  tracker.write(2, {'loss': 3.0})
  tracker.close()
  assert event_files.shown(folder) == {(1, 'loss'): 9.0, (2, 'loss'): 3.0}


def test_remote_files_are_never_appended_to(tmp_path, monkeypatch):
  with object_store.serve(monkeypatch):
    rows = _train_twice(epath.Path('gs://bucket/run'))
    folder = epath.Path('gs://bucket/run/tensorboard/dilute')
    assert event_files.shown(folder) == rows


class Wandb(types.ModuleType):
  """The parts of W&B that we use: runs by id, with increasing steps."""

  def __init__(self):
    super().__init__('wandb')
    self.runs = {}
    self.open = None

  def init(self, **options):
    assert self.open is None
    assert options['resume'] == 'allow'
    assert options['config']['seed'] == 0
    self.open = self.runs.setdefault(options['id'], {})
    return self

  def log(self, values, step):
    if step > max(self.open, default=-1):
      self.open[step] = values

  def finish(self):
    self.open = None


CONFIG = {'seed': 0, 'metrics': {'tensorboard': False, 'wandb': 'project'}}


def test_a_resumed_stage_continues_its_wandb_run(tmp_path, monkeypatch):
  wandb = Wandb()
  monkeypatch.setitem(sys.modules, 'wandb', wandb)
  for start, stop in ((0, 6), (4, 9)):
    writer = MetricsWriter(
      tmp_path, trackers=trackers.make_trackers(CONFIG, tmp_path)
    )
    for stage in ('pretrain', 'dilute'):
      writer.rewind(stage, start)
      for step in range(start + 1, stop):
        writer.write(stage, step, loss=step / 2)
    writer.close()
    assert wandb.open is None
  assert len(wandb.runs) == 2
  for name, run in wandb.runs.items():
    assert name.endswith(('-pretrain', '-dilute'))
    assert run == {step: {'loss': step / 2} for step in range(1, 9)}


def test_only_the_leader_tracks(tmp_path):
  writer = MetricsWriter(
    tmp_path,
    leader=False,
    trackers=[trackers.TensorBoardTracker(tmp_path)],
  )
  writer.rewind('dilute', 0)
  writer.write('dilute', 1, loss=1.0)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'module, extra, settings',
  [
    ('wandb', 'wandb', {'tensorboard': False, 'wandb': 'project'}),
    (
      'tensorboardX.event_file_writer',
      'tensorboard',
      {'tensorboard': True, 'wandb': ''},
    ),
  ],
)
def test_a_package_that_is_not_installed_is_named(
  module, extra, settings, tmp_path, monkeypatch
):
  # With None in sys.modules the import fails as if nothing were installed.
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(UsageError, match=rf"'lambda_vit_jax\[{extra}\]'$"):
    trackers.make_trackers({'seed': 0, 'metrics': settings}, tmp_path)


@pytest.mark.parametrize(
  'settings',
  [{'tensorboard': 1, 'wandb': ''}, {'tensorboard': False, 'wandb': None}],
)
def test_wrong_values_are_named(settings, tmp_path):
  with pytest.raises(UsageError, match=r'config\.metrics\.'):
    trackers.make_trackers({'metrics': settings}, tmp_path)
