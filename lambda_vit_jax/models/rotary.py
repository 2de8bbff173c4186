"""Rotary positions: queries and keys of patches turned by angles of their place.

Channels of a head are paired, and each pair of a patch at (row, column) is turned
by `row · frequency` or `column · frequency`, so that a product of a query and a
key depends on the difference of their places. Leading tokens are not turned.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array

# The grid of patches on which EVA-02 was pretrained; others are scaled to it.
_EVA02_GRID = 16


@dataclasses.dataclass(frozen=True)
class Rotary:
  """How a family turns its channels.

  Attributes:
    places: positions along one side of the grid, given its number of patches.
    frequency: of the i-th of n pairs of a side, given i / n.
    halves: whether channel i is paired with channel i + head_dim / 2, else
      each even channel with the next.
  """

  places: Callable[[int], np.ndarray]
  frequency: Callable[[np.ndarray], np.ndarray]
  halves: bool


ROTARIES: dict[str, Rotary] = {
  # Patch centres in [-1, 1] along each side; periods from 1 to 100.
  'dinov3': Rotary(
    lambda count: 2 * (np.arange(count) + 0.5) / count - 1,
    lambda share: 2 * np.pi / 100.0**share,
    True,
  ),
  'eva02': Rotary(
    lambda count: np.arange(count) * (_EVA02_GRID / count),
    lambda share: 1 / 10000.0**share,
    False,
  ),
}
"""The families with rotary positions."""


@functools.cache
def rotary_table(
  kind: str, grid: tuple[int, int], prefix: int, head_dim: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cosine and sine of every token's angles, `[tokens, head_dim]` float32 each.

  The sine has the sign with which a channel takes its partner's value.

  Args:
    kind: a key of `ROTARIES`.
    grid: patches along height and width.
    prefix: leading tokens, with angle 0.
    head_dim: channels of a head, a multiple of 4.
  """
  rotary = ROTARIES[kind]
  pairs = head_dim // 4
  frequency = rotary.frequency(np.arange(pairs) / pairs)
  rows, columns = (np.outer(rotary.places(n), frequency) for n in grid)
  shape = (*grid, pairs)
  angles = np.concatenate(
    [
      np.broadcast_to(rows[:, None], shape),
      np.broadcast_to(columns[None], shape),
    ],
    axis=-1,
  ).reshape(-1, 2 * pairs)
  angles = np.concatenate([np.zeros((prefix, 2 * pairs)), angles])
  axis = 1 if rotary.halves else 2
  both = np.stack([-angles, angles], axis=axis).reshape(len(angles), -1)
  return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)


def partners(kind: str, head_dim: int) -> np.ndarray:
  """The channel that each channel of a head is paired with, `[head_dim]`."""
  channels = np.arange(head_dim)
  if ROTARIES[kind].halves:
    return (channels + head_dim // 2) % head_dim
  return channels ^ 1


def rotate(x: Array, kind: str, grid: tuple[int, int], prefix: int) -> Array:
  """Turns queries or keys `[batch, heads, tokens, head_dim]` of leading tokens."""
  cosine, sine = rotary_table(kind, grid, prefix, x.shape[-1])
  wide: Array = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  if ROTARIES[kind].halves:
    partner: Array = jnp.roll(wide, x.shape[-1] // 2, axis=-1)
  else:
    pairs = wide.reshape(*wide.shape[:-1], -1, 2)
    partner = pairs[..., ::-1].reshape(wide.shape)
  count = x.shape[-2]
  turned = wide * cosine[:count].astype(wide.dtype)
  turned = turned + partner * sine[:count].astype(wide.dtype)
  return turned.astype(x.dtype)
