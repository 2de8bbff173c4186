"""Grids of another size: two products with small constant matrices.

Any back end and any exported program runs them, for any batch size.
"""

import functools

import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array


@functools.cache
def bilinear_matrix(size: int, new_size: int) -> np.ndarray:
  """`[new_size, size]` float32: values at pixel centres, linear in between.

  Beyond the outer centres the outermost value holds. Halving an even size is
  the mean of pairs.
  """
  places = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
  places = np.clip(places, 0, size - 1)
  low = np.minimum(np.floor(places).astype(int), max(size - 2, 0))
  share = places - low
  matrix = np.zeros((new_size, size))
  rows = np.arange(new_size)
  matrix[rows, low] += 1 - share
  matrix[rows, np.minimum(low + 1, size - 1)] += share
  return matrix.astype(np.float32)


@functools.cache
def pooling_matrix(size: int, cells: int) -> np.ndarray:
  """`[cells, size]` float32: means over cells that cover the axis.

  Cell i covers floor(i·size / cells) up to ceil((i + 1)·size / cells), so that
  cells overlap where they do not divide the axis.
  """
  matrix = np.zeros((cells, size), np.float32)
  for cell in range(cells):
    first = cell * size // cells
    last = -(-(cell + 1) * size // cells)
    matrix[cell, first:last] = 1 / (last - first)
  return matrix


def resample(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
  """`[batch, height, width, channels]` with a matrix along each side."""
  x = jnp.einsum('nh,bhwc->bnwc', rows.astype(x.dtype), x)
  return jnp.einsum('nw,bhwc->bhnc', columns.astype(x.dtype), x)


def resize(x: Array, size: tuple[int, int]) -> Array:
  """Bilinear interpolation to (height, width)."""
  height, width = x.shape[1:3]
  if (height, width) == size:
    return x
  return resample(
    x, bilinear_matrix(height, size[0]), bilinear_matrix(width, size[1])
  )


def size_of_grid(x: Array) -> tuple[int, int]:
  """Rows and columns of `[batch, rows, columns, channels]`."""
  return x.shape[1], x.shape[2]


_CUBIC = -0.5


def _cubic(distance: np.ndarray) -> np.ndarray:
  """Keys' cubic kernel with a = -1/2, the one of antialiased bicubic."""
  t = np.abs(distance)
  near = ((_CUBIC + 2.0) * t - (_CUBIC + 3.0)) * t * t + 1.0
  far = _CUBIC * (((t - 5.0) * t + 8.0) * t - 4.0)
  return np.where(t < 1.0, near, np.where(t < 2.0, far, 0.0))


def resize_matrix(source: int, target: int) -> np.ndarray:
  """Weights `[target, source]` float64 of antialiased bicubic resampling.

  Pixel centres lie at halves; shrinking widens the kernel by the ratio, and
  at the borders the weights are normalised over what is there.
  """
  ratio = source / target
  width = max(ratio, 1.0)
  centres = (np.arange(target) + 0.5) * ratio
  distance = np.arange(source) + 0.5 - centres[:, None]
  weights = _cubic(distance / width)
  return weights / weights.sum(axis=1, keepdims=True)


def resize_positions(
  positions: Array,
  source: tuple[int, int],
  target: tuple[int, int],
  num_prefix: int,
) -> np.ndarray:
  """Position embeddings of another grid of patches.

  Args:
    positions: `[1, num_prefix + rows·columns, embed]`.
    source: (rows, columns) of the grid that they belong to.
    target: (rows, columns) wanted.
    num_prefix: leading slots (class token, …) that stay as they are.

  Returns:
    `[1, num_prefix + target rows·columns, embed]` in the dtype of
    `positions`; the resampling itself is float64.
  """
  positions = np.asarray(positions)
  if source == target:
    return positions
  grid = positions[0, num_prefix:].reshape(*source, -1).astype(np.float64)
  rows = resize_matrix(source[0], target[0])
  columns = resize_matrix(source[1], target[1])
  resized = np.einsum('rh,cw,hwd->rcd', rows, columns, grid, optimize=True)
  resized = resized.reshape(1, -1, positions.shape[-1])
  return np.concatenate(
    [positions[:, :num_prefix], resized.astype(positions.dtype)], axis=1
  )
