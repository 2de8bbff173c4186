"""Images for selection: any batches to micro-batches of one fixed shape."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.core.typing import Array

AXIS = 'images'


@dataclasses.dataclass(frozen=True)
class Placement:
  """Devices that share the images of a micro-batch; hashable, static.

  Attributes:
    mesh: one axis over all devices, of every process.
  """

  mesh: Mesh

  @property
  def batch(self) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(self.mesh, PartitionSpec(AXIS))

  @property
  def replicated(self) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(self.mesh, PartitionSpec())

  def replicate(self, tree: Any) -> Any:
    """Puts a tree of parameters or states on every device."""

    def put(leaf: Array) -> jax.Array:
      local = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
      if local and not self.replicated.is_fully_addressable:
        leaf = np.asarray(leaf)
      return jax.device_put(leaf, self.replicated)

    return jax.tree.map(put, tree)

  def split(self, local: np.ndarray) -> jax.Array:
    """This process's rows to an array over all devices."""
    return jax.make_array_from_process_local_data(self.batch, local)


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """The images of a search, on the host.

  Attributes:
    images: arrays `[n, height, width, channels]` float32 of this process.
    labels: arrays `[n]` int32 beside them, or None.
    placement: where micro-batches go.
  """

  images: tuple[np.ndarray, ...]
  labels: tuple[np.ndarray, ...] | None
  placement: Placement

  @property
  def local_count(self) -> int:
    """Images of this process."""
    return sum(len(images) for images in self.images)

  def counts(self) -> np.ndarray:
    """Images of each process."""
    if jax.process_count() == 1:
      return np.asarray([self.local_count])
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(np.asarray(self.local_count))

  @property
  def total(self) -> int:
    """Images of all processes."""
    return int(self.counts().sum())

  def micro_batches(self, size: int) -> Iterator[dict[str, jax.Array]]:
    """Yields `image`, `label` and `mask`, each of `size` rows in all.

    The last ones are padded; every process yields equally many.
    """
    local = size // jax.process_count()
    for start in range(0, int(self.counts().max()), local):
      images = self._rows(self.images, start, local)
      rows = len(images)
      labels = (
        np.zeros(rows, np.int32)
        if self.labels is None
        else self._rows(self.labels, start, local)
      )
      padding = local - rows
      yield {
        'image': self.placement.split(
          np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
        ),
        'label': self.placement.split(np.pad(labels, (0, padding))),
        'mask': self.placement.split(np.arange(local) < rows),
      }

  @staticmethod
  def _rows(
    arrays: tuple[np.ndarray, ...], start: int, count: int
  ) -> np.ndarray:
    """Rows `start` to `start + count` of the arrays laid end to end."""
    parts = [arrays[0][:0]]
    for array in arrays:
      parts.append(array[max(start, 0) : max(start + count, 0)])
      start -= len(array)
    return np.concatenate(parts)


def read_images(
  batches: Iterable[Array | Mapping[str, Array]],
  image_shape: tuple[int, int, int],
  mesh: Mesh | None = None,
) -> ImageSet:
  """Reads batches of any size once, and checks them.

  Args:
    batches: an iterable of normalised NHWC arrays, or of dicts with `image`
      and optionally `label` and `mask` (False for padding). Arrays may live
      on the host, on a device, over a mesh, or have the leading device axis
      of `jax.pmap`. In a job of several processes, host arrays are this
      process's part. The images are kept on the host until the search ends.
    image_shape: (height, width, channels) of the model.
    mesh: devices to use; by default those of the arrays, else one CPU device
      or all accelerators.

  Raises:
    DataError: no image, or images of another shape.
  """
  images, labels = [], []
  for index, batch in enumerate(batches):
    fields = dict(batch) if isinstance(batch, Mapping) else {'image': batch}
    if 'image' not in fields:
      raise DataError(
        f'batch {index} has no `image` (only {", ".join(sorted(fields))}); '
        'give NHWC arrays or dicts with image, label and mask'
      )
    if mesh is None:
      mesh = _mesh_of(fields['image'])
    image = _local_rows(fields['image'])
    if image.shape[-3:] != image_shape or image.ndim < 4:
      raise DataError(
        f'batch {index} has images of shape {image.shape[1:]}; the model '
        f'takes {image_shape} (height, width, channels)'
      )
    image = image.reshape(-1, *image_shape)
    mask = fields.get('mask')
    keep = (
      slice(None)
      if mask is None
      else _local_rows(mask).reshape(-1).astype(bool)
    )
    images.append(np.asarray(image, np.float32)[keep])
    if fields.get('label') is not None:
      label = _local_rows(fields['label']).reshape(-1)
      labels.append(np.asarray(label, np.int32)[keep])
  found = ImageSet(
    tuple(images),
    tuple(labels) if labels and len(labels) == len(images) else None,
    Placement(_flat_mesh(mesh)),
  )
  if not images or not found.total:
    raise DataError(
      'the selection slice is empty: no batch holds an image; keep at least '
      '128 images (config.data.holdout_images)'
    )
  return found


def _flat_mesh(mesh: Mesh | None) -> Mesh:
  """One axis over the same devices, whatever axes (and types) these had."""
  if mesh is not None:
    devices = mesh.devices.reshape(-1)
  elif jax.process_count() > 1 or jax.default_backend() != 'cpu':
    devices = np.asarray(jax.devices())
  else:
    devices = np.asarray(jax.devices()[:1])
  return Mesh(devices, (AXIS,))


def _mesh_of(array: Array) -> Mesh | None:
  sharding = getattr(array, 'sharding', None)
  if isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated:
    return cast(Mesh, sharding.mesh)
  return None


def _local_rows(array: Array) -> np.ndarray:
  """The rows of this process, in order."""
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(array)
  shards = {
    shard.index[0].start or 0: shard.data for shard in array.addressable_shards
  }
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
