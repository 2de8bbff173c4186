"""Read and write JSON files, local or remote, through etils.epath."""

import json
from typing import Any

from etils import epath

from lambda_vit_jax.core.errors import CheckpointError

_REMEDY = 'delete it to have its stage run again'


def absolute(path: str | epath.PathLike) -> epath.Path:
  """Returns an absolute path, as Orbax needs it; `gs://…` is one already."""
  path = epath.Path(path).expanduser()
  return path if '://' in str(path) else path.absolute()


def write_json(path: str | epath.Path, value: Any) -> None:
  """Writes JSON atomically: a reader sees the old file or the new one."""
  path = epath.Path(path)
  temporary = path.parent / f'.{path.name}.part'
  temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + '\n')
  temporary.replace(path)


def read_object(path: str | epath.Path) -> dict[str, Any]:
  """Reads a JSON object, such as any JSON file of a workdir.

  Raises:
    CheckpointError: missing or malformed.
  """
  found = read_json(path)
  if not isinstance(found, dict):
    raise CheckpointError(f'{path}: holds no JSON object; {_REMEDY}')
  return found


def read_json(path: str | epath.Path) -> Any:
  """Reads JSON.

  Raises:
    CheckpointError: missing or malformed.
  """
  path = epath.Path(path)
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    raise CheckpointError(f'{path}: no such file') from None
  except (OSError, ValueError) as error:
    raise CheckpointError(
      f'{path}: not readable as JSON ({error}); {_REMEDY}'
    ) from error
