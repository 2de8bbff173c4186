"""Open `.safetensors`, `.npz` and `.pth` files lazily, without running code.

Every reader knows the shapes of all arrays, and reads an array when it is asked
for, so that at most one is in memory twice.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import safetensors
from etils import epath

from lambda_vit_jax.checkpoints import convert, description
from lambda_vit_jax.core import digests
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import parse_json
from lambda_vit_jax.core.images import to_array

SUFFIXES = ('.safetensors', '.npz', '.pth', '.pt', '.bin')
"""Suffixes of weight files."""

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


@dataclasses.dataclass(frozen=True)
class WeightFile:
  """An open weight file.

  Attributes:
    path: for messages.
    shapes: shape of every array, by name.
    read: returns an array by its name.
    rules: the table of `convert` that its names follow.
    description: the model's description in our own files, else None.
  """

  path: str
  shapes: Mapping[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]
  rules: convert.Rules = convert.TIMM
  description: Mapping[str, Any] | None = None


@contextlib.contextmanager
def open_weights(path: pathlib.Path) -> Iterator[WeightFile]:
  """Opens a weight file by its suffix, for reading within the context.

  Raises:
    CheckpointError: missing, truncated, of an unknown kind, or a `.pth` that
      cannot be read safely here.
  """
  if not path.is_file():
    raise CheckpointError(f'{path}: no such file')
  if path.suffix == '.safetensors':
    yield _open_safetensors(path)
  elif path.suffix == '.npz':
    with path.open('rb') as raw:
      yield _open_npz(path, raw)
  elif path.suffix in SUFFIXES:
    yield _open_pickle(path)
  else:
    raise CheckpointError(
      f'{path}: not a weight file; known are {", ".join(SUFFIXES)}'
    )


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
    return _with_timm_names(WeightFile(str(path), shapes, read))
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
  return WeightFile(str(path), shapes, read, description=found)


def _narrow(path: object, name: str, dtype: object) -> CheckpointError:
  """The error for weights that mean nothing without scales."""
  return CheckpointError(
    f'{path}: {name} is {dtype}, whose scales we do not know; convert the '
    'weights to float16, bfloat16 or float32 where they were made'
  )


def _with_timm_names(file: WeightFile) -> WeightFile:
  """Names LayerScale as timm does, which DeiT III calls `gamma_1`."""
  names = {
    re.sub(r'\.gamma_([12])$', r'.ls\1.gamma', name): name
    for name in file.shapes
  }
  return dataclasses.replace(
    file,
    shapes={new: file.shapes[old] for new, old in names.items()},
    read=lambda name: file.read(names[name]),
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
  return WeightFile(str(path), shapes, read, rules=convert.GOOGLE)


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


def _open_pickle(path: pathlib.Path) -> WeightFile:
  """Opens a PyTorch file with `weights_only=True`, which runs no code."""
  try:
    import torch
  except ImportError:
    raise CheckpointError(
      f'{path}: a PyTorch pickle, which only PyTorch can read safely; '
      "install it (pip install 'lambda_vit_jax[torch]'), or convert the file "
      'where PyTorch is, by the lines of docs/pytorch.md#convert-a-pth-file'
    ) from None
  try:
    loaded = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:
    # torch raises many types for files that it refuses or cannot parse.
    reason = ' '.join(str(error).split())[:160]
    raise CheckpointError(
      f'{path}: not a plain PyTorch state dict, refused without running it '
      f'({reason}); docs/pytorch.md#convert-a-pth-file says how to convert it'
    ) from error
  return of_tensors(loaded, str(path))


def of_tensors(loaded: Any, where: str) -> WeightFile:
  """The state dict in what PyTorch has loaded, or in a model's own.

  Args:
    loaded: names to tensors (of any float type, on any device) or arrays;
      perhaps in an entry `model` or `state_dict`.
    where: for messages.

  Raises:
    CheckpointError: something else.
  """
  for key in ('model', 'state_dict'):
    if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
      loaded = loaded[key]
  if not isinstance(loaded, Mapping) or not all(
    hasattr(value, 'shape') and hasattr(value, 'dtype')
    for value in loaded.values()
  ):
    raise CheckpointError(f'{where}: holds no state dict of tensors')
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
  return _with_timm_names(WeightFile(where, shapes, read))
