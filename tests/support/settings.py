"""Check that a config's values are ones that the stages can read."""

from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.data.augment import Augment


def check(config: Mapping[str, Any]) -> None:
  """Read every value of a config, and its augmentation."""
  Augment.from_config(dict(Settings.from_config(config).data.augment))
