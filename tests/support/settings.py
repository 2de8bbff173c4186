"""Check that a config's values are ones that the stages can read."""

from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.cli import config_values
from lambda_vit_jax.data.augment import Augment

DURATIONS = {
  'pretrain': ('steps', 'warmup_steps'),
  'dilute': ('dilution_steps', 'settle_steps', 'warmup_steps'),
}


def check(settings: Mapping[str, Any]) -> None:
  """Read the budget, every duration and the augmentation of a config."""
  config_values.budget(settings['select'])
  for stage, keys in DURATIONS.items():
    for key in keys:
      config_values.duration(settings[stage][key], 100, f'{stage}.{key}')
  Augment.from_config(settings['data']['augment'])
