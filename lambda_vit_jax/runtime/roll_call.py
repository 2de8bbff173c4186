"""Say which processes of a job are missing, while it waits for them.

JAX's coordination service tells nobody who has connected until all have. What
can be seen without it: process 0 sees the connections to its port, and every
other process sees whether process 0 answers.
"""

import contextlib
import pathlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from lambda_vit_jax.runtime.progress import Reporter

_EVERY_SECONDS = 30.0
_ANSWER_SECONDS = 5.0

# State of an open connection in /proc/net/tcp.
_ESTABLISHED = '01'


@contextlib.contextmanager
def watched() -> Iterator[None]:
  """While open, prints who is missing, every 30 seconds if that changed."""
  done = threading.Event()
  thread = threading.Thread(target=_report, args=(done,), daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


def _report(done: threading.Event) -> None:
  last = ''
  while not done.wait(_EVERY_SECONDS):
    line = _who_is_missing()
    if line != last and not done.is_set():
      Reporter().warn(line)
    last = line


def _who_is_missing() -> str:
  """One line, from what JAX knows of this process once it tries to connect."""
  # JAX has no public name for it; see `processes`.
  from jax._src import distributed

  state: Any = distributed.global_state
  if state.coordinator_address is None or state.num_processes is None:
    return 'still looking for the job that this process belongs to'
  return missing_line(
    state.process_id, state.num_processes, state.coordinator_address
  )


def missing_line(index: int, count: int, address: str) -> str:
  """What process `index` of `count` can tell of the others.

  Args:
    index: of this process.
    count: processes of the job.
    address: `HOST:PORT` of process 0.
  """
  own = f'process {index} of {count}: still waiting: '
  host, _, port = address.rpartition(':')
  if index:
    if not _answers(host, int(port)):
      return f'{own}process 0 does not answer at {address}'
    return f'{own}process 0 is there, others are missing'
  come = _connected(int(port))
  if come is None or come >= count - 1:
    return f'{own}not all of the others have come'
  others = 'process 1' if count == 2 else f'processes 1 to {count - 1}'
  if not come:
    return f'{own}{others} missing; start with --coordinator={address}'
  return f'{own}only {come} of {others} came to {address}'


def _answers(host: str, port: int) -> bool:
  try:
    socket.create_connection((host, port), _ANSWER_SECONDS).close()
  except OSError:
    return False
  return True


def _connected(port: int) -> int | None:
  """Connections of others to a port of this machine; None if not to be seen."""
  found = 0
  for name in ('tcp', 'tcp6'):
    try:
      lines = pathlib.Path('/proc/net', name).read_text().splitlines()[1:]
    except OSError:
      return None
    for line in lines:
      _, local, _, state = line.split()[:4]
      if int(local.rpartition(':')[2], 16) == port and state == _ESTABLISHED:
        found += 1
  # One of them is that of this process itself.
  return max(found - 1, 0)
