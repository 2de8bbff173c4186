"""The smoke run of each ImageNet recipe, from its first stage to its report.

The three differ in their layers alone, and their arguments in what chooses them
and in the loss, so that each form is run once.
"""

import json

import pytest

from lambda_vit_jax.cli.stages import registry
from tests.support.stage_runs import open_config


def run_all(config, workdir):
  run = open_config(config, workdir)
  for name in registry.needed(run):
    registry.run_stage(run, name)
  return {
    name: json.loads((workdir / f'{name}.json').read_text())
    for name in ('selection', 'evaluation', 'benchmark')
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  'config, layers',
  [
    ('imagenet_deit_tiny:runlocal', [0, 2, 4, 6]),
    ('imagenet_deit_small:runlocal', [0, 2, 4, 6]),
    ('imagenet_deit_base:runlocal', [0, 1, 3, 4, 6]),
  ],
)
def test_the_published_layers_go_and_raw_weights_are_exported(
  tmp_path, config, layers
):
  found = run_all(config, tmp_path)
  assert found['selection']['removed'] == layers
  scores = found['evaluation']
  assert list(scores) == [
    'dense',
    'baseline',
    'pruned',
    'pruned_ema',
    'exported',
  ]
  assert [row['steps'] for row in scores.values()] == [0, 4, 4, 4, 4]
  # Float32 sums of 360 losses; the average is of other parameters.
  losses = {name: row['loss'] for name, row in scores.items()}
  assert losses['exported'] == pytest.approx(losses['pruned'], rel=1e-4)
  assert losses['pruned_ema'] != losses['pruned']
  assert (tmp_path / 'report.html').exists()


@pytest.mark.slow
def test_nose_chooses_and_the_short_recipe_distils(tmp_path):
  found = run_all('imagenet_deit_tiny:runlocal,select,short', tmp_path)
  assert found['selection']['criterion'] == 'transfer_entropy'
  assert len(found['selection']['removed']) == 4
  # Without an average there is one row of the pruned model.
  assert 'pruned_ema' not in found['evaluation']
