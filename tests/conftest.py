"""Strict numerics for every test: 8 CPU devices, no silent promotion."""

import os

# Before JAX starts its backend.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
).strip()

import jax
import numpy as np
import pytest

jax.config.update('jax_numpy_dtype_promotion', 'strict')
jax.config.update('jax_threefry_partitionable', True)


@pytest.fixture
def rng() -> np.random.Generator:
  return np.random.default_rng(0)
