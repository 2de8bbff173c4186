"""Free-form config values become checked ones, or one clear line."""

import pytest

from lambda_vit_jax.cli import config_values
from lambda_vit_jax.core.errors import UsageError


@pytest.mark.parametrize(
  'value, steps',
  [(7, 7), ('7', 7), ('3ep', 30), ('0.5ep', 5), ('2 ep', 20), (0, 0)],
)
def test_duration(value, steps):
  assert config_values.duration(value, 10, 'x') == steps


@pytest.mark.parametrize('value', [-1, 'ep', '3 epochs', True, None, 1.5, [1]])
def test_a_bad_duration_names_its_key(value):
  with pytest.raises(UsageError, match=r'config\.dilute\.settle_steps'):
    config_values.duration(value, 10, 'dilute.settle_steps')


@pytest.mark.parametrize(
  'value, size',
  [(None, None), (8, 8), ('8', 8), ((8, 4), (8, 4)), ('8x4', (8, 4))],
)
def test_image_size(value, size):
  assert config_values.image_size(value) == size


@pytest.mark.parametrize('value', ['big', (1, 2, 3), 0, '8x'])
def test_a_bad_image_size_is_refused(value):
  with pytest.raises(UsageError, match=r'model\.image_size'):
    config_values.image_size(value)


def test_exactly_one_budget_is_in_force():
  empty = dict.fromkeys(config_values.BUDGETS)
  assert config_values.budget(empty | {'num_layers': '5'}) == ('num_layers', 5)
  assert config_values.budget(empty | {'removal_ratio': 0.4})[1] == 0.4
  with pytest.raises(UsageError, match='none set'):
    config_values.budget(empty)
  with pytest.raises(UsageError, match='num_layers and removal_ratio'):
    config_values.budget(empty | {'num_layers': 5, 'removal_ratio': 0.4})


def test_differing_keys_ignore_what_changes_no_result():
  saved = {'seed': 0, 'log_every': 5, 'select': {'layers': [1, 2]}}
  same = {'seed': 0, 'log_every': 9, 'select': {'layers': (1, 2)}}
  assert config_values.differing_keys(saved, same) == []
  other = {'seed': 1, 'log_every': 5, 'select': {'layers': ()}, 'new': 1}
  assert config_values.differing_keys(saved, other) == [
    'new',
    'seed',
    'select.layers',
  ]


def test_a_key_that_an_earlier_version_lacked_had_its_default():
  saved = {'seed': 0, 'model': {'variant': 'a'}, 'gone': 1}
  defaults = {'seed': 5, 'model': {'variant': '', 'merge': 0}, 'other': 2}
  today = {'seed': 0, 'model': {'variant': 'a', 'merge': 0}}
  assert config_values.differing_keys(saved, today, defaults) == ['gone']
  today['model']['merge'] = 8
  assert config_values.differing_keys(saved, today, defaults) == [
    'gone',
    'model.merge',
  ]


def test_the_peak_rate_is_per_512_images_where_asked():
  settings = {'learning_rate': '1e-3', 'scale_by_batch': False}
  assert config_values.peak_learning_rate(settings, 2048, 'dilute') == 1e-3
  settings['scale_by_batch'] = True
  assert config_values.peak_learning_rate(settings, 2048, 'dilute') == 4e-3
