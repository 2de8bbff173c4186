"""Typed settings: read from a config whole, and checked against each other."""

import copy
import dataclasses

import pytest
from lambda_vit_jax.configs import common

from lambda_vit_jax.cli import config_differences
from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.core.errors import UsageError

BASE = common.base().to_dict()


def changed(section, **values):
  config = copy.deepcopy(BASE)
  config[section] |= values
  return Settings.from_config(config)


def field_names(cls, prefix=''):
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.type) and field.name != 'augment':
      yield from field_names(field.type, f'{prefix}{field.name}.')
    else:
      yield prefix + field.name


def test_every_key_of_the_config_is_a_setting():
  keys = {
    'data.augment' if key.startswith('data.augment.') else key
    for key in config_differences.flatten(BASE)
  }
  assert set(field_names(Settings)) == keys


@pytest.mark.parametrize(
  'value, size',
  [(None, None), (8, 8), ('8', 8), ((8, 4), (8, 4)), ('8x4', (8, 4))],
)
def test_image_size(value, size):
  assert changed('model', image_size=value).model.image_size == size


@pytest.mark.parametrize('value', ['big', (1, 2, 3), 0, '8x'])
def test_a_bad_image_size_is_refused(value):
  with pytest.raises(UsageError, match=r'model\.image_size'):
    changed('model', image_size=value)


@pytest.mark.parametrize(
  'values, budget',
  [
    ({'num_layers': '5'}, {'num_layers': 5}),
    ({'num_layers': None, 'removal_ratio': 0.4}, {'removal_ratio': 0.4}),
    ({'num_layers': None, 'target_speedup': '1.5'}, {'target_speedup': 1.5}),
  ],
)
def test_the_budget_is_the_one_that_is_set(values, budget):
  assert changed('select', **values).select.budget == budget


@pytest.mark.parametrize(
  'values, message',
  [
    ({'num_layers': None}, 'none set'),
    ({'num_layers': 5, 'removal_ratio': 0.4}, 'num_layers and removal_ratio'),
  ],
)
def test_exactly_one_budget_is_in_force(values, message):
  with pytest.raises(UsageError, match=message):
    changed('select', **values)


@pytest.mark.parametrize('scale_by_batch, peak', [(False, 1e-3), (True, 4e-3)])
def test_the_peak_rate_is_per_512_images_where_asked(scale_by_batch, peak):
  found = changed('dilute', learning_rate='1e-3', scale_by_batch=scale_by_batch)
  assert found.dilute.peak_learning_rate(2048) == peak


@pytest.mark.parametrize(
  'given, sizes', [(4, (4,)), ([1, 4], (1, 4)), ((), ())]
)
def test_batch_sizes_of_a_sweep(given, sizes):
  found = changed('benchmark', batch_sizes=given)
  assert found.benchmark.batch_sizes == sizes


@pytest.mark.parametrize('wrong', ['many', ('x',), (0,), (1.5,)])
def test_batch_sizes_that_are_none(wrong):
  with pytest.raises(UsageError, match=r'benchmark\.batch_sizes'):
    changed('benchmark', batch_sizes=wrong)


@pytest.mark.parametrize('section', ['pretrain', 'dilute'])
@pytest.mark.parametrize('key', ['ema', 'weight_decay', 'final_learning_rate'])
@pytest.mark.parametrize('value', [float('nan'), 'much', None])
def test_a_rate_that_is_no_number_names_its_key(section, key, value):
  with pytest.raises(UsageError, match=rf'config\.{section}\.{key}='):
    changed(section, **{key: value})


def test_settings_cannot_be_changed():
  with pytest.raises(dataclasses.FrozenInstanceError):
    Settings.from_config(BASE).seed = 1


@pytest.mark.parametrize(
  'method, refused', [('dilute', True), ('linearize', False)]
)
def test_a_warm_start_needs_maps(method, refused):
  config = copy.deepcopy(BASE)
  config['method'] = method
  config['dilute']['start'] = 'linear'
  config['linearize']['maps'] = False
  if refused:
    with pytest.raises(UsageError, match='a warm start without maps'):
      Settings.from_config(config)
  else:
    assert Settings.from_config(config).dilute.is_warm


@pytest.mark.parametrize(
  'size, batch_size, fits',
  [
    (None, 64, True),
    (16, 64, True),
    (64, 64, True),
    (256, 64, True),
    (24, 64, False),
  ],
)
def test_images_that_mix_are_parts_of_the_batch(size, batch_size, fits):
  config = copy.deepcopy(BASE) | {'batch_size': batch_size}
  config['dilute']['mix_size'] = size
  if fits:
    assert Settings.from_config(config).dilute.mix_size == size
    return
  with pytest.raises(UsageError, match=r'dilute\.mix_size=24: does not divide'):
    Settings.from_config(config)
