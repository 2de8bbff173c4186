"""Streaming mean and variance per channel, exact over batches and devices.

Features are `[..., channels]`; every leading axis is a sample axis. The state
is O(channels): a count, a mean and a sum of squared deviations (M2), each an
unevaluated sum of two floats (`twofloat`), so that merging many small batches
loses nothing that float32 features hold.

`moments_of` reduces the samples of one device, `merge` (Chan's parallel
update) joins two results, and `merge_stack` joins many in a fixed order.
`merge_over_axis` does the same inside `jax.pmap` and `jax.shard_map`. The last
step is float64 on the host: `to_host`, `HostMoments.pooled`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.analysis import twofloat
from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.typing import Array

DEAD_TOLERANCE = 1e-6
"""A channel is dead if σ is at most this times max(1, |mean|)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
  """Count, mean and M2 of pooled samples, each `value + value_low`.

  All fields may have the same leading axes (shards, devices).

  Attributes:
    count: `[...]`, samples.
    count_low: `[...]`, the rounding error of `count`.
    mean: `[..., channels]`.
    mean_low: `[..., channels]`.
    m2: `[..., channels]`, sum of squared deviations from the mean.
    m2_low: `[..., channels]`.
  """

  count: Array
  count_low: Array
  mean: Array
  mean_low: Array
  m2: Array
  m2_low: Array


def empty(
  channels: int, leading: tuple[int, ...] = (), dtype: Any = jnp.float32
) -> Moments:
  """Moments of no samples, the neutral element of `merge`, on the host."""
  return Moments(
    *(np.zeros(leading, dtype) for _ in range(2)),
    *(np.zeros((*leading, channels), dtype) for _ in range(4)),
  )


def moments_of(features: Array, mask: Array | None = None) -> Moments:
  """Pooled moments of the features of one device; traceable.

  One pass over the deviations from the first unmasked sample. It is at most
  √samples standard deviations away from the mean, for which two-float sums
  have digits to spare.

  Args:
    features: `[..., channels]`; half precision is read as float32.
    mask: `[...]` bool, False for padding; it may lack trailing axes:
      `[batch]` masks features `[batch, tokens, channels]`.

  Returns:
    Moments without leading axes.
  """
  features = jnp.asarray(features)
  wide = features.dtype == jnp.float64
  dtype = jnp.float64 if wide else jnp.float32
  samples = features.shape[:-1]
  rows = features.astype(dtype).reshape(-1, features.shape[-1])
  if not rows.shape[0]:
    return jax.tree.map(jnp.asarray, empty(rows.shape[-1], dtype=dtype))
  mask = jnp.asarray(True if mask is None else mask, bool)
  mask = mask.reshape(mask.shape + (1,) * (len(samples) - mask.ndim))
  keep = jnp.broadcast_to(mask, samples).reshape(-1, 1)
  number = keep.sum(dtype=jnp.int32)
  count = number.astype(dtype)
  count_low = (number - count.astype(jnp.int32)).astype(dtype)
  divisor = jnp.maximum(count, 1.0)
  first = jnp.argmax(keep[:, 0])
  shift = jnp.where(number > 0, rows[first], 0.0)

  def deviations(chunk: Array, keep: Array) -> twofloat.Pairs:
    high, low = twofloat.two_sum(jnp.where(keep, chunk, shift), -shift)
    square, square_low = twofloat.product(high, high)
    return [(high, low), (square, square_low + 2.0 * high * low)]

  (total, total_low), square = twofloat.sum_rows(rows, keep, deviations)
  offset, offset_low = twofloat.divide(total, total_low, divisor)
  mean = twofloat.add(shift, jnp.zeros_like(shift), offset, offset_low)
  product, product_low = twofloat.product(-total, offset)
  product_low = product_low - total * offset_low - total_low * offset
  m2 = twofloat.add(*square, product, product_low)
  return Moments(count, count_low, *mean, *m2)


def merge(a: Moments, b: Moments) -> Moments:
  """Moments of the union of two disjoint sets of samples (Chan); traceable.

  With δ = mean_b - mean_a and n = n_a + n_b: mean = mean_a + δ·n_b/n and
  M2 = M2_a + M2_b + δ²·n_a·n_b/n.
  """
  count, count_low = twofloat.add(a.count, a.count_low, b.count, b.count_low)
  share, share_low = twofloat.divide(
    b.count, b.count_low, jnp.maximum(count, 1.0)
  )
  share, share_low = share[..., None], share_low[..., None]
  delta, delta_low = twofloat.add(b.mean, b.mean_low, -a.mean, -a.mean_low)
  step, step_low = twofloat.product(delta, share)
  step_low = step_low + delta * share_low + delta_low * (share + share_low)
  mean = twofloat.add(a.mean, a.mean_low, step, step_low)
  delta = delta + delta_low
  weight = a.count[..., None] * (share + share_low)
  m2 = twofloat.add(
    *twofloat.add(a.m2, a.m2_low, b.m2, b.m2_low),
    *twofloat.product(delta * delta, weight),
  )
  return Moments(count, count_low, *mean, *m2)


def merge_stack(moments: Moments) -> Moments:
  """Merges the leading axis away, pair by pair in a fixed order; traceable."""
  count = moments.count.shape[0]
  while count > 1:
    half = count // 2
    merged = merge(
      jax.tree.map(lambda leaf, n=half: leaf[: 2 * n : 2], moments),
      jax.tree.map(lambda leaf, n=half: leaf[1 : 2 * n : 2], moments),
    )
    if count % 2:
      merged = jax.tree.map(
        lambda leaf, last: jnp.concatenate([leaf, last[-1:]]), merged, moments
      )
    moments, count = merged, half + count % 2
  return jax.tree.map(lambda leaf: leaf[0], moments)


@functools.partial(jax.jit, donate_argnums=0)
def update(
  moments: Moments, features: Array, mask: Array | None = None
) -> Moments:
  """`moments` with one more batch; jitted, `moments` is donated."""
  return merge(moments, moments_of(features, mask))


def merge_over_axis(moments: Moments, axis_name: str) -> Moments:
  """Merges over a mapped axis, in a `pmap` or `shard_map` body.

  The gather is a sum of slots that are zero on all other devices: exact, and
  the result counts as replicated, so that `out_specs=PartitionSpec()` holds.
  """
  size = jax.lax.axis_size(axis_name)
  index = jax.lax.axis_index(axis_name)

  def gather(leaf: Array) -> Array:
    slots = jnp.zeros((size, *leaf.shape), leaf.dtype).at[index].set(leaf)
    return jax.lax.psum(slots, axis_name)

  return merge_stack(jax.tree.map(gather, moments))


@dataclasses.dataclass(frozen=True)
class ChannelStatistics:
  """Float64 statistics of pooled samples, on the host.

  Attributes:
    count: samples.
    mean: `[channels]`.
    std: `[channels]`, population form (ddof 0).
  """

  count: float
  mean: np.ndarray
  std: np.ndarray

  @property
  def dead(self) -> np.ndarray:
    """`[channels]` bool: constant up to rounding, so without information."""
    scale = np.maximum(1.0, np.abs(self.mean))
    return ~(self.std > DEAD_TOLERANCE * scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HostMoments:
  """`Moments` in float64 on the host.

  `count` is `[...]`, the others are `[..., channels]`.
  """

  count: np.ndarray
  mean: np.ndarray
  m2: np.ndarray

  def total(self) -> 'HostMoments':
    """Moments of the samples of all leading axes together."""
    channels = self.mean.shape[-1]
    count = self.count.reshape(-1, 1)
    mean = self.mean.reshape(-1, channels)
    total = count.sum()
    # Deviations from one shard's mean: no cancellation of a large mean.
    shift = mean[int(count.argmax())]
    offset = (count * (mean - shift)).sum(axis=0) / max(total, 1.0)
    spread = (count * (mean - shift - offset) ** 2).sum(axis=0)
    m2 = self.m2.reshape(-1, channels).sum(axis=0) + spread
    return HostMoments(total, shift + offset, np.maximum(m2, 0.0))

  def pooled(self) -> ChannelStatistics:
    """Statistics of the samples of all leading axes together.

    Raises:
      DataError: no sample.
    """
    total = self.total()
    count = float(total.count)
    if not count:
      raise DataError('entropy of no sample: give at least one batch of images')
    return ChannelStatistics(count, total.mean, np.sqrt(total.m2 / count))


def merge_host(a: HostMoments, b: HostMoments) -> HostMoments:
  """Moments of the union, without leading axes."""
  parts = (a.total(), b.total())
  return jax.tree.map(lambda *leaves: np.stack(leaves), *parts).total()


def to_host(moments: Moments) -> HostMoments:
  """Fetches moments and adds their two floats in float64."""
  host = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), moments)
  return HostMoments(
    host.count + host.count_low,
    host.mean + host.mean_low,
    host.m2 + host.m2_low,
  )
