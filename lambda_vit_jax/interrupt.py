"""SIGTERM and Ctrl-C: finish the step, save, say so, exit 143 or 130."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lambda_vit_jax.errors import LambdaVitError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(LambdaVitError):
  """The process was asked to stop, and everything is saved."""

  def __init__(self, signum: int, message: str):
    super().__init__(message)
    self.exit_code = 128 + signum


class StopFlag:
  """Set by a signal; `signum` is 0 until one came."""

  signum = 0


def raise_on_signals() -> None:
  """Outside of training there is nothing to save: a signal raises at once."""

  def handler(signum: int, frame: FrameType | None) -> None:
    del frame
    name = signal.Signals(signum).name
    raise StoppedError(
      signum,
      f'interrupted by {name}; finished stages are kept, run the same '
      'command again to continue',
    )

  for signum in _SIGNALS:
    signal.signal(signum, handler)


@contextlib.contextmanager
def stop_flag() -> Iterator[StopFlag]:
  """While open, a first signal only sets the flag; a second one raises."""
  flag = StopFlag()
  previous: dict[int, Any] = {
    signum: signal.getsignal(signum) for signum in _SIGNALS
  }

  def handler(signum: int, frame: FrameType | None) -> None:
    if flag.signum and callable(previous[signum]):
      previous[signum](signum, frame)
    flag.signum = signum

  try:
    for signum in _SIGNALS:
      signal.signal(signum, handler)
  except ValueError:
    # Not the main thread (a notebook's worker, a test): no handlers there.
    yield flag
    return
  try:
    yield flag
  finally:
    for number, old in previous.items():
      signal.signal(number, old)
