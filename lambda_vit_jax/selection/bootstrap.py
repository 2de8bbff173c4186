"""How sure a choice is: bootstrap over shards of the images, in float64.

The moments of the target are kept per shard of the images. Resampling the
shards gives as many pooled deviations as wanted, without another forward.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.moments import HostMoments

# Two-sided 95% of a normal distribution.
_NORMAL_95 = 1.959964

# Suggesting more images than this is saying that the two are equal.
_MOST_IMAGES = 10_000_000


def resample_weights(
  shards: int, resamples: int, seed: int
) -> np.ndarray | None:
  """How often each resample draws each shard, `[resamples, shards]`.

  The same in every round of a search, so that whole searches are resampled.
  None where there are fewer than two shards or resamples.
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
  """What the resamples of one round say.

  Attributes:
    intervals: 95% interval per candidate: the score ± 1.96 standard errors
      of the resamples.
    same_choice: `[resamples]` bool, whether a resample chooses alike.
    indistinguishable: candidates whose distance to the chosen one is within
      its own 95% interval of zero.
    suggested_images: images that would tell every other candidate from the
      chosen one, were the distances as estimated; None where that is more
      than ten million.
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
    num_images: images behind the scores.
    absolute: whether the least absolute score was chosen.
  """
  blocks = sorted(scores)
  key = np.abs if absolute else np.asarray
  table = np.stack([key(resampled[block]) for block in blocks])
  choices = np.asarray(blocks)[table.argmin(axis=0)]
  intervals, alike, needed = {}, [], []
  for row, block in enumerate(blocks):
    error = _NORMAL_95 * resampled[block].std()
    intervals[block] = (scores[block] - error, scores[block] + error)
    if block == chosen:
      continue
    distance = float(key(scores[block]) - key(scores[chosen]))
    spread = _NORMAL_95 * (table[row] - table[blocks.index(chosen)]).std()
    if distance <= spread:
      alike.append(block)
    # Standard errors fall with the root of the number of images.
    if distance > 0.0:
      needed.append(num_images * (spread / distance) ** 2)
    else:
      needed.append(np.inf)
  most = max(needed, default=0.0)
  return Certainty(
    intervals,
    choices == chosen,
    tuple(alike),
    int(np.ceil(max(most, 2))) if most <= _MOST_IMAGES else None,
  )
