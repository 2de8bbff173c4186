"""Write a folder beside the one that it takes the place of at the end."""

import contextlib
import os
import re
import socket
import uuid
from collections.abc import Iterator

from etils import epath

from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.exporters import remote_folder

# Unfinished folders of this process.
_own: set[str] = set()


@contextlib.contextmanager
def replaced(target: epath.Path) -> Iterator[epath.Path]:
  """Yields an empty folder that takes the place of `target` at the end.

  After an error or a kill `target` is what it was before; on object storage,
  killed during the last copy, it is no export (`remote_folder`).

  Args:
    target: an older export, an empty folder, or a path that does not exist.

  Raises:
    LambdaVitError: `target` holds something else, is the current folder, or
      cannot be written.
  """
  if not files.is_remote(target):
    # What a link points to: renaming the link would leave that as it was.
    target = epath.Path(os.path.realpath(target))
    if target.exists() and os.path.samefile(target, os.curdir):
      raise LambdaVitError(
        f'{target}: is the current folder, which cannot be replaced; name a '
        'folder in it'
      )
  previous = target.parent / f'.{target.name}.previous'
  if previous.exists() and not target.exists():
    # Killed between the two renames below.
    previous.rename(target)
  if target.exists() and not target.is_dir():
    raise LambdaVitError(f'{target}: is a file; choose a folder')
  empty = not target.exists() or not any(target.iterdir())
  ours = (target / 'model.json', remote_folder.unfinished(target))
  if not empty and not any(path.exists() for path in ours):
    raise LambdaVitError(
      f'{target}: holds other files and no export; choose another folder'
    )
  _remove_abandoned(target)
  temporary = target.parent / _name(target)
  _own.add(temporary.name)
  try:
    temporary.mkdir(parents=True)
    yield temporary
    if files.is_remote(target):
      remote_folder.replace(target, temporary)
      return
    previous.rmtree(missing_ok=True)
    if target.exists():
      target.rename(previous)
    try:
      temporary.rename(target)
    except OSError:
      if previous.exists():
        previous.rename(target)
      raise
    previous.rmtree(missing_ok=True)
  except OSError as error:
    raise LambdaVitError(
      f'{target}: cannot write the export ({error.strerror or error}); choose '
      'another folder or free some space'
    ) from error
  finally:
    _own.discard(temporary.name)
    # What cannot be removed now is abandoned, and the next export tries again.
    with contextlib.suppress(OSError):
      temporary.rmtree(missing_ok=True)


def _host() -> str:
  return re.sub(r'[^\w-]', '-', socket.gethostname())


def _name(target: epath.Path) -> str:
  """Names the host and the process, so that another can tell if it is gone."""
  owner = f'{_host()}.{os.getpid()}'
  return f'.{target.name}.{owner}.{uuid.uuid4().hex[:8]}.part'


def _remove_abandoned(target: epath.Path) -> None:
  """Removes what killed exports to `target` on this host have left.

  A folder of a process that lives, or of another host, stays.
  """
  if not target.parent.exists():
    return
  pattern = re.compile(
    rf'\.{re.escape(target.name)}\.{re.escape(_host())}\.(\d+)\.\w+\.part'
  )
  # On object storage, a folder without files is not there.
  siblings: list[epath.Path] = []
  with contextlib.suppress(FileNotFoundError):
    siblings = list(target.parent.iterdir())
  for path in siblings:
    found = pattern.fullmatch(path.name)
    if found and path.name not in _own and not _is_alive(int(found[1])):
      with contextlib.suppress(OSError):
        path.rmtree(missing_ok=True)


def _is_alive(pid: int) -> bool:
  """Whether another process of this host runs; True where it is not known."""
  if pid == os.getpid():
    return False
  if os.name != 'posix':
    return True
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except (OSError, OverflowError):
    # It belongs to somebody else.
    return True
  return True
