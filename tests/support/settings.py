"""Check that a config's values are ones that the stages can read."""

import pathlib
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.data.augment import Augment

CONFIG_NAMES = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parents[2] / 'configs').glob('*.py')
  if path.stem not in ('__init__', 'common')
)
"""Config files that are shipped, without `.py`."""


def check(config: Mapping[str, Any]) -> None:
  """Read every value of a config, and its augmentation."""
  Augment.from_config(dict(Settings.from_config(config).data.augment))
