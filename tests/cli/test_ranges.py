"""Every number in every config has a range, and nothing beyond it is taken.

A key without a range as data, or a range that no check reads, would let a run
begin that fails hours later or trains nonsense.
"""

import copy
import functools
import importlib
import re

import pytest

from lambda_vit_jax.cli import config_differences, config_values, settings
from lambda_vit_jax.cli.config_values import Real, Steps, Whole
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.data.augment import GREATEST
from lambda_vit_jax.models import merge_schedule
from tests.support.settings import CONFIG_NAMES as NAMES
from tests.support.settings import check

CROPS = ('data.augment.crop_area', 'data.augment.crop_aspect')
# A number, a list or a word; read by `models.merge_schedule`.
MERGE = 'model.merge'


@functools.cache
def config_of(name):
  module = importlib.import_module(f'lambda_vit_jax.configs.{name}')
  return module.get_config().to_dict()


RANGES = settings.number_ranges()


def beyond(reader):
  """A value just below and one just above a range."""
  step = 1e-6 if isinstance(reader, Real) else 1
  return (
    reader.least - step * (not getattr(reader, 'above', False)),
    reader.greatest + step * (not getattr(reader, 'below', False)),
  )


def outside():
  """`(key, value)` of two values for every key."""
  for key, reader in RANGES.items():
    for value in beyond(reader):
      yield key, value
  for name, greatest in GREATEST.items():
    yield f'data.augment.{name}', -1e-6
    yield f'data.augment.{name}', greatest + 1e-6
  for key in CROPS:
    yield key, (0, 1)
    yield key, (1, 101)


def is_numeric(value):
  if isinstance(value, list | tuple):
    return bool(value) and all(map(is_numeric, value))
  if isinstance(value, str):
    return re.fullmatch(r'[0-9.]+(ep)?', value) is not None
  return isinstance(value, int | float) and not isinstance(value, bool)


def changed(name, key, value):
  config = copy.deepcopy(config_of(name))
  section = config
  *path, last = key.split('.')
  for part in path:
    section = section[part]
  is_list = isinstance(section[last], list | tuple) and not isinstance(
    value, tuple
  )
  section[last] = (value,) if is_list else value
  return config


@pytest.mark.parametrize('name', NAMES)
def test_every_number_of_a_config_has_a_range(name):
  known = {*RANGES, *CROPS, MERGE, *(f'data.augment.{k}' for k in GREATEST)}
  flat = config_differences.flatten(config_of(name))
  assert {key for key, value in flat.items() if is_numeric(value)} <= known


@pytest.mark.parametrize('key, value', list(outside()))
def test_a_value_beyond_its_range_is_refused(key, value):
  for name in NAMES:
    with pytest.raises(UsageError, match=rf'config\.{re.escape(key)}='):
      check(changed(name, key, value))


@pytest.mark.parametrize('merge', [-1, 10**9])
def test_a_number_of_merged_tokens_beyond_its_range(merge):
  with pytest.raises(merge_schedule.ModelError, match='merge'):
    merge_schedule.merge_schedule(merge, 12, 196)


@pytest.mark.parametrize(
  'reader', sorted(set(RANGES.values()), key=str), ids=str
)
def test_the_bounds_themselves_are_taken_unless_open(reader):
  inside = []
  if not getattr(reader, 'above', False):
    inside.append(reader.least)
  if not getattr(reader, 'below', False):
    inside.append(reader.greatest)
  for value in inside:
    found = reader(value, 'key')
    assert getattr(found, 'length', found) == value
    assert reader(str(value), 'key') == found


@pytest.mark.parametrize(
  'reader, value, message',
  [
    (Whole(1, 8), 9, 'config.key=9 must be at most 8'),
    (Whole(1, 8), 0, 'config.key=0 must be at least 1'),
    (Real(0, 1, below=True), 1, 'config.key=1 must be less than 1'),
    (Real(0, 1, above=True), '0', 'config.key=0 must be greater than 0'),
    (Steps(), '9999999999ep', 'config.key=9999999999 must be at most'),
  ],
)
def test_the_line_names_the_bound(reader, value, message):
  with pytest.raises(UsageError, match=re.escape(message)):
    reader(value, 'key')


def test_an_integer_is_not_taken_for_a_switch():
  for reader in (Whole(), Real(0, 1), Steps()):
    with pytest.raises(UsageError):
      reader(True, 'key')
  assert config_values.Whole(0, 1)(1, 'key') == 1


@pytest.mark.parametrize(
  'key, value',
  [
    ('dilute.learning_rate', -1),
    ('dilute.ema', 2),
    # Neither would ever change.
    ('dilute.ema', 1),
    ('pretrain.b1', 1),
    ('pretrain.b2', 1),
    ('dilute.b1', 3),
    # Nothing of the label, or of the branch, would be left.
    ('pretrain.label_smoothing', 1),
    ('dilute.label_smoothing', 5),
    ('pretrain.drop_path_rate', 1),
    ('dilute.drop_path_rate', 2),
    ('dilute.distill_temperature', 0),
    ('data.workers', -1),
    ('seed', 2**32),
  ],
)
def test_values_that_train_nothing_sensible(key, value):
  """By value, so that a range that was widened by mistake is noticed."""
  with pytest.raises(UsageError, match=rf'config\.{re.escape(key)}='):
    check(changed('digits', key, value))
