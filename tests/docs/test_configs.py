"""Every config loads, locks, holds the promised keys and builds a model."""

import functools
import importlib

import pytest

from lambda_vit_jax.cli import flags
from lambda_vit_jax.models.build import make_module
from tests.support import settings

# Keys that users and scripts rely on.
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


each_config = pytest.mark.parametrize('name', settings.CONFIG_NAMES)
each_form = pytest.mark.parametrize('argument', ['', ':runlocal'])


@functools.cache
def parsed(name, argument=''):
  return flags.parse(
    ['run', f'--config=configs/{name}.py{argument}', '--workdir=unused']
  )[1]


@each_config
@each_form
def test_config(name, argument):
  config = parsed(name, argument)
  assert config.is_locked
  settings.check(config.to_dict())
  assert make_module(config.model.variant, image_size=config.model.image_size)


@pytest.mark.parametrize('key', PROMISED)
@each_config
def test_config_has_the_promised_key(name, key):
  section, _, last = key.rpartition('.')
  config = parsed(name)
  assert last in (config[section] if section else config)


@pytest.mark.parametrize(
  'text', ['lambda-vit run --config=', ':runlocal', 'Hardware and time']
)
@each_config
def test_docstring_describes_how_to_run_it(name, text):
  module = importlib.import_module(f'lambda_vit_jax.configs.{name}')
  assert text in module.__doc__


# Images of ImageNet-1k's training split.
IMAGENET = 1_281_167


@pytest.mark.parametrize('argument, steps', [('', 625), (':select', 620)])
@pytest.mark.parametrize('size', ['tiny', 'small', 'base'])
def test_imagenet_recipes_read_and_mix_as_the_authors_do(size, argument, steps):
  """625 steps an epoch; one draw for the 256 images of a device, of 8."""
  config = parsed(f'imagenet_deit_{size}', argument)
  held_out = config.data.holdout_images
  assert (IMAGENET - held_out) // config.batch_size == steps
  assert bool(held_out) == (config.select.criterion != 'given')
  assert config.dilute.mix_size * 8 == config.batch_size
