"""Checksums that detect corrupted files before they are used.

A JSON file has the SHA-256 of its own content, `model.json` that of every file
of the export, a safetensors header that of its arrays, and a checkpoint has a
fingerprint of each of its trees. They protect against damage, not against
somebody who also replaces the digest.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lambda_vit_jax.core.errors import CheckpointError

KEY = 'sha256'
"""Key of the digest in a JSON object."""

_CHUNK = 1 << 22


def of_json(fields: Mapping[str, Any]) -> str:
  """SHA-256 of a JSON object except its `KEY`, independent of the layout."""
  rest = {name: value for name, value in fields.items() if name != KEY}
  text = json.dumps(rest, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns `fields` with their digest as the first entry."""
  # As they will be read back: tuples become lists, keys become strings.
  plain = json.loads(json.dumps(dict(fields), allow_nan=False))
  return {KEY: of_json(plain)} | {k: v for k, v in plain.items() if k != KEY}


def check_seal(fields: Any, where: str, remedy: str) -> None:
  """Refuses a changed object; one without a digest passes.

  Raises:
    CheckpointError: the content does not match the digest.
  """
  if not isinstance(fields, Mapping) or KEY not in fields:
    return
  if fields[KEY] != of_json(fields):
    raise CheckpointError(
      f'{where}: changed since it was written (its {KEY} is of another '
      f'content); {remedy}'
    )


def of_file(path: epath.Path) -> str:
  """SHA-256 of a file, read in chunks."""
  digest = hashlib.sha256()
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def of_folder(folder: epath.Path, prefix: str = '') -> dict[str, str]:
  """SHA-256 of every file, by `prefix` and the path relative to `folder`."""
  found: dict[str, str] = {}
  for path in sorted(folder.iterdir()):
    if os.path.islink(path):
      raise CheckpointError(
        f'{path}: is a link, which no export holds; copy the files themselves'
      )
    name = prefix + path.name
    if path.is_dir():
      found |= of_folder(path, f'{name}/')
    else:
      found[name] = of_file(path)
  return found


def check_files(folder: epath.Path, expected: Any, part: str) -> None:
  """Compares one file of a folder, or all files of a part of it.

  Args:
    folder: an export.
    expected: digests as from `of_folder`, read from `model.json`.
    part: a name in `folder`. Only files that are in there are opened,
      whatever names `expected` has.

  Raises:
    CheckpointError: a file that differs, is missing or was added.
  """
  if not isinstance(expected, Mapping):
    raise CheckpointError(
      f'{folder}/model.json: `files` is no object; export the model again'
    )
  path = folder / part
  inside = f'{part}/'
  if not path.exists():
    raise CheckpointError(f'{path}: is missing; export the model again')
  is_file = not path.is_dir()
  found = {part: of_file(path)} if is_file else of_folder(path, inside)
  listed = {n for n in expected if n == part or n.startswith(inside)}
  for name in sorted(listed.union(found)):
    if found.get(name) != expected.get(name):
      raise CheckpointError(
        f'{folder / name}: not the file that was exported (its SHA-256 is not '
        'the one in model.json); export the model again'
      )


def of_arrays(
  names: Iterable[str], read: Callable[[str], np.ndarray], text: str
) -> str:
  """SHA-256 of named arrays (names, dtypes, shapes, bytes) and of a text."""
  digest = hashlib.sha256(text.encode())
  for name in sorted(names):
    array = np.ascontiguousarray(read(name))
    digest.update(f'{name} {array.dtype} {array.shape}'.encode())
    raw: Any = array.reshape(-1).view(np.uint8)
    digest.update(raw)
  return digest.hexdigest()


def fingerprint(tree: Any) -> str:
  """Checksum over all bits of a tree of arrays, the same on every mesh.

  For each leaf, the sum of its 32-bit (or narrower) words modulo 2^32, each
  times an odd factor that depends on the position in the array. Any one changed
  word changes the sum; so does swapping rows, except by coincidence. Integer
  sums do not depend on the order, hence not on the mesh.

  Arrays of accelerators are summed where they are, all at once: only the sums
  are waited for, together, and copied.
  """
  sums = jax.device_get([_checksum(leaf) for leaf in jax.tree.leaves(tree)])
  text = json.dumps([int(value) for value in sums])
  return hashlib.sha256(text.encode()).hexdigest()


def _is_on_host(leaf: Any) -> bool:
  """Whether NumPy can read an array without copying it from a device."""
  if not isinstance(leaf, jax.Array):
    return True
  devices: set[Any] = leaf.sharding.device_set
  on_cpu = all(device.platform == 'cpu' for device in devices)
  return on_cpu and leaf.is_fully_addressable


def _checksum(leaf: Any) -> Any:
  """The sum of one array: a number, or a scalar array that is not ready yet."""
  if not _is_on_host(leaf):
    return _device_checksum(leaf)
  array = np.ascontiguousarray(leaf).reshape(-1, 1)
  words = array.view(_word(array.dtype)).astype(np.uint32)
  place = np.arange(array.size, dtype=np.uint32)[:, None]
  return int((words * (place * 2 + 1)).sum(dtype=np.uint32))


def _word(dtype: Any) -> Any:
  """Unsigned type of the words that an array is summed in."""
  return np.dtype(f'u{min(np.dtype(dtype).itemsize, 4)}')


@jax.jit
def _device_checksum(array: jax.Array) -> jax.Array:
  """`_checksum` of an array that is on accelerators, or in other processes."""
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  array = jnp.atleast_1d(array)
  words = jax.lax.bitcast_convert_type(array, _word(array.dtype))
  words = words.reshape(*array.shape, -1).astype(jnp.uint32)
  place = jnp.zeros((), jnp.uint32)
  for axis, size in enumerate(array.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place = place * jnp.uint32(size) + index
  return jnp.sum(words * (place * 2 + 1), dtype=jnp.uint32)
