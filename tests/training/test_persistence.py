"""Which checkpoint `resume_from` names, and which job it must be of."""

import types

import orbax.checkpoint as ocp
import pytest
from etils import epath

from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.training import persistence
from tests.support.training_jobs import make_job


@pytest.fixture
def workdir(tmp_path):
  """Complete checkpoints of one stage, by their names alone."""
  folder = tmp_path / 'run' / 'checkpoints' / 'pretrain'
  for step in (3, 12):
    (folder / str(step)).mkdir(parents=True)
    assert ocp.path.step.is_path_finalized(epath.Path(folder / str(step)))
  return tmp_path / 'run'


@pytest.mark.parametrize(
  'below, step',
  [
    ('', 12),
    ('checkpoints/pretrain', 12),
    ('checkpoints/pretrain/3', 3),
    ('checkpoints/pretrain/12', 12),
  ],
)
def test_a_workdir_a_stage_or_a_step_names_a_checkpoint(workdir, below, step):
  found = persistence.find(str(workdir / below), 'pretrain')
  folder = workdir / 'checkpoints' / 'pretrain'
  assert (str(found.directory), found.step) == (str(folder), step)
  assert persistence.find(str(workdir / below), 'dilute') is None


@pytest.mark.parametrize('below', ['checkpoints/pretrain/4', 'nowhere'])
def test_a_step_that_is_not_there_is_refused(workdir, below):
  with pytest.raises(CheckpointError, match='no checkpoint there'):
    persistence.find(str(workdir / below), 'pretrain')


def test_a_start_beyond_the_end_names_the_checkpoint(tiny_variant):
  source = types.SimpleNamespace(directory=epath.Path('run/dilute'))
  with pytest.raises(CheckpointError, match=r'run/dilute/9: is past the 5 st'):
    persistence._check_start(make_job(tiny_variant), source, 9)
