"""Fit affine maps from a token, its image's mean and its neighbours.

The inputs of neighbourhood.py and their least squares. Every kind of map is
stored as a kernel of all the inputs, with zeros for those that it does not use.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.training_free import cross_validation, least_squares
from lambda_vit_jax.training_free.least_squares import AffineMap, CrossMoments

FOLDS = 4
NEIGHBOURHOODS = ('none', 'depthwise', 'separable', 'local mean', 'all eight')
SHIFTS = tuple(
  (row, column)
  for row in (-1, 0, 1)
  for column in (-1, 0, 1)
  if (row, column) != (0, 0)
)
# Of structured kernels of the neighbours.
RIDGES = cross_validation.RIDGES[::2]
TURNS = 5


# Inputs of the maps, in order, as multiples of D channels.
PARTS = {'token': 1, 'mean': 1, 'all eight': 8, 'local mean': 1}


def features(
  x: Array,
  epsilon: float,
  grid: tuple[int, int],
  parts: Sequence[str] = tuple(PARTS),
) -> Array:
  """`[images, tokens, 11·D]`: n(x), its mean, eight neighbours, local mean.

  Inputs from neighbours are 0 for tokens before the patches.

  Args:
    x: the stream.
    epsilon: of the norm.
    grid: rows and columns of the patches.
    parts: which of `PARTS` to return, in their order.
  """
  images, tokens, width = x.shape
  rows, columns = grid
  leading = tokens - rows * columns
  normal = normalize(x, epsilon)
  patches = normal[:, leading:].reshape(images, rows, columns, width)
  edge = ((0, 0), (1, 1), (1, 1), (0, 0))

  def shifted(values: Array, row: int, column: int) -> Array:
    padded = jnp.pad(values, edge)
    return padded[
      :, 1 + row : 1 + row + rows, 1 + column : 1 + column + columns
    ]

  neighbours = [shifted(patches, *shift) for shift in SHIFTS]
  here = jnp.ones((1, rows, columns, 1), x.dtype)
  number = here + sum(shifted(here, *shift) for shift in SHIFTS)

  def around(values: Array) -> Array:
    flat = values.reshape(images, rows * columns, -1)
    return jnp.pad(flat, ((0, 0), (leading, 0), (0, 0)))

  found = {
    'token': lambda: normal,
    'mean': lambda: jnp.broadcast_to(
      normal.mean(axis=1, keepdims=True), x.shape
    ),
    'all eight': lambda: around(jnp.concatenate(neighbours, axis=-1)),
    'local mean': lambda: around((patches + sum(neighbours)) / number),
  }
  return jnp.concatenate([found[part]() for part in parts], axis=-1)


def columns_of(part: str, width: int) -> np.ndarray:
  """Columns of one part of the features."""
  names = list(PARTS)
  first = sum(PARTS[name] for name in names[: names.index(part)])
  number = PARTS[part]
  return np.arange(first * width, (first + number) * width)


@functools.partial(jax.jit, static_argnames=('block', 'grid'))
def block_sums(
  block: EncoderBlock, params: Params, x: Array, grid: tuple[int, int]
) -> list[least_squares.Sums]:
  """`least_squares.batch_sums` of class token and patches, by fold."""
  _, taps = pieces.run_block(block, params, x)
  leading = x.shape[1] - grid[0] * grid[1]

  def by_fold(values: Array) -> Array:
    split = values.reshape(-1, FOLDS, *values.shape[1:])
    return jnp.swapaxes(split, 0, 1).reshape(FOLDS, -1, values.shape[-1])

  inputs = features(x, block.norm_eps, grid)
  found = []
  for tokens in (slice(leading), slice(leading, None)):
    parts = [by_fold(v[:, tokens]) for v in (inputs, taps['attention'])]
    keep = jnp.ones(parts[0].shape[:2], bool)
    found.append(jax.vmap(least_squares.batch_sums)(*parts, keep))
  return found


def pick(moments: CrossMoments, columns: np.ndarray) -> CrossMoments:
  """Moments of some of the inputs."""
  return CrossMoments(
    moments.count,
    moments.mean_in[columns],
    moments.mean_out,
    moments.in_in[np.ix_(columns, columns)],
    moments.in_out[columns],
    moments.out_out,
  )


def full_map(folds: Sequence[CrossMoments], columns: np.ndarray) -> AffineMap:
  """Least squares on some of the inputs, with zeros for the others."""
  parts = [pick(fold, columns) for fold in folds]
  found = least_squares.solve(
    least_squares.merged(parts), cross_validation.choose_ridge(parts)
  )
  kernel = np.zeros_like(folds[0].in_out)
  kernel[columns] = found.kernel
  return AffineMap(kernel, found.bias)


def solve_structured(
  moments: CrossMoments, base: np.ndarray, ridges: tuple[float, float], how: str
) -> AffineMap:
  """Fits a map of the base inputs and a structured map of the neighbours.

  The base is eliminated first, so that both parts are optimal together.

  Args:
    moments: of all inputs.
    base: their columns.
    ridges: of the base and of the neighbours.
    how: `depthwise` or `separable`.
  """
  width = moments.mean_out.size
  around = columns_of('all eight', width)
  gram = pick(moments, base).in_in
  gram = gram + ridges[0] * np.trace(gram) / len(gram) * np.eye(len(gram))
  cross = moments.in_in[np.ix_(base, around)]
  alone, explained = np.split(
    np.linalg.solve(gram, np.hstack([moments.in_out[base], cross])),
    [width],
    axis=1,
  )
  left = pick(moments, around)
  added = ridges[1] * np.trace(left.in_in) / len(around)
  shape = (len(SHIFTS), width)
  products = (left.in_in - cross.T @ explained).reshape(shape * 2)
  outputs = (left.in_out - cross.T @ alone).reshape(*shape, width)
  # Per output: weights of the shifts, and of the inputs.
  mix = np.eye(width)
  weights = _shift_weights(products, outputs, mix, added)
  if how == 'separable':
    for _ in range(TURNS):
      mix = _unit(_mix_weights(products, outputs, _unit(weights), added))
      weights = _shift_weights(products, outputs, mix, added)
  around_kernel = np.einsum('ok,oi->kio', weights, mix).reshape(-1, width)
  kernel = np.zeros_like(moments.in_out)
  kernel[around] = around_kernel
  kernel[base] = alone - explained @ around_kernel
  return AffineMap(kernel, moments.mean_out - moments.mean_in @ kernel)


def _unit(rows: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(rows, axis=1, keepdims=True)
  return rows / np.maximum(length, np.finfo(rows.dtype).tiny)


def _ridge_solution(
  products: np.ndarray, outputs: np.ndarray, added: float
) -> np.ndarray:
  """One small system per output channel."""
  size = products.shape[-1]
  # Outputs of a norm without affine sum to 0, so the system is singular
  # without a ridge.
  floor = 1e-9 * np.trace(products, axis1=1, axis2=2).max() / size
  system = products + max(added, floor) * np.eye(size)
  return np.linalg.solve(system, outputs[..., None])[..., 0]


def _shift_weights(
  products: np.ndarray, outputs: np.ndarray, mix: np.ndarray, added: float
) -> np.ndarray:
  """`[outputs, shifts]` given unit weights of the inputs."""
  half = np.tensordot(products, mix, axes=(3, 1))
  return _ridge_solution(
    np.einsum('kilo,oi->okl', half, mix),
    np.einsum('kio,oi->ok', outputs, mix),
    added,
  )


def _mix_weights(
  products: np.ndarray, outputs: np.ndarray, weights: np.ndarray, added: float
) -> np.ndarray:
  """`[outputs, inputs]` given unit weights of the shifts."""
  half = np.tensordot(weights, products, axes=(1, 0))
  return _ridge_solution(
    np.einsum('oilj,ol->oij', half, weights),
    np.einsum('kio,ok->oi', outputs, weights),
    added,
  )


def structured_map(
  folds: Sequence[CrossMoments], base: np.ndarray, how: str
) -> AffineMap:
  """`solve_structured` with both ridges chosen by held-out folds."""
  first = cross_validation.choose_ridge([pick(fold, base) for fold in folds])

  def error(ridge: float) -> float:
    total = 0.0
    for index, held_out in enumerate(folds):
      others = least_squares.merged(
        f for i, f in enumerate(folds) if i != index
      )
      affine = solve_structured(others, base, (first, ridge), how)
      total += held_out.squared_error(affine)
    return total

  best = min(RIDGES, key=error)
  return solve_structured(least_squares.merged(folds), base, (first, best), how)


def fit_maps(
  groups: Sequence[Sequence[CrossMoments]],
  inputs: Sequence[str],
  neighbourhood: str,
) -> tuple[AffineMap, AffineMap]:
  """The maps of class token and patches, with inputs as in `linearize`.

  Args:
    groups: folds of the class token and of the patches.
    inputs: of the base.
    neighbourhood: of `NEIGHBOURHOODS`.
  """
  width = groups[0][0].mean_out.size
  parts = [part for part in inputs if part != 'class_map']
  base = np.concatenate([columns_of(part, width) for part in parts])

  def fit(folds: Sequence[CrossMoments]) -> AffineMap:
    if neighbourhood in ('depthwise', 'separable'):
      return structured_map(folds, base, neighbourhood)
    if neighbourhood == 'none':
      return full_map(folds, base)
    around = columns_of(neighbourhood, width)
    return full_map(folds, np.concatenate([base, around]))

  everything = [
    least_squares.merged(folds) for folds in zip(*groups, strict=True)
  ]
  if 'class_map' not in inputs:
    return (fit(everything),) * 2
  shared = full_map(everything, base)
  correction = full_map([fold.beyond(shared) for fold in groups[0]], base)
  own = AffineMap(
    shared.kernel + correction.kernel, shared.bias + correction.bias
  )
  return own, fit(groups[1])
