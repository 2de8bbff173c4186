"""Moments by parts of the images, each held out once to choose the ridge."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from lambda_vit_jax import linear
from lambda_vit_jax.linear import CrossMoments, Sums
from lambda_vit_jax.typing import Array

FOLDS = 4


def folds_within(size: int) -> int:
  """How many of the folds a micro-batch of `size` images is divided into."""
  return math.gcd(size, FOLDS)


def fold_sums(inputs: Array, outputs: Array, keep: Array, folds: int) -> Sums:
  """`linear.batch_sums` with a leading axis over folds; traceable.

  Args:
    inputs: `[batch, tokens, inputs]`; image i is in fold i modulo `folds`.
    outputs: `[batch, tokens, outputs]`.
    keep: `[batch, tokens]` bool, False for padding.
    folds: a divisor of the batch.
  """
  split = (_by_fold(values, folds) for values in (inputs, outputs, keep))
  return jax.vmap(linear.batch_sums)(*split)


def _by_fold(features: Array, folds: int) -> Array:
  """`[batch, tokens, ...]` to `[folds, batch / folds · tokens, ...]`."""
  batch, tokens, *channels = features.shape
  split = features.reshape(batch // folds, folds, tokens, *channels)
  return jnp.swapaxes(split, 0, 1).reshape(folds, -1, *channels)


class FoldMoments:
  """The moments of each fold, over the micro-batches that come."""

  def __init__(self) -> None:
    self.folds: list[CrossMoments] = []

  def add(self, position: int, sums: Sums) -> None:
    """Takes in the sums of the micro-batch at a position, on the host."""
    here: Sequence[CrossMoments] = [
      CrossMoments.from_sums(tuple(leaf[fold] for leaf in sums))
      for fold in range(len(sums[0]))
    ]
    if not self.folds:
      empty = CrossMoments.empty(*here[0].in_out.shape)
      self.folds = [empty] * FOLDS
    # Small micro-batches hold few folds each; then several take turns.
    first = position % (FOLDS // len(here)) * len(here)
    for fold, part in enumerate(here, first):
      self.folds[fold] = self.folds[fold].merge(part)
