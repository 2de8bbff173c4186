"""Read and write JSON files, local or remote, through etils.epath."""

import collections
import json
import math
import re
import uuid
from typing import Any

from etils import epath

from lambda_vit_jax.core.errors import CheckpointError, DataError, UsageError
from lambda_vit_jax.core.schema import Schema, name_of, shown
from lambda_vit_jax.core.text import printable

REMEDY = 'delete it to have its stage run again'
"""What to do about a damaged file of a workdir."""

_LARGEST_FILE = 1 << 26
_MOST_DIGITS = 25
_DEEPEST = 32
# Strings, the last of which may have no end, and brackets between them.
_MARKS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)


def user_path(path: str | epath.PathLike) -> epath.Path:
  """Returns a path that a user gives, with `~` as the home folder.

  Every function and flag that takes a path opens it with this; shells expand
  `~` themselves only where a word starts with it.

  Raises:
    DataError: it is the address of a web page.
    UsageError: empty, no such home folder, or no reader for such a path.
  """
  if not str(path):
    raise UsageError('the path is empty; give a file or folder, . for this one')
  if is_url(path):
    raise DataError(f'{path}: is a URL; download it and give the path')
  if str(path).startswith('file:///'):
    path = str(path).removeprefix('file://')
  try:
    found = epath.Path(path).expanduser()
  except KeyError as error:
    # What epath raises for `name://` if it does not know the name.
    raise UsageError(
      f'{path}: paths of this kind cannot be read; give a path of this '
      'machine, or gs://…'
    ) from error
  if str(found).startswith('~'):
    raise UsageError(
      f'{path}: the home folder that ~ stands for is not known; give the '
      'whole path'
    )
  return found


def is_url(path: str | epath.PathLike) -> bool:
  """Whether this is the address of a web page, which is no path."""
  return str(path).lower().startswith(('http://', 'https://', 'ftp://'))


def absolute(path: str | epath.PathLike) -> epath.Path:
  """Returns `user_path` from the root, as Orbax needs it, or `gs://…`."""
  path = user_path(path)
  return path if is_remote(path) else path.absolute()


def is_remote(path: str | epath.PathLike) -> bool:
  """Whether a path is on object storage, `gs://…`.

  There, a file appears once it is complete, and is not to be appended to;
  folders are but parts of names, which cannot be renamed at once.
  """
  return '://' in str(path)


def write_text(path: str | epath.Path, text: str) -> None:
  """Writes text atomically: a reader sees the old file or the new one."""
  path = epath.Path(path)
  if is_remote(path):
    path.write_bytes(text.encode())
    return
  # Another process may write the same file: a report beside a run.
  temporary = path.parent / f'.{path.name}.{uuid.uuid4().hex[:8]}.part'
  try:
    temporary.write_bytes(text.encode())
    temporary.replace(path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_json(path: str | epath.Path, value: Any) -> None:
  """Writes JSON atomically; see `write_text`."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def read_json(
  path: str | epath.Path, schema: Schema, remedy: str = REMEDY
) -> Any:
  """Reads a JSON file of any origin; the package reads none in another way.

  Args:
    path: local or remote.
    schema: what the file must hold.
    remedy: what to do about a file that holds something else.

  Returns:
    The value, which fits `schema`; see `parse_json` for its limits.

  Raises:
    CheckpointError: missing, or not such a file.
  """
  path = epath.Path(path)
  try:
    if path.stat().length > _LARGEST_FILE:
      raise CheckpointError(
        f'{path}: larger than {_LARGEST_FILE >> 20} MiB, which no JSON file of '
        f'this kind is; {remedy}'
      )
    data = path.read_bytes()
  except FileNotFoundError:
    raise CheckpointError(f'{path}: no such file') from None
  except OSError as error:
    reason = error.strerror or error
    raise CheckpointError(f'{path}: cannot be read ({reason})') from error
  return parse_json(data, str(path), schema, remedy)


def parse_json(
  data: str | bytes, where: str, schema: Schema, remedy: str = REMEDY
) -> Any:
  """Parses JSON as `read_json` does.

  Strict, also where `json` is not: UTF-8, no key twice, finite numbers of at
  most 25 digits, at most 32 levels of lists and objects.

  Raises:
    CheckpointError: no such JSON, or not what `schema` says.
  """
  try:
    # Windows writes a mark at the start of files in UTF-8.
    text = data if isinstance(data, str) else data.decode('utf-8-sig')
    _check_depth(text)
    value = json.loads(
      text,
      parse_int=_whole_number,
      parse_float=_finite_number,
      parse_constant=_finite_number,
      object_pairs_hook=_object,
    )
  except ValueError as error:
    reason = printable(error, 120)
  else:
    return check_json(value, where, schema, remedy)
  raise CheckpointError(f'{where}: not readable as JSON ({reason}); {remedy}')


def check_json(
  value: Any, where: str, schema: Schema, remedy: str = REMEDY
) -> Any:
  """Returns a parsed value if it is as `parse_json` returns it.

  Raises:
    CheckpointError: too deep, not in Unicode, or not what `schema` says.
  """
  problem = _general_problem(value) or schema.problem(value)
  if problem:
    raise CheckpointError(f'{where}: {problem}; {remedy}')
  return value


def _check_depth(text: str) -> None:
  """Refuses deep text before `json` descends into it.

  A pass of the garbage collector at the bottom of the stack would print that
  its own callbacks have no room.
  """
  depth = 0
  for mark in _MARKS.finditer(text):
    first = mark[0][0]
    depth += (first in '[{') - (first in ']}')
    if depth > _DEEPEST:
      raise ValueError(f'more than {_DEEPEST} levels')


def _whole_number(text: str) -> int:
  if len(text) > _MOST_DIGITS:
    raise ValueError(f'a number of {len(text)} digits')
  return int(text)


def _finite_number(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f'the number {text[:20]}')
  return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    counts = collections.Counter(name for name, _ in pairs)
    ((twice, _),) = counts.most_common(1)
    raise ValueError(f'{name_of(twice)} is there twice')
  return found


def _general_problem(value: Any) -> str:
  """What is wrong with a value whatever it is for, or ''."""
  level = [value]
  for _ in range(_DEEPEST + 1):
    texts = [item for item in level if isinstance(item, str)]
    texts += [key for item in level if isinstance(item, dict) for key in item]
    for text in texts:
      if not text.isascii() and any('\ud800' <= c <= '\udfff' for c in text):
        return f'the text {shown(text)} is no Unicode'
    level = [
      part
      for item in level
      if isinstance(item, dict | list | tuple)
      for part in (item.values() if isinstance(item, dict) else item)
    ]
    if not level:
      return ''
  return f'has more than {_DEEPEST} levels of lists and objects'
