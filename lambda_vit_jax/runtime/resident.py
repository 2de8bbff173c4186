"""Measure how much memory a piece of work adds to this process."""

import gc
import pathlib
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar('_Result')

_PROCESS = pathlib.Path('/proc/self')
# What to write into `clear_refs` to set the peak back to what is resident now.
_RESET_PEAK = '5'


def peak_growth(work: Callable[[], _Result]) -> tuple[_Result, int | None]:
  """Runs `work`; returns its result, and the bytes that it added at its peak.

  The bytes are of resident memory, from the kernel, so they count what
  libraries allocate by themselves; but not what is taken from memory that was
  freed and kept before. None on systems other than Linux.
  """
  gc.collect()
  before = _reset()
  result = work()
  after = _peak()
  if before is None or after is None:
    return result, None
  return result, max(after - before, 0)


def _reset() -> int | None:
  try:
    (_PROCESS / 'clear_refs').write_text(_RESET_PEAK)
  except OSError:
    return None
  return _peak()


def _peak() -> int | None:
  """The peak of resident memory in bytes."""
  try:
    text = (_PROCESS / 'status').read_text()
  except OSError:
    return None
  lines = (line.split() for line in text.splitlines())
  return next((int(f[1]) * 1024 for f in lines if f[:1] == ['VmHWM:']), None)
