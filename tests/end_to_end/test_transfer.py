"""A pruned export as the start of another run: what is gone stays gone."""

import json

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints.load import load_export, load_pretrained
from lambda_vit_jax.cli import flags
from lambda_vit_jax.cli.stages import pretrain, registry
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.models import modes
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.runtime.progress import Reporter

pytestmark = pytest.mark.slow

REMOVED = (1,)


@pytest.fixture(scope='module')
def source():
  """A pruned model for seven classes."""
  return lv.create_model(
    'vit_nano_patch2_8', num_classes=7, removed_layers=REMOVED
  )


@pytest.fixture(scope='module')
def transferred(source, tmp_path_factory):
  """A run on digits (ten classes) from the export of `source`."""
  folder = tmp_path_factory.mktemp('transfer')
  lv.export(source, folder / 'export', formats=('orbax',))
  _, config, _ = flags.parse(
    [
      'run',
      '--config=configs/cifar100.py:runlocal,pruned',
      f'--workdir={folder / "run"}',
      f'--config.init={folder / "export"}',
      '--config.model.variant=vit_nano_patch2_8',
      '--config.pretrain.steps=2',
      '--config.export.formats=("orbax",)',
    ]
  )
  run = Run(config.to_dict(), str(folder / 'run'), Reporter(quiet=True))
  # Two of the eight devices: programs for fewer devices compile faster.
  grid = np.asarray(jax.devices()[:2]).reshape(2, 1)
  run.mesh = jax.sharding.Mesh(grid, sharding.BATCH_AXES)
  for stage in ('pretrain', 'select', 'dilute', 'export'):
    registry.run_stage(run, stage)
  return run


def test_the_start_is_the_export_with_a_fresh_head(source, transferred):
  start = pretrain.starting_model(transferred)
  assert start.attention_modes == source.attention_modes
  assert start.num_classes == 10
  assert start.class_names == transferred.dataset.class_names
  assert start.params['head']['kernel'].shape == (24, 10)
  kept = {k: v for k, v in start.params.items() if k != 'head'}
  jax.tree.map(
    np.testing.assert_array_equal,
    kept,
    {k: v for k, v in source.params.items() if k != 'head'},
  )


@pytest.mark.parametrize('stage', ['pretrain', 'dilute'])
def test_fine_tuning_keeps_removed_blocks_removed(source, transferred, stage):
  model = transferred.load(stage)
  assert model.attention_modes == source.attention_modes
  for layer in REMOVED:
    assert set(model.params[modes.block_name(layer)]) == {'norm2', 'mlp'}
  before = source.params['block00']['mlp']['fc1']['kernel']
  assert (model.params['block00']['mlp']['fc1']['kernel'] != before).any()


def test_nothing_more_is_removed(transferred):
  found = json.loads(transferred.path('selection.json').read_text())
  assert found['removed'] == []
  fine_tuned = transferred.load('pretrain')
  for model in (
    load_export(transferred.path('export')),
    load_pretrained(transferred.workdir),
  ):
    assert model.removed_layers == REMOVED
    jax.tree.map(np.testing.assert_array_equal, model.params, fine_tuned.params)
