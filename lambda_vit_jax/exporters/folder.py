"""Replace a folder in one step: written beside its place, then renamed."""

import contextlib
import uuid
from collections.abc import Iterator

from etils import epath

from lambda_vit_jax.core.errors import LambdaVitError


@contextlib.contextmanager
def replaced_folder(target: epath.Path) -> Iterator[epath.Path]:
  """Yields an empty folder that takes the place of `target` at the end.

  After an error or a kill `target` is what it was before.

  Args:
    target: an older export, an empty folder, or a path that does not exist.

  Raises:
    LambdaVitError: `target` holds something else, or cannot be written.
  """
  _recover(target)
  _check_target(target)
  temporary = target.parent / f'.{target.name}.{uuid.uuid4().hex[:8]}.part'
  try:
    temporary.mkdir(parents=True)
    yield temporary
    _install(temporary, target)
  except OSError as error:
    raise LambdaVitError(
      f'{target}: cannot write the export ({error.strerror or error}); choose '
      'another folder or free some space'
    ) from error
  finally:
    if temporary.exists():
      temporary.rmtree()


def _check_target(target: epath.Path) -> None:
  """Refuses to replace anything but an export."""
  if not target.exists():
    return
  if not target.is_dir():
    raise LambdaVitError(f'{target}: is a file; choose a folder')
  if any(target.iterdir()) and not (target / 'model.json').exists():
    raise LambdaVitError(
      f'{target}: holds other files and no export; choose another folder'
    )


def _previous(target: epath.Path) -> epath.Path:
  return target.parent / f'.{target.name}.previous'


def _recover(target: epath.Path) -> None:
  """Undoes an exchange that was killed between its two renames."""
  if _previous(target).exists() and not target.exists():
    _previous(target).rename(target)


def _install(temporary: epath.Path, target: epath.Path) -> None:
  """Renames the finished folder to `target`, then deletes the old one."""
  previous = _previous(target)
  if previous.exists():
    previous.rmtree()
  if target.exists():
    target.rename(previous)
  temporary.rename(target)
  if previous.exists():
    previous.rmtree()
