"""Gaussian entropy and transfer entropy: closed forms and dead channels."""

import jax
import numpy as np
import pytest

from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.moments import (
  ChannelStatistics,
  moments_of,
  to_host,
)
from lambda_vit_jax.core.errors import DataError


def sigma_of(features):
  return to_host(jax.jit(moments_of)(features)).pooled().std


def test_entropy_is_the_closed_form_on_gaussian_data(rng):
  sigma = np.asarray([0.5, 2.0, 10.0])
  features = (rng.normal(size=(20_000, 3)) * sigma + 3).astype(np.float32)
  found = entropy.gaussian_entropy(sigma_of(features))
  closed = np.sum(0.5 * np.log(2 * np.pi * np.e * sigma**2))
  # log of an estimated σ has deviation 1/√(2n) = 0.005 per channel.
  assert abs(found - closed) < 4 * 0.005 * np.sqrt(3)


def test_scaling_a_channel_adds_its_log(rng):
  features = rng.normal(size=(100, 3)).astype(np.float32)
  plain = entropy.gaussian_entropy(sigma_of(features))
  scaled = entropy.gaussian_entropy(sigma_of(features * np.float32(4.0)))
  np.testing.assert_allclose(scaled - plain, 3 * np.log(4.0), rtol=1e-6)


def _statistics(std, mean=0.0):
  std = np.asarray(std, np.float64)
  return ChannelStatistics(10.0, np.full(std.shape, mean), std)


def test_dead_in_one_trial_is_left_out_of_all():
  base = _statistics([1.0, 2.0, 3.0])
  trials = {0: _statistics([2.0, 2.0, 0.0]), 1: _statistics([1.0, 4.0, 9.0])}
  found = entropy.transfer_entropy(base, trials)
  np.testing.assert_array_equal(found.excluded, [False, False, True])
  assert found.values[0] == pytest.approx(-np.log(2.0))
  assert found.values[1] == pytest.approx(-np.log(2.0))


def test_never_minus_infinity():
  with pytest.raises(DataError, match='every channel is constant'):
    entropy.transfer_entropy(_statistics([0.0]), {})
  with pytest.raises(DataError, match='1 channels have deviation 0'):
    entropy.gaussian_entropy(np.asarray([0.0, 1.0]))
