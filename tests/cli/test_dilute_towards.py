"""`dilute.towards`: λ leads to the network of another stage, which then trains."""

import json
import types

import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.cli.stages import finished, registry, select
from lambda_vit_jax.core.errors import CheckpointError, UsageError
from tests.support.stage_runs import open_run

COMPRESSED = (
  '--config.dilute.towards=compressed',
  '--config.dilute.distill=soft',
  '--config.compress.target_speedup=1.4',
  '--config.compress.num_images=64',
  '--config.export.formats=("safetensors",)',
)


def test_a_run_has_the_stage_that_it_leads_to(tmp_path):
  for name, options, stages in (
    ('small', COMPRESSED, {'compress', 'dilute'}),
    (
      'maps',
      ('--config.dilute.towards=linear',),
      {'select', 'linearize', 'dilute'},
    ),
    ('plain', (), {'select', 'dilute'}),
  ):
    needed = set(registry.needed(open_run(tmp_path / name, *options)))
    others = {'select', 'linearize', 'compress', 'dilute'}
    assert needed & others == stages


@pytest.mark.parametrize(
  'option, message',
  [
    ('--config.dilute.start=linear', 'leads to that network at once'),
    ('--config.task=segment', 'not there for task=segment'),
  ],
)
def test_what_does_not_go_together_is_refused(tmp_path, option, message):
  with pytest.raises(UsageError, match=message):
    _ = open_run(tmp_path, '--config.dilute.towards=linear', option).settings


@pytest.mark.slow
@pytest.mark.parametrize('towards', ['compressed', 'linear'])
def test_the_run_exports_the_smaller_network_trained(tmp_path, towards):
  options = [o for o in COMPRESSED if 'towards' not in o]
  options += [
    f'--config.dilute.towards={towards}',
    # Blocks are dropped, and maps and MLPs fitted.
    '--config.linearize.num_drop_blocks=1',
    '--config.linearize.refit=True',
    '--config.linearize.num_images=64',
    '--config.compress.parts=("attention", "neurons", "blocks", "tokens")',
  ]
  run = open_run(tmp_path, *options)
  for name in registry.needed(run):
    if name in ('benchmark', 'report', 'analyze'):
      continue
    registry.run_stage(run, name)
  model = finished.pruned_model(run)
  stand_in = finished.load_fitted(run, run.settings.dilute.stand_in)
  assert model.attention_modes == stand_in.attention_modes
  assert model.mlp_dims == stand_in.mlp_dims
  assert model.kept_blocks == stand_in.kept_blocks
  assert model.module.merge == stand_in.module.merge
  assert any(model.module.merge) == (towards == 'compressed')
  images = next(run.eval_batches(model.preprocessing))['image']
  exported = lv.load_pretrained(run.path('export'))
  np.testing.assert_allclose(exported(images), model(images), atol=1e-5)
  # It has been trained.
  assert abs(np.asarray(model(images) - stand_in(images))).max() > 1e-3
  rows = [
    json.loads(line)
    for line in run.path('metrics.jsonl').read_text().splitlines()
  ]
  factors = [row['lambda'] for row in rows if row['stage'] == 'dilute']
  np.testing.assert_allclose(factors, [1, 0.75, 0.5, 0.25, 0, 0, 0])
  evaluation = json.loads(run.path('evaluation.json').read_text())
  assert evaluation['pruned']['top1'] == evaluation['exported']['top1']


def test_a_missing_selection_names_the_stage_that_writes_it(tmp_path):
  run = types.SimpleNamespace(path=lambda name: tmp_path / name)
  with pytest.raises(CheckpointError, match='run the stage `select` first'):
    select.removed_layers(run, 3)
