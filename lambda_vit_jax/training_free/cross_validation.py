"""Cross-validate the ridge penalty: sums of products per fold of the images."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.training_free import least_squares
from lambda_vit_jax.training_free.least_squares import (
  CrossMoments,
  RidgeSolver,
  Sums,
  merged,
)

FOLDS = 4

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Ridges that `choose_ridge` tries, as shares of the inputs' mean variance."""

QUICK_RIDGES = (1e-4, 3e-3, 1e-1)
"""Those of `quick_ridge`."""


def fold_sums(inputs: Array, outputs: Array, weights: Array) -> Sums:
  """`least_squares.batch_sums` with a leading axis over folds; traceable.

  Image i is in fold i modulo the number of folds, the largest divisor of
  `FOLDS` that divides the batch.

  Args:
    inputs: `[batch, tokens, inputs]`.
    outputs: `[batch, tokens, outputs]`.
    weights: `[batch, tokens]`, 0 (or False) for padding.
  """
  folds = math.gcd(len(weights), FOLDS)

  def by_fold(features: Array) -> Array:
    batch, tokens, *channels = features.shape
    split = features.reshape(batch // folds, folds, tokens, *channels)
    return jnp.swapaxes(split, 0, 1).reshape(folds, -1, *channels)

  split = map(by_fold, (inputs, outputs, weights))
  return jax.vmap(least_squares.batch_sums)(*split)


class FoldMoments:
  """The moments of each fold, accumulated over micro-batches."""

  def __init__(self) -> None:
    self._sums = [least_squares.Accumulator() for _ in range(FOLDS)]

  @property
  def folds(self) -> list[CrossMoments]:
    """Moments of the folds that have samples."""
    return [sums.moments() for sums in self._sums if not sums.is_empty]

  def add(self, position: int, sums: Sums) -> None:
    """Adds the sums of the micro-batch at a position, on the host."""
    number = len(sums[0])
    # Small micro-batches hold few folds each, and then take turns.
    first = position % (FOLDS // number) * number
    for fold in range(number):
      self._sums[first + fold].add(tuple(leaf[fold] for leaf in sums))


def held_out_errors(
  folds: Sequence[CrossMoments], ridges: Sequence[float] = RIDGES
) -> np.ndarray:
  """`[ridges]`: squared error of each fold under the map of the others."""
  errors = np.zeros(len(ridges))
  for index, held_out in enumerate(folds):
    solver = RidgeSolver(merged(f for i, f in enumerate(folds) if i != index))
    errors += solver.errors(held_out, ridges)
  return errors


def choose_ridge(
  folds: Sequence[CrossMoments], ridges: Sequence[float] = RIDGES
) -> float:
  """The ridge with the smallest held-out error; on a tie, the largest.

  Args:
    folds: moments of disjoint sets of images. Tokens of one image resemble
      each other, so a fold must hold whole images: splitting tokens, or any
      formula that counts them as independent, chooses too small a ridge.
    ridges: to choose from, ascending.

  Returns:
    The smallest of `ridges` if there are not two folds with samples.
  """
  folds = [fold for fold in folds if fold.count > 0]
  if len(folds) < 2:
    return ridges[0]
  return best_ridge(held_out_errors(folds, ridges), ridges)


def best_ridge(errors: np.ndarray, ridges: Sequence[float] = RIDGES) -> float:
  """The ridge of the smallest error; on a tie, the largest."""
  # Errors that differ only by rounding are a tie; where nothing is left to
  # explain, one may even fall below zero.
  best = errors <= errors.min() + 1e-9 * np.abs(errors).max()
  return ridges[int(np.flatnonzero(best)[-1])]


ChooseRidge = Callable[[Sequence[CrossMoments]], float]
"""Takes the moments of folds to a ridge: `choose_ridge` or `quick_ridge`."""


def quick_ridge(folds: Sequence[CrossMoments]) -> float:
  """The one of three ridges with the least error on the last fold.

  It costs three factorisations, and `choose_ridge` four eigendecompositions, each
  of which takes five times as long or longer for the hidden layer of an MLP.
  """
  folds = [fold for fold in folds if fold.count > 0]
  if len(folds) < 2:
    return QUICK_RIDGES[0]
  *most, held_out = folds
  whole = merged(most)
  errors = [
    held_out.squared_error(least_squares.solve(whole, ridge))
    for ridge in QUICK_RIDGES
  ]
  return best_ridge(np.asarray(errors), QUICK_RIDGES)
