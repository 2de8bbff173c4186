"""Run the work in a child process so that the parent can report a crash.

When a job of several processes breaks, JAX's coordination client aborts the
process from one of its own threads with a C++ stack trace, and nothing in that
process can catch it. So a child does the work. Its parent, which has not
loaded JAX, waits, forwards signals, and reports in one line what happened.
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

# From this line on, an aborting child writes its stack trace.
_ABORT = b'JAX distributed service detected fatal errors'
# Log lines of the library of collectives.
_CHATTER = b'[Gloo]'
_ANNOUNCED = b'\0exit '
_JOINED = b'\0joined\n'


def lost_message(
  index: int | None, count: int | None, which: str = 'another process'
) -> str:
  """The error line of a process whose job broke."""
  own = '' if index is None else f'process {index} of {count}: '
  return (
    f'{own}{which} of the job has ended or cannot be reached; see its '
    'output, then run the same command again on all: what was saved is intact'
  )


def joined() -> None:
  """Reports to the parent that the processes of the job have connected."""
  os.write(2, _JOINED)


def announce(code: int) -> None:
  """Reports to the parent the exit code, after all messages are printed.

  If the end of the job aborts the child after that, the parent prints nothing.
  """
  os.write(2, _ANNOUNCED + b'%d\n' % code)


def run(work: Callable[[], int], index: int | None, count: int | None) -> int:
  """Runs `work` in a child process and returns its exit code.

  Must be called before JAX is loaded, from a process with a single thread.

  Args:
    work: returns the exit code; runs in the child.
    index: of this process in the job, if known.
    count: processes of the job, if known.

  Returns:
    The child's code; 1 if it was aborted or killed, after one line on stderr.
  """
  native, child_stderr = os.pipe()
  alive, guard = os.pipe()
  sys.stdout.flush()
  sys.stderr.flush()
  # Signals are blocked in all threads of the parent and one thread waits for
  # them: if a signal came just before the main thread starts to read, a Python
  # handler would not run until the read returns.
  before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
  child = os.fork()
  if child == 0:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    os.close(native)
    os.close(guard)
    _run_child(work, child_stderr, alive)
  os.close(child_stderr)
  os.close(alive)

  threading.Thread(target=_forward_signals, args=(child,), daemon=True).start()
  reaper = threading.Thread(target=_kill_group_of, args=(child,), daemon=True)
  reaper.start()
  heard = _forward_output(native)
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


def _forward_signals(child: int) -> None:
  """Forwards signals to the child, forever."""
  while True:
    signum = signal.sigwait(SIGNALS)
    # The child may have ended by now.
    with contextlib.suppress(ProcessLookupError):
      os.kill(child, signum)


def _kill_group_of(child: int) -> None:
  """Waits for the child; if it is killed, kills its process group too.

  Its data workers would otherwise go on, and keep open the pipe that the parent
  reads to the end.
  """
  # Not reaped yet (WNOWAIT), so that its process id is not reused.
  ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
  if ended is not None and ended.si_code != os.CLD_EXITED:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(child, signal.SIGKILL)


def _run_child(work: Callable[[], int], native: int, alive: int) -> None:
  """Runs the work and exits; never returns."""
  # In its own process group, so that signals come once, from the parent.
  os.setpgid(0, 0)
  # Python's stderr stays the terminal, so that progress bars work; what C++
  # libraries write to descriptor 2 goes through the parent.
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
  """What the child wrote: its reports, and the lines of an abort."""

  joined: bool = False
  announced: int | None = None
  held: bytes = b''


def _forward_output(native: int) -> _Heard:
  """Forwards the child's lines until it ends."""
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
  """Names the process that the coordination service reports as lost."""
  found = re.search(r'heartbeats\):?\s+(\d+)', text) or re.search(
    r'[Tt]ask (\d+)', text
  )
  if found:
    return f'process {found[1]}'
  # The service, which runs in process 0, reported nothing: it is gone itself.
  return 'process 0'
