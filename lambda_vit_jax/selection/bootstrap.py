"""Confidence intervals of scores: bootstrap over shards of the images.

The moments of the target are kept per shard of the images, so that resampling
the shards takes no further forward pass. Everything is float64.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.moments import HostMoments

# Two-sided 95% of a normal distribution.
_NORMAL_95 = 1.959964

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


@dataclasses.dataclass(frozen=True)
class Certainty:
  """The certainty of one round's choice, estimated from resamples.

  Attributes:
    intervals: 95% interval per candidate: the score ± 1.96 standard errors
      of the resamples.
    same_choice: `[resamples]` bool, whether a resample chooses the same.
    indistinguishable: candidates whose distance to the chosen one has a 95%
      interval that contains zero.
    suggested_images: images that would separate every other candidate from
      the chosen one if the distances are as estimated; None for more than ten
      million.
  """

  intervals: dict[int, tuple[float, float]]
  same_choice: np.ndarray
  indistinguishable: tuple[int, ...]
  suggested_images: int | None


def certainty(
  scores: Mapping[int, float],
  resampled: Mapping[int, np.ndarray],
  chosen: int,
  num_images: int,
  absolute: bool = False,
) -> Certainty:
  """Compares the candidates of one round.

  Args:
    scores: one per candidate.
    resampled: `[resamples]` scores per candidate.
    chosen: the candidate with the least score.
    num_images: images that the scores were measured on.
    absolute: whether the least absolute score was chosen.
  """
  blocks = sorted(scores)
  key = np.abs if absolute else np.asarray
  table = {block: key(resampled[block]) for block in blocks}
  choices = np.asarray(blocks)[np.stack(list(table.values())).argmin(axis=0)]
  intervals, alike, needed = {}, [], [2.0]
  for block in blocks:
    error = _NORMAL_95 * resampled[block].std()
    intervals[block] = (scores[block] - error, scores[block] + error)
    if block == chosen:
      continue
    distance = float(key(scores[block]) - key(scores[chosen]))
    spread = _NORMAL_95 * (table[block] - table[chosen]).std()
    if distance <= spread:
      alike.append(block)
    # Standard errors fall with the root of the number of images.
    ratio = spread / distance if distance > 0.0 else np.inf
    needed.append(num_images * ratio**2)
  most = max(needed)
  return Certainty(
    intervals,
    choices == chosen,
    tuple(alike),
    int(np.ceil(most)) if most <= _MOST_IMAGES else None,
  )
