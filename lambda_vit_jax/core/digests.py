"""Digests: a changed number in one of our files is noticed, not computed with.

JSON files carry the SHA-256 of their own content, `model.json` that of every
file of the export beside it, a safetensors header that of its arrays, and a
checkpoint a fingerprint of each of its trees. They guard against damage, not
against somebody who writes the digest anew.
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
"""Where a JSON object keeps the digest of the rest of it."""

_CHUNK = 1 << 22


def of_json(fields: Mapping[str, Any]) -> str:
  """SHA-256 of a JSON object without its `KEY`, whatever its layout."""
  rest = {name: value for name, value in fields.items() if name != KEY}
  text = json.dumps(rest, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
  """`fields` with their digest in front."""
  # As they will be read: tuples are lists, keys are texts.
  plain = json.loads(json.dumps(dict(fields), allow_nan=False))
  return {KEY: of_json(plain)} | {k: v for k, v in plain.items() if k != KEY}


def check_seal(fields: Any, where: str, remedy: str) -> None:
  """Refuses a sealed object that was changed; one without a seal passes.

  Raises:
    CheckpointError: what it holds is not what was written.
  """
  if not isinstance(fields, Mapping) or KEY not in fields:
    return
  if fields[KEY] != of_json(fields):
    raise CheckpointError(
      f'{where}: changed since it was written (its {KEY} is of another '
      f'content); {remedy}'
    )


def of_file(path: epath.Path) -> str:
  """SHA-256 of a file, read in pieces."""
  digest = hashlib.sha256()
  with path.open('rb') as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def of_folder(folder: epath.Path) -> dict[str, str]:
  """SHA-256 of every file below a folder, by its path from there."""
  found: dict[str, str] = {}
  for path in sorted(folder.iterdir()):
    if os.path.islink(path):
      raise CheckpointError(
        f'{path}: is a link, which no export holds; copy the files themselves'
      )
    if path.is_dir():
      inner = of_folder(path)
      found |= {f'{path.name}/{name}': inner[name] for name in inner}
    else:
      found[path.name] = of_file(path)
  return found


def check_files(folder: epath.Path, expected: Any, part: str) -> None:
  """Compares one file of a folder, or all files of a part of it.

  Args:
    folder: an export.
    expected: its digests as `of_folder` gives them, from `model.json`.
    part: a name in `folder`. Only names that lie there are opened, whatever
      `expected` says.

  Raises:
    CheckpointError: a file differs, is missing or was added; names it.
  """
  if not isinstance(expected, Mapping):
    raise CheckpointError(
      f'{folder}/model.json: `files` is no object; export the model again'
    )
  path = folder / part
  found = (
    {f'{part}/{name}': digest for name, digest in of_folder(path).items()}
    if path.is_dir()
    else {part: of_file(path)}
  )
  listed = {
    name: digest
    for name, digest in expected.items()
    if name == part or name.startswith(f'{part}/')
  }
  for name in sorted(set(found) | set(listed)):
    if found.get(name) != listed.get(name):
      raise CheckpointError(
        f'{folder / name}: not the file that was exported (its SHA-256 is not '
        'the one in model.json); export the model again'
      )


def of_arrays(
  names: Iterable[str], read: Callable[[str], np.ndarray], text: str
) -> str:
  """SHA-256 of named arrays (types, shapes, bytes) and of a text."""
  digest = hashlib.sha256(text.encode())
  for name in sorted(names):
    array = np.ascontiguousarray(read(name))
    digest.update(f'{name} {array.dtype} {array.shape}'.encode())
    raw: Any = array.reshape(-1).view(np.uint8)
    digest.update(raw)
  return digest.hexdigest()


def fingerprint(tree: Any) -> str:
  """A number for all bits of a tree of arrays, the same on every mesh.

  Per leaf the sum of its 32-bit (or narrower) words modulo 2^32, each times
  an odd number that depends on its number's place in the array: one changed
  word always changes the sum, and so do rows that changed places, but for
  chance. Sums of integers do not depend on their order.
  """
  sums = [_checksum(leaf) for leaf in jax.tree.leaves(tree)]
  return hashlib.sha256(json.dumps(sums).encode()).hexdigest()


def _checksum(leaf: Any) -> int:
  if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
    return int(_global_checksum(leaf))
  array = np.ascontiguousarray(leaf)
  array = np.atleast_1d(array)
  words = array.reshape(*array.shape, 1).view(_word(array.dtype))
  words = words.reshape(array.size, -1).astype(np.uint32)
  place = np.arange(array.size, dtype=np.uint32)[:, None]
  return int((words * (place * 2 + 1)).sum(dtype=np.uint32))


def _word(dtype: Any) -> Any:
  """Words that an array's numbers are read as."""
  return {1: np.uint8, 2: np.uint16}.get(np.dtype(dtype).itemsize, np.uint32)


@jax.jit
def _global_checksum(array: jax.Array) -> jax.Array:
  """`_checksum` of what several processes hold together."""
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
