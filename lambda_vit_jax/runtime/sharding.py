"""The device mesh, and how arrays are sharded over it.

Axes: `data` splits the batch, `fsdp` splits the batch and the parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lambda_vit_jax.core.errors import UsageError

BATCH_AXES = ('data', 'fsdp')

# Splitting a smaller leaf is not worth a collective.
_SMALLEST_SHARDED = 2**14


def make_mesh(fsdp: int = 1) -> Mesh:
  """All devices of all processes as `[devices / fsdp, fsdp]`.

  Raises:
    UsageError: `fsdp` does not divide the number of devices.
  """
  # The devices of a process are next to each other, so that the rows of a batch
  # have the same order for any number of processes.
  devices = sorted(
    jax.devices(), key=lambda device: (device.process_index, device.id)
  )
  if fsdp < 1 or len(devices) % fsdp:
    raise UsageError(
      f'mesh.fsdp={fsdp} does not divide the {len(devices)} devices; '
      'choose a divisor'
    )
  shape = len(devices) // fsdp, fsdp
  if _has_topology(devices):
    grid = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
  else:
    grid = np.asarray(devices).reshape(shape)
  return Mesh(grid, BATCH_AXES)


def _has_topology(devices: Sequence[Any]) -> bool:
  """Whether neighbours in the mesh should be neighbours in a TPU's torus.

  Only where one process has all of them: of several, each has rows of the batch
  that are next to each other, which another order would mix.
  """
  return jax.process_count() == 1 and devices[0].platform == 'tpu'


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
  """Raises UsageError if a batch does not divide over the devices."""
  if batch_size < 1 or batch_size % mesh.size:
    raise UsageError(
      f'batch_size={batch_size} is not divisible by the {mesh.size} devices; '
      f'the next that is: {-(-max(batch_size, 1) // mesh.size) * mesh.size}'
    )


def replicated(mesh: Mesh) -> NamedSharding:
  """Sharding with a full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Copies every leaf to every device of every process."""

  def place(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
      leaf = np.asarray(leaf)
    return jax.device_put(leaf, replicated(mesh))

  return jax.tree.map(place, tree)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
  """A sharding per leaf: its longest divisible axis over `fsdp`, or none."""
  fsdp = mesh.shape['fsdp']

  def leaf_sharding(leaf: Any) -> NamedSharding:
    shape = leaf.shape
    divisible = [axis for axis, n in enumerate(shape) if n % fsdp == 0]
    if fsdp == 1 or not divisible or np.prod(shape) < _SMALLEST_SHARDED:
      return replicated(mesh)
    longest = max(divisible, key=lambda axis: shape[axis])
    names: list[str | None] = [None] * len(shape)
    names[longest] = 'fsdp'
    return NamedSharding(mesh, PartitionSpec(*names))

  return jax.tree.map(leaf_sharding, tree)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Any]:
  """Turns this process's part of a batch into global arrays over the mesh."""
  sharding = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
  return {
    name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
    for name, value in batch.items()
  }
