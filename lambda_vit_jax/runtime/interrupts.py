"""SIGTERM and Ctrl-C: noted by handlers that do nothing, read by the work.

An exception that a handler raises is lost if Python happens to run a destructor
or a callback of the garbage collector at that moment. So no handler raises. C
code writes a signal's number into a pipe (`signal.set_wakeup_fd`), which a
thread reads even while the main thread is in a long call of XLA. The work calls
`check` between its pieces, which raises there. If no piece ends soon, or the
signal comes again, the thread ends the process: every file of a run is written
atomically, so nothing is lost but the piece.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from lambda_vit_jax.core.errors import LambdaVitError, StoppedError
from lambda_vit_jax.runtime.supervise import SIGNALS

SAME_SECONDS = 2.0
"""A launcher, its shell and a scheduler may each send the same signal."""

# How long the piece that is running may go on after a signal, and how long the
# process may take to leave in order after it.
_PIECE_SECONDS = 2.0
_LEAVING_SECONDS = 30.0

_TICK_SECONDS = 0.1
# For printing the last line, if nobody reads what is printed.
_PRINTING_SECONDS = 1.0
_CLOSE = 0
_SHOW_CURSOR = '\x1b[?25h'

End = Callable[[StoppedError], int]


class Keeper(Protocol):
  """Work that has something to save when a signal arrives."""

  @property
  def has_work(self) -> bool:
    """Whether a first signal is left to it."""

  @property
  def is_saving(self) -> bool:
    """Whether the process must not end now."""


class Watch:
  """The signals of one command, from `watch`."""

  def __init__(self, end: End):
    """Starts the thread that reads the pipe; see `watch`."""
    self.signum = 0
    self.keeper: Keeper | None = None
    self.leaving = False
    self.failure: LambdaVitError | None = None
    self._end = end
    self._owner = threading.current_thread()
    self._pipe, self._wakeup = os.pipe()
    os.set_blocking(self._wakeup, False)
    self._before = {number: signal.getsignal(number) for number in SIGNALS}
    self._fd_before = signal.set_wakeup_fd(
      self._wakeup, warn_on_full_buffer=False
    )
    for number in SIGNALS:
      signal.signal(number, _ignore)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Puts the handlers back; afterwards `signum` has every signal so far."""
    for number, handler in self._before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(self._fd_before)
    os.write(self._wakeup, bytes([_CLOSE]))
    self._thread.join()
    os.close(self._wakeup)
    os.close(self._pipe)

  def check(self) -> None:
    """See the function `check`."""
    if threading.current_thread() is not self._owner:
      return
    if self.failure is not None:
      raise self.failure
    if self.signum and not (self.keeper and self.keeper.has_work):
      self.leaving = True
      raise stopped(self.signum)

  def _listen(self) -> None:
    while (signum := self._read(None)) is None:
      pass
    if signum == _CLOSE:
      return
    self.signum, first = signum, time.monotonic()
    # Since when nothing holds the process back from ending.
    since = first
    while (again := self._read(_TICK_SECONDS)) != _CLOSE:
      now, keeper = time.monotonic(), self.keeper
      saving = keeper is not None and keeper.is_saving
      if saving or (keeper is not None and keeper.has_work):
        since = now
      patience = _LEAVING_SECONDS if self.leaving else _PIECE_SECONDS
      repeated = again is not None and now - first > SAME_SECONDS
      if now - since > patience or (repeated and not saving):
        self._end_now()

  def _read(self, timeout: float | None) -> int | None:
    """The next signal, or `_CLOSE`; None after `timeout` seconds without one.

    C code also writes the numbers of signals that others handle.
    """
    ready, _, _ = select.select([self._pipe], [], [], timeout)
    number = os.read(self._pipe, 1)[0] if ready else None
    return number if number in (_CLOSE, *SIGNALS) else None

  def _end_now(self) -> None:
    """Ends the process from the thread; never returns."""
    code = 128 + self.signum
    timer = threading.Timer(_PRINTING_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()
    for child in multiprocessing.active_children():
      child.kill()
    if sys.stderr.isatty():
      # A progress bar hides it.
      sys.stderr.write(_SHOW_CURSOR)
    self._end(stopped(self.signum))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


_watch: Watch | None = None


@contextlib.contextmanager
def watch(end: End) -> Iterator[None]:
  """While open, signals end the command in order, or at once if they must.

  Leaving it raises the signal that arrived and that nothing has raised yet. It
  does nothing within another one, nor outside the main thread.

  Args:
    end: reports that the process ends, from another thread.

  Raises:
    StoppedError: a signal arrived.
  """
  global _watch
  main = threading.current_thread() is threading.main_thread()
  if _watch is not None or not main:
    yield
    return
  _watch = opened = Watch(end)
  try:
    yield
  finally:
    opened.leaving = True
    opened.close()
    _watch = None
  if opened.signum:
    raise stopped(opened.signum)


def check() -> None:
  """Raises if the command should end; call it between pieces of work.

  Raises:
    StoppedError: a signal arrived.
    LambdaVitError: see `fail`.
  """
  if _watch is not None:
    _watch.check()


def received() -> int:
  """The signal that the command has received; 0 for none."""
  return 0 if _watch is None else _watch.signum


def fail(error: LambdaVitError) -> None:
  """Makes the next `check` raise an error that a thread has found."""
  if _watch is not None:
    _watch.failure = error


@contextlib.contextmanager
def left_to(keeper: Keeper) -> Iterator[None]:
  """While open, a first signal is left to work that has something to save."""
  opened = _watch
  if opened is None:
    yield
    return
  opened.keeper = keeper
  try:
    yield
  except BaseException:
    opened.leaving = True
    raise
  finally:
    opened.keeper = None


def stopped(signum: int) -> StoppedError:
  """The error for a signal where there is nothing to save."""
  return StoppedError(
    signum,
    f'interrupted by {signal.Signals(signum).name}; finished stages are kept, '
    'run the same command again to continue',
  )


def _ignore(signum: int, frame: Any) -> None:
  """Python's part of the handler; C code has written the number already."""
  del signum, frame


def _forget() -> None:
  """In a forked child, whose signals are not those of the parent."""
  global _watch
  if _watch is not None:
    _watch = None
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
      signal.signal(number, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget)
