"""Regroup batches of images of any kind into fixed-shape micro-batches."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lambda_vit_jax.core.errors import DataError, warn_user
from lambda_vit_jax.core.images import (
  EXPECTED,
  check_values,
  model_images,
  to_array,
)
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.model import Model

AXIS = 'images'

# Of an accelerator's memory, for images that every round of a search reads; a
# search takes most of the rest (`memory`).
_KEPT_SHARE = 0.1

# Names of other libraries for the fields of a batch.
_ALIASES = {'images': 'image', 'pixel_values': 'image', 'labels': 'label'}


@dataclasses.dataclass(frozen=True)
class Placement:
  """The devices that share the images of a micro-batch; hashable, static.

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
    """Copies a tree of parameters or states to every device."""

    def copy(leaf: Array) -> jax.Array:
      local = isinstance(leaf, jax.Array) and leaf.is_fully_addressable
      if local and not self.replicated.is_fully_addressable:
        leaf = np.asarray(leaf)
      return jax.device_put(leaf, self.replicated)

    return jax.tree.map(copy, tree)

  def split(self, local: np.ndarray) -> jax.Array:
    """An array over all devices, of the rows of every process."""
    return jax.make_array_from_process_local_data(self.batch, local)


def _room_for_images() -> float:
  """Bytes that this process's accelerators can spare; 0 on CPUs."""
  limits = [
    (device.memory_stats() or {}).get('bytes_limit', 0)
    for device in jax.local_devices()
    if device.platform != 'cpu'
  ]
  return _KEPT_SHARE * sum(limits)


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """The images of a search, profile or fit, on the host.

  Attributes:
    images: arrays `[n, height, width, channels]` float32 of this process.
    labels: arrays `[n]` int32 that belong to them, or what else there is for
      each image, `[n, …]`; or None.
    placement: devices of the micro-batches.
  """

  images: tuple[np.ndarray, ...]
  labels: tuple[np.ndarray, ...] | None
  placement: Placement
  # By the size of micro-batches, those that stay on the devices.
  _kept: dict[int, list[dict[str, jax.Array]]] = dataclasses.field(
    default_factory=dict, init=False, repr=False, compare=False
  )

  def counts(self) -> np.ndarray:
    """Images of each process."""
    local = np.asarray(sum(map(len, self.images)))
    if jax.process_count() == 1:
      return local[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(local)

  @property
  def total(self) -> int:
    """Images of all processes."""
    return int(self.counts().sum())

  def micro_batches(self, size: int) -> Iterator[dict[str, jax.Array]]:
    """Yields `image`, `label` and `mask`, each of `size` rows in all.

    The last ones are padded; every process yields the same number. Where an
    accelerator has room for them, they stay there for the next time.
    """
    if size in self._kept:
      yield from self._kept[size]
      return
    local = size // jax.process_count()
    fits = sum(x.nbytes for x in self.images) <= _room_for_images()
    made = []
    for start in range(0, int(self.counts().max()), local):
      images = self._rows(self.images, start, local)
      rows = len(images)
      labels = np.zeros(rows, np.int32)
      if self.labels is not None:
        labels = self._rows(self.labels, start, local)
      padding = local - rows
      others = ((0, 0),) * (labels.ndim - 1)
      batch = {
        'image': self.placement.split(
          np.pad(images, ((0, padding), (0, 0), (0, 0), (0, 0)))
        ),
        'label': self.placement.split(np.pad(labels, ((0, padding), *others))),
        'mask': self.placement.split(np.arange(local) < rows),
      }
      if fits:
        made.append(batch)
      yield batch
    if fits:
      self._kept[size] = made

  @staticmethod
  def _rows(
    arrays: tuple[np.ndarray, ...], start: int, count: int
  ) -> np.ndarray:
    """Rows `start` to `start + count` of the concatenated arrays."""
    parts = [arrays[0][:0]]
    for array in arrays:
      parts.append(array[max(start, 0) : max(start + count, 0)])
      start -= len(array)
    return np.concatenate(parts)


Batches = Iterable[Any] | Array | Mapping[str, Array]
"""What `read_images` takes; batches differ in size as they like."""


def read_images(
  batches: Batches, model: Model, mesh: Mesh | None = None
) -> ImageSet:
  """Reads the images of a search, profile or fit once, and checks them.

  Args:
    batches: an iterable of NHWC arrays, of tuples `(images, labels, …)` (as
      data loaders yield them), or of dicts with `image` (or `pixel_values`) and
      optionally `label` (or `labels`) and `mask` (False for padding); or one
      such array or dict. Images are
      normalised floats, or uint8, which is normalised here. Arrays may be on
      the host, on a device, over a mesh, have the leading device axis of
      `jax.pmap`, or be tensors of PyTorch, with channels first as well. In a
      job of several processes, host arrays are this process's part. The images
      stay on the host.
    model: what the images are for; its image size and channels are expected.
    mesh: devices to use; by default those of the arrays, else one CPU device
      or all accelerators.

  Raises:
    DataError: no image, images of another shape or with NaN, labels that are
      no class indices or that some batches lack, or no batches at all.
  """
  images: list[np.ndarray] = []
  labels: list[np.ndarray] = []
  warning = ''
  placement = Placement(_flat_mesh(mesh))
  for part, odd in each_batch(batches, model, mesh):
    placement = part.placement
    images += part.images
    labels += part.labels or ()
    warning = warning or odd
  if labels and len(labels) != len(images):
    raise DataError(
      f'{len(labels)} of {len(images)} batches have labels; give them with all '
      'batches, or with none'
    )
  found = ImageSet(tuple(images), tuple(labels) or None, placement)
  if warning:
    # Once, not for every batch.
    warn_user(warning)
  if not images:
    check_not_used_up(batches)
  if not images or not found.total:
    raise DataError(
      'no batch holds an image; give at least one, and 128 or more to select by'
    )
  return found


def check_not_used_up(batches: Batches) -> None:
  """Says why a generator gave no batch, with a `DataError`."""
  if isinstance(batches, Iterator):
    raise DataError(
      'the batches are a generator or iterator that is used up, or empty: give '
      'a list, or make it anew for each call'
    )


def each_batch(
  batches: Batches, model: Model, mesh: Mesh | None = None
) -> Iterator[tuple[ImageSet, str]]:
  """Yields every batch of `read_images` by itself, and a line if it looks odd.

  The line says that images do not look normalised; the rest is as there.
  """
  for index, batch in enumerate(_iterate(batches)):
    fields = _fields(batch, index)
    if mesh is None:
      mesh = _mesh_of(fields['image'])
    image = _checked(fields['image'], index, model)
    keep: Any = slice(None)
    if fields.get('mask') is not None:
      keep = _local_rows(fields['mask']).reshape(-1).astype(bool)
    labels = None
    if fields.get('label') is not None:
      label = _local_rows(fields['label']).reshape(-1)
      if label.size and label.dtype.kind not in 'iub':
        raise DataError(
          f'batch {index} has labels of type {label.dtype}; give one class '
          'index (a whole number from 0) per image'
        )
      if len(label) != len(image):
        raise DataError(
          f'batch {index} has {len(image)} images and {len(label)} labels; '
          'give one class index per image'
        )
      labels = (np.asarray(label, np.int32)[keep],)
    kept = image[keep]
    found = ImageSet((kept,), labels, Placement(_flat_mesh(mesh)))
    yield found, check_values(kept, model.preprocessing, f'batch {index}')


def gathered(images: ImageSet) -> np.ndarray:
  """All images of every process, `[n, height, width, channels]`.

  In the order of the batches, and within each of the processes: the order does
  not depend on how many processes share a batch.
  """
  return _gathered(images.images)


def gathered_labels(images: ImageSet) -> np.ndarray:
  """Their labels, `[n]`, in the same order; there are labels."""
  assert images.labels is not None
  return _gathered(images.labels)


def _gathered(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
  """The rows of the arrays of every process."""
  if jax.process_count() == 1:
    return np.concatenate(arrays)
  from jax.experimental import multihost_utils

  parts = []
  counts = multihost_utils.process_allgather(np.asarray(len(arrays)))
  # A process may have fewer batches; all of them have to take part.
  missing_batches = int(counts.max()) - len(arrays)
  for array in (*arrays, *[arrays[0][:0]] * missing_batches):
    lengths = multihost_utils.process_allgather(np.asarray(len(array)))
    missing = int(lengths.max()) - len(array)
    padded = np.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1)))
    every = multihost_utils.process_allgather(padded)
    parts += [rows[:n] for rows, n in zip(every, lengths, strict=True)]
  return np.concatenate(parts)


def _iterate(batches: Any) -> Iterator[Any]:
  """The batches of what `read_images` takes."""
  is_array = hasattr(batches, 'shape') and hasattr(batches, 'dtype')
  if isinstance(batches, Mapping) or is_array:
    return iter([batches])
  if isinstance(batches, str | bytes | os.PathLike):
    raise DataError(
      f'batches={batches!r} holds no images; {EXPECTED}; for the files of a '
      'folder lv.image_batches(folder, model)'
    )
  try:
    # Also of what only has `__getitem__`.
    return iter(batches)
  except TypeError:
    raise DataError(
      f'batches={batches!r} holds no images; {EXPECTED}'
    ) from None


def _fields(batch: Any, index: int) -> dict[str, Any]:
  """A batch as a dict with `image`, and perhaps `label` and `mask`."""
  if isinstance(batch, Mapping):
    fields = {_ALIASES.get(str(k), str(k)): batch[k] for k in batch}
    if 'image' not in fields:
      raise DataError(
        f'batch {index} has no `image` (only {", ".join(fields)}); '
        'give NHWC arrays or dicts with image, label and mask'
      )
    return fields
  if isinstance(batch, list | tuple) and len(batch) >= 2:
    # What follows the labels, paths or indices, is not needed.
    image, label = batch[:2]
    if np.ndim(image) >= 3 and np.ndim(label) <= 1:
      return {'image': image, 'label': label}
  return {'image': batch}


def _checked(values: Any, index: int, model: Model) -> np.ndarray:
  """This process's images `[n, height, width, channels]` float32."""
  if isinstance(values, jax.Array):
    values = _local_rows(values)
  if getattr(values, 'ndim', 0) == 5:
    # A leading axis of devices.
    values = values.reshape(-1, *values.shape[2:])
  shape = (*model.module.image_size, model.module.in_chans)
  found = model_images(values, model.preprocessing, shape, f'batch {index}')
  return np.asarray(found, np.float32)


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
  array = to_array(array)
  if not isinstance(array, jax.Array) or array.is_fully_addressable:
    return np.asarray(array)
  shards = {
    shard.index[0].start or 0: shard.data for shard in array.addressable_shards
  }
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
