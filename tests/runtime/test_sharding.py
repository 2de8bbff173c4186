"""Meshes, and that the placement of arrays changes no number."""

import types

import jax
import numpy as np
import pytest

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.runtime import sharding


def test_a_mesh_holds_every_device():
  assert sharding.make_mesh().shape == {'data': 8, 'fsdp': 1}
  assert sharding.make_mesh(4).shape == {'data': 2, 'fsdp': 4}


@pytest.mark.parametrize('fsdp', [3, 0, 16])
def test_a_mesh_that_does_not_multiply_is_refused(fsdp):
  with pytest.raises(UsageError, match='does not divide the 8 devices'):
    sharding.make_mesh(fsdp)


def test_a_batch_must_be_shared_evenly():
  mesh = sharding.make_mesh()
  sharding.check_batch_size(16, mesh)
  with pytest.raises(UsageError, match='the next that is: 16'):
    sharding.check_batch_size(12, mesh)


def test_large_leaves_are_split_and_small_ones_copied():
  mesh = sharding.make_mesh(4)
  tree = {'kernel': np.zeros((128, 512)), 'bias': np.zeros(512)}
  shardings = sharding.tree_shardings(tree, mesh)
  assert shardings['kernel'].spec == jax.sharding.PartitionSpec(None, 'fsdp')
  assert shardings['bias'].is_fully_replicated


def test_a_batch_comes_back_whole():
  batch = {'image': np.arange(16.0, dtype=np.float32)}
  placed = sharding.put_batch(batch, sharding.make_mesh(2))
  assert len(placed['image'].sharding.device_set) == 8
  np.testing.assert_array_equal(placed['image'], batch['image'])


def test_a_torus_orders_the_mesh_where_one_process_has_it(monkeypatch):
  """By their ids, devices that share parameters may be far apart."""
  asked = []

  def create(shape, devices, allow_split_physical_axes):
    asked.append((shape, len(devices), allow_split_physical_axes))
    return np.asarray(devices[::-1]).reshape(shape)

  monkeypatch.setattr(sharding.mesh_utils, 'create_device_mesh', create)
  plain = sharding.make_mesh(2)
  assert asked == []
  monkeypatch.setattr(sharding, '_has_topology', lambda devices: True)
  found = sharding.make_mesh(2)
  count = jax.device_count()
  assert asked == [((count // 2, 2), count, True)]
  assert found.devices.ravel().tolist() == plain.devices.ravel().tolist()[::-1]


@pytest.mark.parametrize(
  'platform, processes, torus',
  [('tpu', 1, True), ('tpu', 4, False), ('gpu', 1, False), ('cpu', 1, False)],
)
def test_only_a_tpu_of_one_process_has_a_torus(
  platform, processes, torus, monkeypatch
):
  """Of several processes, each has rows of the batch that lie together."""
  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  devices = [types.SimpleNamespace(platform=platform)] * 4
  assert sharding._has_topology(devices) == torus
