"""Single config values are read, or refused in a line that names the key."""

import pytest

from lambda_vit_jax.cli import config_values
from lambda_vit_jax.core.errors import UsageError


@pytest.mark.parametrize(
  'value, steps',
  [(7, 7), ('7', 7), ('3ep', 30), ('0.5ep', 5), ('2 ep', 20), (0, 0)],
)
def test_duration(value, steps):
  assert config_values.Steps()(value, 'x').steps(10) == steps


@pytest.mark.parametrize('value', [-1, 'ep', '3 epochs', True, None, 1.5, [1]])
def test_a_bad_duration_names_its_key(value):
  with pytest.raises(UsageError, match=r'config\.dilute\.settle_steps'):
    config_values.Steps()(value, 'dilute.settle_steps')
