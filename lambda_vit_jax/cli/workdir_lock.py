"""One job at a time writes a workdir: `WORKDIR/lock.json` names it.

Whether its owner still lives is certain on the same machine, where the process
and the time at which it started are looked up. On another machine it counts as
dead once its heartbeat is older than `STALE_SECONDS`; clocks have to agree
within a minute or so. Where a heartbeat lies further in the future, clocks say
nothing, and its owner lives if it changes while it is watched.

On a file system, the file is read and written under `flock`, so that of two
jobs exactly one gets it (on network file systems as far as these support it).
Object storage has no such lock: there a job writes its name, waits, and sees
whose name is there. An owner that finds another name, because it was suspended
for longer than the bound, say, ends.
"""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import CheckpointError, LambdaVitError
from lambda_vit_jax.core.schema import Nullable, Number, Object, Text
from lambda_vit_jax.runtime import interrupts

NAME = 'lock.json'
STALE_SECONDS = 180.0

_BEAT_SECONDS = 20.0
# Heartbeats further in the future are of another clock.
_AHEAD_SECONDS = 60.0
# For two of them, and a slow storage.
_WATCH_SECONDS = 50.0
# A job that was killed a moment ago may not have ended yet.
_PATIENCE_SECONDS = 2.0
_RETRY_SECONDS = 0.2
# On object storage: for the other's name to arrive.
_SETTLE_SECONDS = 1.0


_OWNER = Object(
  {
    'host': Text(300),
    'machine': Text(1000),
    'pid': Number(1, 1 << 31, whole=True),
    'started': Nullable(Text(100)),
    'since': Text(100),
    'token': Text(100),
    'beat': Number(),
  }
)


class WorkdirLock:
  """Held by the leading process of a job from `acquire` to `release`."""

  def __init__(self, workdir: epath.Path):
    """Touches nothing yet."""
    self._path = workdir / NAME
    self._own = {
      'host': socket.gethostname(),
      'machine': _machine(),
      'pid': os.getpid(),
      'started': _started(os.getpid()),
      'since': datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
      'token': uuid.uuid4().hex,
    }
    # An owner whose heartbeat stood still while it was watched.
    self._dead: dict[str, Any] | None = None
    self._released = threading.Event()
    self._thread: threading.Thread | None = None

  def acquire(self) -> None:
    """Takes the lock, from a dead owner too, and keeps its heartbeat.

    Raises:
      LambdaVitError: another job uses the workdir.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while (other := self._take()) is not None:
      if self._stands_still(other):
        self._dead = other
        continue
      if time.monotonic() > end or not _is_here(other):
        raise self._refusal(other)
      interrupts.check()
      time.sleep(_RETRY_SECONDS)
    self._thread = threading.Thread(target=self._beat, daemon=True)
    self._thread.start()

  def release(self) -> None:
    """Removes the file, if it is still this job's."""
    if self._thread is None:
      return
    self._released.set()
    self._thread.join()
    self._thread = None
    # A storage that is gone keeps nobody from reporting why.
    with contextlib.suppress(OSError), _opened(self._path) as file:
      if self._is_own(file.read()):
        file.remove()

  def _take(self) -> dict[str, Any] | None:
    """Writes the own name; returns the living owner instead if there is one."""
    with _opened(self._path) as file:
      other = file.read()
      lives = other is not None and other != self._dead and _is_alive(other)
      if lives and not self._is_own(other):
        return other
      file.write(self._beating())
    if not isinstance(file, _RemoteFile):
      return None
    time.sleep(_SETTLE_SECONDS)
    other = file.read()
    return None if other is None or self._is_own(other) else other

  def _stands_still(self, other: dict[str, Any]) -> bool:
    """Watches a heartbeat from the future; others are not watched."""
    if _is_here(other) or other['beat'] < time.time() + _AHEAD_SECONDS:
      return False
    logging.getLogger(__name__).warning(
      '--workdir=%s: the clock of another job (%s) is ahead; watching it for '
      '%.0f s',
      self._path.parent,
      _name(other),
      _WATCH_SECONDS,
    )
    end = time.monotonic() + _WATCH_SECONDS
    while time.monotonic() < end:
      interrupts.check()
      time.sleep(_RETRY_SECONDS)
      with _opened(self._path) as file:
        if file.read() != other:
          return False
    return True

  def _beat(self) -> None:
    """Renews the heartbeat until the lock is released or lost."""
    while not self._released.wait(_BEAT_SECONDS):
      # A storage that does not answer for a moment is no reason to end.
      with contextlib.suppress(OSError), _opened(self._path) as file:
        other = file.read()
        if other is None or self._is_own(other):
          file.write(self._beating())
        else:
          interrupts.fail(self._loss(other))
          return

  def _beating(self) -> dict[str, Any]:
    return {**self._own, 'beat': time.time()}

  def _is_own(self, found: dict[str, Any] | None) -> bool:
    return found is not None and found.get('token') == self._own['token']

  def _refusal(self, other: dict[str, Any]) -> LambdaVitError:
    wait = 'wait for it or stop it'
    if not _is_here(other):
      age = max(0, round(time.time() - other['beat']))
      wait += (
        f' (last heard of {age} s ago, taken for dead after '
        f'{STALE_SECONDS:.0f} s)'
      )
    return LambdaVitError(
      f'--workdir={self._path.parent}: another job uses it ({_name(other)}); '
      f'{wait}, or choose another --workdir'
    )

  def _loss(self, other: dict[str, Any]) -> LambdaVitError:
    return LambdaVitError(
      f'--workdir={self._path.parent}: another job has taken it over '
      f'({_name(other)}), since this one was not heard of for long; what was '
      'saved is intact'
    )


def _name(owner: dict[str, Any]) -> str:
  return f'{owner["host"]}, process {owner["pid"]}, since {owner["since"]}'


def _is_here(owner: dict[str, Any]) -> bool:
  """Whether its process can be looked up."""
  return bool(owner['machine'] == _machine())


def _is_alive(owner: dict[str, Any]) -> bool:
  if _is_here(owner):
    started = _started(owner['pid'])
    return started is not None and started == owner['started']
  return bool(time.time() - owner['beat'] < STALE_SECONDS)


def _machine() -> str:
  """Where process ids mean the same: a host since its boot, or a container."""
  parts = [socket.gethostname()]
  with contextlib.suppress(OSError):
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id')
    parts += [boot.read_text().strip(), os.readlink('/proc/self/ns/pid')]
  return ' '.join(parts)


def _started(pid: int) -> str | None:
  """When a process started, None if there is none; zombies have ended.

  Without `/proc` the time is not known, and the process id has to do.
  """
  if not pathlib.Path('/proc/self/stat').exists():
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return None
    except PermissionError:
      pass
    return 'unknown'
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return None
  # The name, in parentheses, may hold anything; the state follows it, and 19
  # fields later the start in ticks since boot.
  fields = text.rpartition(')')[2].split()
  return None if fields[0] in 'ZX' else fields[19]


@contextlib.contextmanager
def _opened(path: epath.Path) -> Iterator['_LocalFile | _RemoteFile']:
  """The lock's file, while no other process has it open (if local)."""
  if files.is_remote(path):
    yield _RemoteFile(path)
    return
  while True:
    with open(
      os.open(path, os.O_RDWR | os.O_CREAT, 0o666),
      'r+',
      encoding='utf-8',
      errors='replace',
    ) as file:
      # Some network file systems cannot.
      with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
      # Unless its last owner has removed it in the meantime.
      with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
          yield _LocalFile(path, file)
          return


class _LocalFile:
  def __init__(self, path: epath.Path, file: Any):
    self._path = path
    self._file = file

  def read(self) -> dict[str, Any] | None:
    self._file.seek(0)
    return _parse(self._file.read())

  def write(self, owner: dict[str, Any]) -> None:
    text = json.dumps(owner) + '\n'
    # In place, so that a full disk does not lose the lock.
    os.pwrite(self._file.fileno(), text.encode(), 0)
    self._file.truncate(len(text))

  def remove(self) -> None:
    self._path.unlink()


class _RemoteFile:
  def __init__(self, path: epath.Path):
    self._path = path

  def read(self) -> dict[str, Any] | None:
    try:
      return _parse(self._path.read_bytes().decode(errors='replace'))
    except FileNotFoundError:
      return None

  def write(self, owner: dict[str, Any]) -> None:
    self._path.write_text(json.dumps(owner) + '\n')

  def remove(self) -> None:
    self._path.unlink(missing_ok=True)


def _parse(text: str) -> dict[str, Any] | None:
  """The owner; None for what no living job writes: half a line, say."""
  with contextlib.suppress(CheckpointError):
    found: dict[str, Any] = files.parse_json(text, NAME, _OWNER)
    return found
  return None
