"""The sections of a config about smaller networks without training."""

import dataclasses
from typing import Annotated

from lambda_vit_jax.cli import config_values as values
from lambda_vit_jax.cli.config_values import OrWord, Real, Whole
from lambda_vit_jax.cli.setting_types import (
  Block,
  Blocks,
  Flag,
  Names,
  Natural,
  Positive,
  Side,
)
from lambda_vit_jax.core.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Linearize:
  """Section `linearize`: what replaces attention layers without training."""

  num_images: Positive | None
  mirrored: Flag
  ridge: Annotated[float | str, OrWord(Real(0, 1e6), 'auto')]
  rank: Side | None
  sequential: Flag
  inputs: Names
  target: Annotated[str, values.one_of('stream', 'attention')]
  recentre: Flag
  refit: Flag
  polish_steps: Natural
  polish_learning_rate: Annotated[float, Real(0, 10, above=True)]
  polish_crop_area: Annotated[float, Real(0, 1, above=True)]
  maps: Flag
  num_drop_blocks: Block
  drop_blocks: Blocks

  def __post_init__(self):
    if self.num_drop_blocks and self.drop_blocks:
      raise UsageError(
        f'config.linearize.num_drop_blocks={self.num_drop_blocks} and '
        f'config.linearize.drop_blocks={self.drop_blocks}: give one of the two'
      )

  @property
  def drops(self) -> bool:
    """Whether whole blocks are left out."""
    return bool(self.num_drop_blocks or self.drop_blocks)

  @property
  def reads_twice(self) -> bool:
    """Whether the images are read again after the maps were fitted."""
    return self.drops or self.polish_steps > 0


@dataclasses.dataclass(frozen=True)
class Compress:
  """Section `compress`: one budget over all parts."""

  target_speedup: Annotated[float, Real(1, 1000, above=True)]
  parts: Names
  criterion: str
  target: str
  cost: str
  inputs: Names | None
  repair: Flag
  ridge: Annotated[float | str, OrWord(Real(0, 1e6), 'auto')]
  rescore: str
  # Some are scored and some are fitted on.
  num_images: Annotated[int, Whole(4)] | None
