"""`model.merge` through the stages, and token merging in exports."""

import json

import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.cli.stages import finished, registry
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.exporters.formats import read_stablehlo
from tests.support.stage_runs import open_run

OPTIONS = (
  '--config.pretrain.steps=2',
  '--config.select.criterion=first',
  '--config.model.merge=4',
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  run = open_run(tmp_path_factory.mktemp('run') / 'digits', *OPTIONS)
  for name in ('pretrain', 'select', 'dilute', 'export'):
    registry.run_stage(run, name)
  return run


@pytest.mark.slow
def test_training_and_the_files_merge_and_the_dense_model_does_not(run):
  dense, pruned = run.load('pretrain'), finished.pruned_model(run)
  assert dense.module.merge == ()
  assert not any(dense.module.merge_counts)
  assert pruned.module.merge == (4, 4, 4)
  # Block 0 has lost its attention; 4 of 16 patches, and 4 of the 12 left.
  assert pruned.module.merge_counts == (0, 4, 4)
  # Stored by training, and not only set by this config.
  assert run.load('dilute').module.merge == pruned.module.merge
  described = json.loads(run.path('export/model.json').read_text())
  assert described['merge'] == [4, 4, 4]
  images = next(run.eval_batches(pruned.preprocessing))['image'][:8]
  expected = pruned(images)
  exported = lv.load_export(run.path('export'))
  assert exported.module.merge == pruned.module.merge
  # One program after another of the same sums.
  np.testing.assert_allclose(exported(images), expected, atol=1e-5)
  program = read_stablehlo(run.path('export/model.stablehlo'))
  # For any batch size.
  for count in (8, 3):
    np.testing.assert_allclose(
      program(images[:count]), expected[:count], atol=1e-5
    )
  unmerged = lv.merge_tokens(exported, 0)
  assert np.abs(unmerged(images) - expected).max() > 1e-4
  # What other programs make of it is said.
  assert any('token merging' in line for line in described['warnings'])


@pytest.mark.slow
def test_another_workdir_merges_what_was_trained(run, tmp_path):
  """No training: the trained steps are taken over, r is another."""
  other = open_run(
    tmp_path / 'other',
    *OPTIONS[:2],
    '--config.model.merge=decreasing:2',
    f'--config.resume_from={run.workdir}',
  )
  for name in ('pretrain', 'select', 'dilute'):
    registry.run_stage(other, name)
  found = finished.pruned_model(other)
  trained = finished.pruned_model(run)
  assert found.module.merge[0] == 4
  assert found.module.merge[-1] == 0
  np.testing.assert_array_equal(
    found.params['head']['kernel'], trained.params['head']['kernel']
  )


@pytest.mark.parametrize('value', ['(0, 8, 4)', '[0,8,4]', '0,8,4'])
def test_a_list_by_flag(tmp_path, value):
  run = open_run(tmp_path / 'list', f'--config.model.merge={value}')
  module = run.fresh_model().module
  assert run.merge_schedule(module, module.attention_modes) == (0, 8, 4)


def test_too_many_tokens_are_refused_before_training(tmp_path):
  with pytest.raises(UsageError, match='block 0 is to merge 9 tokens'):
    open_run(tmp_path / 'large', '--config.model.merge=9')
  assert not (tmp_path / 'large').exists()
