"""Confidence intervals of scores: bootstrap over shards of the images.

The moments of the target are kept per shard of the images, so that resampling
the shards takes no further forward pass. Everything is float64.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.moments import HostMoments
from lambda_vit_jax.selection.options import Sign
from lambda_vit_jax.selection.record import Round

# Candidates that need more images than this are as good as equal.
_MOST_IMAGES = 10_000_000


def resample_weights(
  shards: int, resamples: int, seed: int
) -> np.ndarray | None:
  """How often each resample draws each shard, `[resamples, shards]`.

  They are the same in every round, so that whole searches are resampled. None
  for fewer than two shards or resamples.
  """
  if shards < 2 or resamples < 2:
    return None
  rng = np.random.default_rng(seed)
  return rng.multinomial(shards, np.full(shards, 1.0 / shards), resamples)


def resampled_statistics(
  moments: HostMoments, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Pooled mean and σ of each resample, `[resamples, channels]`.

  Args:
    moments: with one leading axis, the shards.
    weights: `[resamples, shards]`.
  """
  centre = moments.pooled().mean
  offset = moments.mean - centre
  count = moments.count[:, None]
  total = np.maximum(weights @ count, 1.0)
  mean = weights @ (count * offset) / total
  square = weights @ (moments.m2 + count * offset**2) / total
  return centre + mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def resampled_entropy(
  moments: HostMoments, weights: np.ndarray, exclude: np.ndarray
) -> np.ndarray:
  """Entropy of each resample in nats, `[resamples]`.

  A channel that is constant in a resample counts with the smallest positive
  deviation instead of -inf.
  """
  _, std = resampled_statistics(moments, weights)
  std = np.maximum(std, np.finfo(np.float64).tiny)
  return entropy.gaussian_entropy(std, exclude)


def half_width(shards: int) -> float:
  """Half a 95% interval, in standard deviations of the resamples.

  With n shards, resampling understates a standard error by √((n − 1)/n); and
  as the error is estimated from n shards, the distance to the true score
  follows Student's t with n − 1 degrees of freedom.
  """
  # A part of JAX's own installation; loaded only where it is used.
  import scipy.special

  quantile = float(scipy.special.stdtrit(shards - 1, 0.975))
  return quantile * math.sqrt(shards / (shards - 1))


def certainty(
  row: Round,
  resampled: Mapping[int, np.ndarray],
  shards: int,
  num_images: int,
  sign: Sign = 'signed',
) -> Round:
  """Adds to a round how certain its choice is.

  `suggested_images` holds if the distances between scores are as estimated.

  Args:
    row: scores and the chosen block.
    resampled: `[resamples]` scores per candidate.
    shards: how many were resampled, at least two.
    num_images: images that the scores were measured on.
    sign: `absolute` if the score of least magnitude was chosen.
  """
  scores, chosen = row.scores, row.chosen
  blocks = sorted(scores)
  key = np.abs if sign == 'absolute' else np.asarray
  table = {block: key(resampled[block]) for block in blocks}
  choices = np.asarray(blocks)[np.stack(list(table.values())).argmin(axis=0)]
  width = half_width(shards)
  intervals, alike, needed = {}, [], [2.0]
  for block in blocks:
    error = width * resampled[block].std()
    intervals[block] = (scores[block] - error, scores[block] + error)
    if block == chosen:
      continue
    distance = float(key(scores[block]) - key(scores[chosen]))
    spread = width * (table[block] - table[chosen]).std()
    if distance <= spread:
      alike.append(block)
    # Standard errors fall with the root of the number of images.
    ratio = spread / distance if distance > 0.0 else np.inf
    needed.append(num_images * ratio**2)
  most = max(needed)
  return dataclasses.replace(
    row,
    intervals=intervals,
    indistinguishable=tuple(alike),
    suggested_images=int(np.ceil(most)) if most <= _MOST_IMAGES else None,
    agreeing=np.packbits(choices == chosen).tobytes().hex(),
  )
