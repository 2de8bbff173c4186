"""Open `.safetensors`, `.npz` and `.pth` files lazily, without running code.

Every reader knows the shapes of all arrays, and reads an array when it is asked
for, so that at most one is in memory twice.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import safetensors
from etils import epath

from lambda_vit_jax.checkpoints import (
  description,
  pickles,
  weight_sets,
)
from lambda_vit_jax.checkpoints.layout_tables import GOOGLE, stock_layout
from lambda_vit_jax.checkpoints.weight_file import WeightFile
from lambda_vit_jax.core import digests
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import parse_json, read_json
from lambda_vit_jax.core.images import to_array
from lambda_vit_jax.core.schema import Object, Text
from lambda_vit_jax.models.variants import VARIANTS

SUFFIXES = ('.safetensors', '.npz', '.pth', '.pt', '.bin', '.ckpt', '.pth.tar')
"""Suffixes of weight files."""

INDEX = '.safetensors.index.json'
"""End of the name of the index of a sharded file."""

_INDEX_SCHEMA = Object(
  # Files of the same folder only.
  {'weight_map': Object(others=Text(200, r'[\w.-]+\.safetensors', 'a file'))}
)

METADATA_KEY = 'lambda_vit_jax'
"""Key of the model's description in the header of our safetensors files."""

DIGEST_KEY = 'sha256'
"""Key of the digest of the arrays and of that description."""

_GOOGLE_PREFIX = 'opt/target/'


def check_link(path: epath.Path) -> None:
  """Refuses a link out of its folder, except within the hub's cache.

  Raises:
    CheckpointError: the link points elsewhere.
  """
  if '://' in str(path) or not os.path.islink(path):
    return
  target = pathlib.Path(os.path.realpath(path))
  folder = pathlib.Path(os.path.realpath(path.parent))
  allowed = [folder]
  if folder.parent.name == 'snapshots':
    # models--OWNER--NAME/snapshots/REVISION/FILE -> ../../blobs/DIGEST.
    allowed.append(folder.parents[1] / 'blobs')
  if not any(target.is_relative_to(place) for place in allowed):
    raise CheckpointError(
      f'{path}: is a link out of its folder, which is not followed; copy the '
      'file, or name it itself'
    )


@contextlib.contextmanager
def open_weights(path: pathlib.Path, chosen: str = '') -> Iterator[WeightFile]:
  """Opens a weight file by its suffix, for reading within the context.

  Args:
    path: a local file.
    chosen: which of several sets of weights, see `weight_sets`.

  Raises:
    CheckpointError: missing, truncated, of an unknown kind, or a `.pth` that
      cannot be read safely here.
  """
  if not path.is_file():
    raise CheckpointError(f'{path}: no such file')
  if path.name.endswith(INDEX):
    yield weight_sets.recognised(_open_shards(path), chosen)
  elif path.suffix == '.safetensors':
    yield _own_or_recognised(_open_safetensors(path), chosen)
  elif path.suffix == '.npz':
    with path.open('rb') as raw:
      yield weight_sets.recognised(_open_npz(path, raw), chosen)
  elif path.name.endswith(SUFFIXES):
    where = f'{path}#{chosen}' if chosen else str(path)
    yield of_tensors(pickles.load(path), where, chosen)
  else:
    raise CheckpointError(
      f'{path}: not a weight file; known are {", ".join(SUFFIXES)}'
    )


def _own_or_recognised(file: WeightFile, chosen: str) -> WeightFile:
  """Files of ours have one layout, and say so."""
  if file.description is not None:
    return file
  return weight_sets.recognised(file, chosen)


def _open_safetensors(path: pathlib.Path) -> WeightFile:

  def read(name: str) -> np.ndarray:
    # Reopened for each array: the pages of a mapped file count as memory until
    # it is closed.
    with safetensors.safe_open(path, framework='numpy') as file:
      return file.get_tensor(name)

  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      names = file.keys()
      slices = {name: file.get_slice(name) for name in names}
      shapes = {name: tuple(x.get_shape()) for name, x in slices.items()}
      dtypes = {name: x.get_dtype() for name, x in slices.items()}
      metadata = file.metadata() or {}
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    raise CheckpointError(
      f'{path}: not a complete safetensors file ({error}); get it again'
    ) from error
  for name, dtype in dtypes.items():
    if re.fullmatch('F[468](_.*)?', dtype):
      raise _narrow(path, name, dtype)
  text = metadata.get(METADATA_KEY)
  if text is None:
    return WeightFile(str(path), shapes, read)
  digest = metadata.get(DIGEST_KEY)
  found = parse_json(
    text, f'{path}: {METADATA_KEY}', description.SCHEMA, description.REMEDY
  )
  try:
    whole = digest in (None, digests.of_arrays(shapes, read, text))
  except (TypeError, ValueError, safetensors.SafetensorError) as error:
    raise CheckpointError(
      f'{path}: its header or an array cannot be read ({error}); export the '
      'model again'
    ) from error
  if not whole:
    raise CheckpointError(
      f'{path}: changed since it was exported (its {DIGEST_KEY} is of another '
      'content); export the model again'
    )
  # An unknown variant is for `description.rebuild` to refuse.
  known = VARIANTS.get(found['variant'])
  stock = 'vit' if known is None else known.timm_class
  return WeightFile(str(path), shapes, read, stock_layout(stock), found)


def _open_shards(path: pathlib.Path) -> WeightFile:
  """Opens the safetensors files that an index names, as one."""
  places: dict[str, str] = read_json(
    epath.Path(path), _INDEX_SCHEMA, 'get all files again'
  )['weight_map']
  files: dict[str, WeightFile] = {}
  for place in sorted(set(places.values())):
    shard = path.parent / place
    if not shard.is_file():
      raise CheckpointError(
        f'{path}: {place} is missing beside it; get all files again'
      )
    check_link(epath.Path(shard))
    files[place] = _open_safetensors(shard)
  lost = [x for x, place in places.items() if x not in files[place].shapes]
  if lost:
    raise CheckpointError(
      f'{path}: {lost[0]} is not in {places[lost[0]]}; get all files again'
    )
  # Arrays that no index names, too, so that they are seen as unexpected.
  places |= {x: place for place, file in files.items() for x in file.shapes}
  return WeightFile(
    str(path),
    {name: files[place].shapes[name] for name, place in places.items()},
    lambda name: files[places[name]].read(name),
  )


def _narrow(path: object, name: str, dtype: object) -> CheckpointError:
  """The error for weights that mean nothing without scales."""
  return CheckpointError(
    f'{path}: {name} is {dtype}, whose scales we do not know; convert the '
    'weights to float16, bfloat16 or float32 where they were made'
  )


def _open_npz(path: pathlib.Path, raw: BinaryIO) -> WeightFile:
  """Opens an archive of Google's; numpy refuses object arrays (pickles)."""
  try:
    file = np.load(raw, allow_pickle=False)
    shapes = {name: _npy_shape(file, name) for name in file.files}
  except Exception as error:
    # numpy and zipfile raise a dozen types for what they cannot parse.
    raise CheckpointError(
      f'{path}: not a complete .npz archive of plain arrays ({error}); get it '
      'again'
    ) from error

  def read(name: str) -> np.ndarray:
    try:
      return file[prefix + name]
    except Exception as error:
      raise CheckpointError(
        f'{path}: {name} is damaged ({error}); get the file again'
      ) from error

  # Of a training checkpoint, the optimizer's state is no part of the model.
  nested = any(name.startswith(_GOOGLE_PREFIX) for name in shapes)
  prefix = _GOOGLE_PREFIX if nested else ''
  shapes = {
    name.removeprefix(prefix): shape
    for name, shape in shapes.items()
    if name.startswith(prefix)
  }
  return WeightFile(str(path), shapes, read, layout=GOOGLE)


def _npy_shape(file: Any, name: str) -> tuple[int, ...]:
  """Reads the shape in the header of one member, and nothing else of it."""
  with file.zip.open(f'{name}.npy') as member:
    version = np.lib.format.read_magic(member)
    read_header = (
      np.lib.format.read_array_header_1_0
      if version == (1, 0)
      else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(member)
  if dtype.hasobject:
    raise ValueError(f'{name} holds pickled objects')
  return shape


def of_tensors(loaded: Any, where: str, chosen: str = '') -> WeightFile:
  """The state dict in what PyTorch has loaded, or in a model's own.

  Args:
    loaded: names to tensors (of any float type, on any device) or arrays;
      perhaps within other containers.
    where: for messages.
    chosen: which of several sets of weights, see `weight_sets`.

  Raises:
    CheckpointError: something else.
  """
  loaded, prefix = weight_sets.entry(loaded, where, chosen)
  tensors = {str(name): value for name, value in loaded.items()}
  for name, value in tensors.items():
    if re.search('float[468](_|$)', str(value.dtype)):
      raise _narrow(where, name, value.dtype)

  def read(name: str) -> np.ndarray:
    try:
      return np.asarray(to_array(tensors[name]))
    except (RuntimeError, TypeError) as error:
      # Sparse, quantised or without storage.
      reason = ' '.join(str(error).split())[:100]
      raise CheckpointError(
        f'{where}: {name} is no plain array of numbers ({reason}); convert it '
        'where it was made'
      ) from error

  shapes = {name: tuple(value.shape) for name, value in tensors.items()}
  return weight_sets.recognised(WeightFile(where, shapes, read), prefix)
