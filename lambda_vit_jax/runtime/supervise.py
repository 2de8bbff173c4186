"""A process that watches the one that works, and has the last word.

When a job of several processes breaks, JAX's coordination client aborts the
process from a thread of its own, with a stack trace of C++: nothing in that
process can answer. So the work is done by a child, and its parent, which
has loaded nothing, waits, passes signals on, and says in one line what
happened.
"""

import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# From this line on, what a dying child writes is the abort's stack trace.
_ABORT = b'JAX distributed service detected fatal errors'
# Chatter of the collectives' library.
_CHATTER = b'[Gloo]'
_ANNOUNCED = b'\0exit '
_JOINED = b'\0joined\n'


def lost_message(
  index: int | None, count: int | None, which: str = 'another process'
) -> str:
  """The line of a process whose job broke."""
  own = '' if index is None else f'process {index} of {count}: '
  return (
    f'{own}{which} of the job has ended or cannot be reached; see its '
    'output, then run the same command again on all: what was saved is intact'
  )


def joined() -> None:
  """In the child: the processes of the job have found each other."""
  os.write(2, _JOINED)


def announce(code: int) -> None:
  """In the child: all is said, and this will be the exit code.

  Should the job's end abort the child now, the parent adds nothing.
  """
  os.write(2, _ANNOUNCED + b'%d\n' % code)


def run(work: Callable[[], int], index: int | None, count: int | None) -> int:
  """Does `work` in a child process and returns its exit code.

  Must be called before JAX is loaded, from a process without threads.

  Args:
    work: returns the exit code; runs in the child.
    index: of this process in the job, if known.
    count: processes of the job, if known.

  Returns:
    The child's code; 1 where it was aborted or killed, after one line.
  """
  native, child_stderr = os.pipe()
  alive, guard = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  # Blocked in all threads of the parent, and waited for in one: a handler of
  # Python would not run while the main thread reads, should the signal come
  # just before.
  before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  child = os.fork()
  if child == 0:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(native)
    os.close(guard)
    _be_the_child(work, child_stderr, alive)
  os.close(child_stderr)
  os.close(alive)

  threading.Thread(target=_forward, args=(child,), daemon=True).start()
  reaper = threading.Thread(target=_end_its_group, args=(child,), daemon=True)
  reaper.start()
  heard = _pass_on(native)
  reaper.join()
  _, status = os.waitpid(child, 0)
  os.close(guard)
  code = os.waitstatus_to_exitcode(status)
  if code >= 0 or heard.announced is not None:
    return code if heard.announced is None else heard.announced
  exit_code = 1
  held = heard.held.decode(errors='replace')
  if _ABORT in heard.held and not heard.joined:
    line = (
      f'the {"" if count is None else f"{count} "}processes of the job did not '
      'find each other; start all of them, with a --coordinator that all reach'
    )
  elif _ABORT in heard.held:
    line = lost_message(index, count, _who(held))
  elif -code in SIGNALS:
    exit_code = 128 - code
    line = 'interrupted before the job began; run the same command again'
  else:
    sys.stderr.write(held)
    line = (
      f'the working process was ended by {signal.Signals(-code).name} (out of '
      'memory, perhaps); what was saved is intact, run the same command again'
    )
  print(f'lambda-vit: {line}', file=sys.stderr)
  return exit_code


def _forward(child: int) -> None:
  """Passes signals on to the child, for ever."""
  while True:
    signum = signal.sigwait(SIGNALS)
    # It may have ended by now.
    with contextlib.suppress(ProcessLookupError):
      os.kill(child, signum)


def _end_its_group(child: int) -> None:
  """Waits for the child; should it be killed, nothing that it began stays.

  Its workers would read data for nobody, and hold the pipe open that its
  parent reads to the end.
  """
  # Not reaped yet: the number stays the child's.
  ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
  if ended is not None and ended.si_code != os.CLD_EXITED:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(child, signal.SIGKILL)


def _be_the_child(work: Callable[[], int], native: int, alive: int) -> None:
  """Works and exits; never returns."""
  # In a group of its own: signals come once, from the parent.
  os.setpgid(0, 0)
  # People are spoken to directly, so that bars work; what libraries of C++
  # write to descriptor 2 goes by the parent.
  sys.stderr = io.TextIOWrapper(
    os.fdopen(os.dup(2), 'wb'), line_buffering=True, errors='replace'
  )
  os.dup2(native, 2)
  os.close(native)

  def die_with_parent() -> None:
    os.read(alive, 1)
    os.killpg(os.getpid(), signal.SIGKILL)

  threading.Thread(target=die_with_parent, daemon=True).start()
  code = 1
  try:
    code = work()
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclasses.dataclass
class _Heard:
  """What the child said to its parent.

  Attributes:
    joined: whether the job began.
    announced: the exit code that it announced.
    held: the lines of an abort, which are not passed on.
  """

  joined: bool = False
  announced: int | None = None
  held: bytes = b''


def _pass_on(native: int) -> _Heard:
  """Forwards the child's own lines until it ends."""
  heard = _Heard()
  with os.fdopen(native, 'rb') as lines:
    for line in lines:
      if line == _JOINED:
        heard.joined = True
      elif line.startswith(_ANNOUNCED):
        heard.announced = int(line.removeprefix(_ANNOUNCED))
      elif heard.held or _ABORT in line:
        heard.held += line
      elif not line.startswith(_CHATTER):
        os.write(2, line)
  return heard


def _who(text: str) -> str:
  """Names the process that the coordination service misses."""
  found = re.search(r'heartbeats\):?\s+(\d+)', text) or re.search(
    r'[Tt]ask (\d+)', text
  )
  if found:
    return f'process {found[1]}'
  # Nothing said by the service: it is the service that is gone.
  return 'process 0'
