"""BEiT's relative positions: a bias of the scores for each offset of two patches.

A table has one row of `heads` numbers for each offset (rows, columns) between two
patches, and three more: from the class token to a patch, from a patch to it, and
from it to itself.
"""

import functools

import numpy as np

from lambda_vit_jax.core.typing import Array

TABLE = 'relative_position_bias_table'
"""timm's name of the parameter."""

_OF_CLASS_TOKEN = 3

# Bounds of the growth of the distances between rows of a resized table.
_GROWTH = (1.01, 1.5)
_BISECTIONS = 19


def table_rows(grid: tuple[int, int]) -> int:
  """Rows of the table for a grid of patches."""
  rows, columns = grid
  return (2 * rows - 1) * (2 * columns - 1) + _OF_CLASS_TOKEN


@functools.cache
def relative_index(grid: tuple[int, int]) -> np.ndarray:
  """The row of the table for each query and key, `[tokens, tokens]`."""
  rows, columns = grid
  row, column = (axis.ravel() for axis in np.indices(grid))
  down = row[:, None] - row + rows - 1
  right = column[:, None] - column + columns - 1
  count = table_rows(grid)
  index = np.full((row.size + 1,) * 2, count - 1)
  index[1:, 1:] = down * (2 * columns - 1) + right
  index[0, 1:] = count - 3
  index[1:, 0] = count - 2
  return index


def resize_table(
  table: Array, source: tuple[int, int], target: tuple[int, int]
) -> np.ndarray:
  """The table for another grid, as BEiT's authors and timm make it.

  Small offsets keep their rows; between larger ones the old rows are ever
  further apart, and new rows are interpolated linearly.

  Args:
    table: `[table_rows(source), heads]`.
    source: (rows, columns) of its grid.
    target: (rows, columns) of the new grid.
  """
  table = np.asarray(table)
  if source == target:
    return table
  offsets = table[:-_OF_CLASS_TOKEN].astype(np.float64)
  shape = 2 * source[0] - 1, 2 * source[1] - 1, -1
  down, right = (
    _between(2 * old - 1, 2 * new - 1)
    for old, new in zip(source, target, strict=True)
  )
  resized = np.einsum('ab,bch,dc->adh', down, offsets.reshape(shape), right)
  resized = resized.reshape(-1, table.shape[1]).astype(table.dtype)
  return np.concatenate([resized, table[-_OF_CLASS_TOKEN:]])


def _between(old: int, new: int) -> np.ndarray:
  """Linear interpolation of `old` rows to `new` ones, `[new, old]`."""
  half = old // 2
  low, high = _GROWTH
  for _ in range(_BISECTIONS):
    growth = (low + high) / 2
    if (growth**half - 1) / (growth - 1) > new // 2:
      high = growth
    else:
      low = growth
  # 1, 1 + q, 1 + q + q², …
  steps = growth ** np.arange(half)
  places = np.cumsum(steps)
  places = np.concatenate([-places[::-1], [0.0], places])
  wanted = np.arange(new) - new // 2
  return np.stack(
    [np.interp(wanted, places, row) for row in np.eye(old)], axis=1
  )
