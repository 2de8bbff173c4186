"""Fingerprints of arrays on accelerators: the same, and waited for once."""

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core import digests


def test_arrays_of_accelerators_are_summed_there_and_waited_for_once(
  monkeypatch, rng
):
  """Copying a state to the host, leaf by leaf, would hold up every save."""
  tree = {
    'kernel': jnp.asarray(rng.normal(size=(5, 7)), jnp.float32),
    'half': jnp.asarray(rng.normal(size=(3,)), jnp.bfloat16),
    'step': jnp.asarray(7, jnp.int32),
    'host': np.arange(4.0, dtype=np.float32),
  }
  expected = digests.fingerprint(tree)
  # As if what JAX holds were on an accelerator.
  monkeypatch.setattr(
    digests, '_is_on_host', lambda leaf: not isinstance(leaf, jax.Array)
  )
  waited = []
  device_get = jax.device_get

  def wait(values):
    waited.append([isinstance(value, jax.Array) for value in values])
    return device_get(values)

  monkeypatch.setattr(jax, 'device_get', wait)
  assert digests.fingerprint(tree) == expected
  # In the order of names: half, host, kernel, step. Only sums are copied.
  assert waited == [[True, False, True, True]]


def test_arrays_of_a_cpu_are_read_where_they_are():
  assert digests._is_on_host(np.ones(2))
  assert digests._is_on_host(jnp.ones(2))
