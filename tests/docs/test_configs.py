"""Every config loads, locks, holds the promised keys and builds a model."""

import importlib
import pathlib

import pytest

from lambda_vit_jax.cli import config_values, flags
from lambda_vit_jax.data.augment import Augment
from lambda_vit_jax.models.build import make_module

NAMES = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')
  if path.stem not in ('__init__', 'common')
)

# METHOD, section 7: keys that users and scripts rely on.
PROMISED = (
  'seed',
  'batch_size',
  'init',
  'data.source',
  'model.variant',
  'model.image_size',
  'pretrain.steps',
  'select.criterion',
  'select.target',
  'select.sign',
  'select.num_layers',
  'select.removal_ratio',
  'select.target_speedup',
  'select.layers',
  'select.num_images',
  'dilute.dilution_steps',
  'dilute.settle_steps',
  'dilute.compensation',
  'dilute.start',
  'export.formats',
  'export.dtype',
  'log_every',
  'checkpoint_every',
)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('argument', ['', ':runlocal'])
def test_config(name, argument):
  _, config, _ = flags.parse(
    ['run', f'--config=configs/{name}.py{argument}', '--workdir=unused']
  )
  assert config.is_locked
  for key in PROMISED:
    value = config
    for part in key.split('.'):
      value = value[part]
  config_values.budget(config.select)
  for stage, keys in (
    ('pretrain', ('steps', 'warmup_steps')),
    ('dilute', ('dilution_steps', 'settle_steps', 'warmup_steps')),
  ):
    for key in keys:
      config_values.duration(config[stage][key], 100, key)
  Augment.from_config(config.data.augment.to_dict())
  assert make_module(config.model.variant, image_size=config.model.image_size)


@pytest.mark.parametrize('name', NAMES)
def test_config_says_how_to_run_it(name):
  module = importlib.import_module(f'lambda_vit_jax.configs.{name}')
  for text in ('lambda-vit run --config=', ':runlocal', 'Hardware and time'):
    assert text in module.__doc__
