"""Cross-validate the ridge penalty: sums of products per fold of the images."""

import math

import jax
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.training_free import least_squares
from lambda_vit_jax.training_free.least_squares import CrossMoments, Sums

FOLDS = 4


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
