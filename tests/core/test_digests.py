"""Fingerprints of arrays on accelerators: the same, and waited for once."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from lambda_vit_jax.core import digests
from lambda_vit_jax.core.errors import CheckpointError


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


@pytest.mark.parametrize(
  'platforms, addressable, on_host',
  [
    (('cpu', 'cpu'), True, True),
    (('gpu',), True, False),
    (('cpu', 'tpu'), True, False),
    # Parts are in other processes.
    (('cpu',), False, False),
  ],
)
def test_what_numpy_can_read_without_a_copy(
  platforms, addressable, on_host, monkeypatch
):
  devices = [types.SimpleNamespace(platform=name) for name in platforms]
  leaf = types.SimpleNamespace(
    sharding=types.SimpleNamespace(device_set=devices),
    is_fully_addressable=addressable,
  )
  monkeypatch.setattr(jax, 'Array', types.SimpleNamespace)
  assert digests._is_on_host(leaf) == on_host


@pytest.mark.parametrize('name', ['model.bin', 'params'])
def test_a_file_that_is_gone_is_missed(tmp_path, name):
  listed = {'model.bin': 'a1', 'params/ocdbt': 'b2'}
  with pytest.raises(CheckpointError, match=f'{name}: is missing; export'):
    digests.check_files(epath.Path(tmp_path), listed, name)
