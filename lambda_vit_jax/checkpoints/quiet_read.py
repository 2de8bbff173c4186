"""A read of Orbax's that fails with one line, and nothing printed after it."""

import gc
import inspect
import sys
from collections.abc import Callable
from typing import Any


class UnreadableError(Exception):
  """Why Orbax could not read a folder, in one line."""


def read_quietly(read: Callable[[], Any]) -> Any:
  """What `read`, which calls Orbax, gives; a failure in one line.

  Orbax reads arrays side by side. Where one fails, the others are left behind:
  suspended in reference cycles, or on their way to an event loop that is
  closed. Each would print a traceback, now or later, after that one line.

  Raises:
    UnreadableError: for whatever `read` raised.
  """
  hook = sys.unraisablehook
  if not isinstance(hook, _LeftBehind):
    sys.unraisablehook = _LeftBehind(hook)
  try:
    found = read()
  except Exception as error:
    # Tensorstore reports damaged files as a bare Exception.
    reason = ' '.join(str(error).split())[:200]
  else:
    sys.unraisablehook = hook
    return found
  # Beyond the handler nothing holds the traceback and its frames any more.
  gc.collect()
  raise UnreadableError(reason)


class _LeftBehind:
  """A hook for `sys.unraisablehook` that is silent about failed reads.

  It stays after a failure, since tensorstore's threads answer in their own
  time, and passes everything else on.
  """

  def __init__(self, then: Callable[[Any], Any]):
    self._then = then

  def __call__(self, report: Any) -> None:
    loop_closed = (
      isinstance(report.exc_value, RuntimeError)
      and str(report.exc_value) == 'Event loop is closed'
    )
    if not inspect.iscoroutine(report.object) and not loop_closed:
      self._then(report)
