"""Resize grids of tokens, logits and position embeddings.

Grids inside a model are resized by two products with small constant matrices,
which every backend and exported program can run, for any batch size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array


@functools.cache
def bilinear_matrix(size: int, new_size: int) -> np.ndarray:
  """`[new_size, size]` float32: values at pixel centres, linear in between.

  Beyond the outer centres the outermost value is repeated. Halving an even size
  averages pairs.
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

  Cell i covers floor(i·size / cells) up to ceil((i + 1)·size / cells), so cells
  overlap if their number does not divide the size.
  """
  matrix = np.zeros((cells, size), np.float32)
  for cell in range(cells):
    first = cell * size // cells
    last = -(-(cell + 1) * size // cells)
    matrix[cell, first:last] = 1 / (last - first)
  return matrix


def resample(x: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
  """Applies a matrix along each side of `[batch, height, width, channels]`."""
  x = jnp.einsum('nh,bhwc->bnwc', rows.astype(x.dtype), x)
  return jnp.einsum('nw,bhwc->bhnc', columns.astype(x.dtype), x)


def resize(x: Array, size: tuple[int, ...]) -> Array:
  """Bilinear interpolation to (height, width)."""
  height, width = x.shape[1:3]
  if (height, width) == size:
    return x
  return resample(
    x, bilinear_matrix(height, size[0]), bilinear_matrix(width, size[1])
  )


def resize_positions(
  positions: Array,
  source: tuple[int, int],
  target: tuple[int, int],
  num_prefix: int,
) -> np.ndarray:
  """Position embeddings for another grid of patches, by antialiased bicubic.

  Args:
    positions: `[1, num_prefix + rows·columns, embed]`.
    source: (rows, columns) of their grid.
    target: (rows, columns) of the new grid.
    num_prefix: leading slots (class token, …) that stay as they are.

  Returns:
    `[1, num_prefix + target rows·columns, embed]` in the dtype of
    `positions`; the resampling itself is float64.
  """
  positions = np.asarray(positions)
  if source == target:
    return positions
  width = positions.shape[-1]
  grid = positions[0, num_prefix:].reshape(*source, width)
  shape = (*target, width)
  with jax.enable_x64(True):
    grid = np.asarray(jax.image.resize(grid.astype(np.float64), shape, 'cubic'))
  resized = grid.reshape(1, -1, width).astype(positions.dtype)
  return np.concatenate([positions[:, :num_prefix], resized], axis=1)
