"""Resizing a grid of position embeddings: bicubic, antialiased, like timm."""

import numpy as np

from lambda_vit_jax.core.typing import Array

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
