"""Streamed moments do not depend on batches, devices or layout."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from lambda_vit_jax.analysis import moments
from lambda_vit_jax.analysis.blocks import pooled_moments
from lambda_vit_jax.analysis.images import AXIS, Placement
from lambda_vit_jax.core.errors import DataError
from tests.support.processes import run_processes

# Largest relative error of σ against float64.
SIGMA_BOUND = 1e-6

# The smaller part of a two-float quotient is 2^-12 of it and has 24 digits:
# 2^-36 = 1.5e-11 a step, and a few steps.
SAME_TO_ROUNDING = 1e-9


@pytest.fixture(scope='module')
def ill_conditioned():
  """50,000 × 768: some channels have mean 100 and σ 0.1, some are constant."""
  rng = np.random.default_rng(0)
  features = rng.normal(size=(50_000, 768)).astype(np.float32)
  features[:, :300] = 100.0 + 0.1 * features[:, :300]
  features[:, 300:310] = 100.1
  return features


def _statistics(streamed):
  return moments.to_host(streamed).pooled()


def _streamed(features, size):
  streamed = moments.empty(features.shape[-1])
  for start in range(0, len(features), size):
    streamed = moments.update(streamed, features[start : start + size])
  return _statistics(streamed)


@pytest.mark.parametrize('size', [1, 50, 250, 50_000])
def test_sigma_of_ill_conditioned_features(ill_conditioned, size):
  exact = ill_conditioned.astype(np.float64)
  sigma, mean = exact.std(axis=0), exact.mean(axis=0)
  found = _streamed(ill_conditioned, size)
  live = sigma > 0.01
  error = np.abs(found.std - sigma)[live] / sigma[live]
  assert error.max() <= SIGMA_BOUND
  # A float32 of about 100 is off by 4e-6; the two-float mean is not.
  assert np.abs(found.mean - mean).max() < 1e-7
  assert found.count == 50_000
  np.testing.assert_array_equal(found.dead, ~live)


@hypothesis.given(
  hnp.arrays(
    np.float32,
    (12, 3),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
  ),
  st.permutations(range(12)),
)
def test_any_order_and_any_split_is_the_same(features, order):
  whole = _statistics(_moments(features))
  parts = [_moments(features[order][4 * i : 4 * (i + 1)]) for i in range(3)]
  left = _statistics(_merge(_merge(parts[0], parts[1]), parts[2]))
  right = _statistics(_merge(parts[2], _merge(parts[1], parts[0])))
  scale = np.abs(features).max() + 1.0
  for other in (left, right):
    np.testing.assert_allclose(
      other.mean, whole.mean, atol=scale * SAME_TO_ROUNDING
    )
    # σ near zero is the root of what rounding leaves of squares.
    np.testing.assert_allclose(
      other.std**2, whole.std**2, atol=(scale * 1e-6) ** 2, rtol=SIGMA_BOUND
    )
  exact = features.astype(np.float64)
  np.testing.assert_allclose(whole.mean, exact.mean(axis=0), atol=scale * 1e-9)


_moments = jax.jit(moments.moments_of)
_merge = jax.jit(moments.merge)


def test_empty_is_neutral(rng):
  streamed = _moments(rng.normal(size=(7, 3)).astype(np.float32) + 50)
  nothing = moments.empty(3)
  for merged in (_merge(streamed, nothing), _merge(nothing, streamed)):
    expected, found = map(_statistics, (streamed, merged))
    np.testing.assert_allclose(found.std, expected.std, rtol=SAME_TO_ROUNDING)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=SAME_TO_ROUNDING)


def test_masked_padding_does_not_count(rng):
  features = rng.normal(size=(6, 5, 4)).astype(np.float32)
  padded = np.concatenate([features, np.full((3, 5, 4), np.nan, np.float32)])
  mask = np.arange(9) < 6
  found = _statistics(_moments(padded, mask))
  exact = features.astype(np.float64).reshape(-1, 4)
  assert found.count == 30
  np.testing.assert_allclose(found.std, exact.std(axis=0), rtol=1e-7)


def test_no_sample_is_no_nan():
  nothing = _moments(np.full((3, 2), np.nan, np.float32), np.zeros(3, bool))
  for streamed in (nothing, _moments(np.zeros((0, 2), np.float32))):
    for leaf in jax.tree.leaves(streamed):
      np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_half_precision_is_read_as_float32(rng):
  features = jnp.asarray(rng.normal(size=(64, 3)), jnp.bfloat16)
  found = _statistics(_moments(features))
  exact = np.asarray(features, np.float64).std(axis=0)
  np.testing.assert_allclose(found.std, exact, rtol=1e-7)


def _placement(devices):
  return Placement(Mesh(np.asarray(jax.devices()[:devices]), (AXIS,)))


_pooled = jax.jit(pooled_moments, static_argnums=2)


@pytest.mark.parametrize('devices', [1, 2, 3, 5, 6, 8])
def test_same_over_a_mesh_with_a_ragged_last_batch(rng, devices):
  rows = -(-14 // devices) * devices
  features = (100 + 0.1 * rng.normal(size=(rows, 3, 5))).astype(np.float32)
  mask = np.arange(rows) < 13
  placement = _placement(devices)
  split = jax.device_put((features, mask), placement.batch)
  found = _statistics(_pooled(*split, placement))
  exact = features[:13].astype(np.float64).reshape(-1, 5).std(axis=0)
  np.testing.assert_allclose(found.std, exact, rtol=1e-7)
  assert found.count == 39


def test_channels_and_two_sample_axes_may_be_split(rng):
  features = rng.normal(size=(4, 6, 8)).astype(np.float32)
  devices = np.asarray(jax.devices()).reshape(2, 2, 2)
  mesh = Mesh(devices, ('data', 'tokens', 'channels'))

  def body(x):
    found = moments.merge_over_axis(moments.moments_of(x), 'tokens')
    return moments.merge_over_axis(found, 'data')

  scalar, channels = PartitionSpec(), PartitionSpec('channels')
  program = jax.shard_map(
    body,
    mesh=mesh,
    in_specs=PartitionSpec('data', 'tokens', 'channels'),
    out_specs=moments.Moments(scalar, scalar, *(channels,) * 4),
    # The count does not depend on the axis that splits the channels.
    check_vma=False,
  )
  found = _statistics(jax.jit(program)(features))
  exact = features.astype(np.float64).reshape(-1, 8).std(axis=0)
  np.testing.assert_allclose(found.std, exact, rtol=1e-7)


def test_pmap_outputs_and_axis_name(rng):
  features = rng.normal(size=(8, 4, 3)).astype(np.float32)
  exact = features.astype(np.float64).reshape(-1, 3).std(axis=0)
  doubled = jax.pmap(lambda x: x + x)(features)
  found = _statistics(_pooled(doubled, np.ones(8, bool), _placement(8)))
  np.testing.assert_allclose(found.std, 2 * exact, rtol=1e-7)

  @functools.partial(jax.pmap, axis_name='batch')
  def inside(x):
    return moments.merge_over_axis(moments.moments_of(x), 'batch')

  everywhere = inside(features)
  first = jax.tree.map(lambda leaf: leaf[0], everywhere)
  np.testing.assert_allclose(_statistics(first).std, exact, rtol=1e-7)


def test_inside_a_users_shard_map(rng):
  features = rng.normal(size=(16, 3)).astype(np.float32)
  mesh = Mesh(np.asarray(jax.devices()), ('data',))
  body = jax.shard_map(
    lambda x: moments.merge_over_axis(moments.moments_of(x), 'data'),
    mesh=mesh,
    in_specs=PartitionSpec('data'),
    out_specs=PartitionSpec(),
  )
  found = _statistics(jax.jit(body)(features))
  exact = features.astype(np.float64).std(axis=0)
  np.testing.assert_allclose(found.std, exact, rtol=1e-7)


_PROCESS = """
import sys
import jax
import numpy as np
from jax.sharding import Mesh
from lambda_vit_jax.analysis import moments
from lambda_vit_jax.analysis.blocks import pooled_moments
from lambda_vit_jax.analysis.images import AXIS, Placement
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
features = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
placement = Placement(Mesh(np.asarray(jax.devices()), (AXIS,)))
local = features[8 * int(sys.argv[2]):][:8]
split = placement.split(local), placement.split(np.ones(8, bool))
pooled = jax.jit(pooled_moments, static_argnums=2)(*split, placement)
found = moments.to_host(pooled).pooled()
exact = features.astype(np.float64).std(axis=0)
np.testing.assert_allclose(found.std, exact, rtol=1e-7)
print('same')
"""


@pytest.mark.slow
def test_same_over_two_processes():
  assert run_processes(_PROCESS) == ['same', 'same']


def test_dead_is_relative_to_a_large_mean():
  std = np.asarray([1e-5, 1e-3, np.nan])
  found = moments.ChannelStatistics(9.0, np.full(3, 100.0), std)
  np.testing.assert_array_equal(found.dead, [True, False, True])


def test_statistics_of_no_sample_are_refused():
  with pytest.raises(DataError, match='no sample'):
    _statistics(moments.empty(3))
