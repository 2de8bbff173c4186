"""Progress bars and messages on stderr.

A rich progress bar on a terminal, plain lines if output goes to a file, nothing
with `--quiet`. Only process 0 of a multi-host job prints.
"""

import contextlib
import datetime
import sys
import time
from collections.abc import Iterator

import rich.console
import rich.progress

from lambda_vit_jax.core.text import printable
from lambda_vit_jax.runtime import interrupts

# Seconds between plain progress lines.
_PLAIN_EVERY = 10.0


class Bar:
  """Progress of one task, as a bar or as plain lines."""

  def __init__(
    self,
    reporter: 'Reporter',
    description: str,
    total: int,
    progress: rich.progress.Progress | None = None,
  ):
    self._reporter = reporter
    self._description = description
    self._total = total
    self._done = 0
    self._last = self._start = time.monotonic()
    # What a resumed task has done before counts for no speed.
    self._before: int | None = None
    self._progress = progress
    if progress is not None:
      self._task = progress.add_task(description, total=total, note='')

  def update(self, done: int, note: str = '') -> None:
    """Sets how much is done, and a short note next to it.

    Raises:
      StoppedError: a signal arrived (`interrupts.check`).
    """
    interrupts.check()
    # The last batch may be padded.
    done = min(done, self._total)
    if self._before is None:
      self._before, self._start = done, time.monotonic()
    last = done == self._total > self._done
    self._done = done
    if self._progress is not None:
      self._progress.update(self._task, completed=done, note=note)
      return
    now = time.monotonic()
    # The last line always, or a file would never show how a stage ended.
    if last or (done < self._total and now - self._last >= _PLAIN_EVERY):
      self._last = now
      parts = (f'{self._description}: {done}/{self._total}', note)
      left = self._left(now)
      self._reporter.say(' '.join(x for x in (*parts, left) if x))

  def _left(self, now: float) -> str:
    """How long it will take at the speed so far, as text; '' if unknown."""
    done = self._done - (self._before or 0)
    if self._done == self._total or done <= 0:
      return ''
    seconds = (now - self._start) / done * (self._total - self._done)
    return f' {datetime.timedelta(seconds=round(seconds))} left'

  def advance(self, count: int = 1, note: str = '') -> None:
    """Adds `count` to how much is done."""
    self.update(self._done + count, note)


class Reporter:
  """Prints messages and bars on stderr; results go to stdout elsewhere."""

  def __init__(self, quiet: bool = False, leader: bool = True):
    self._leader = leader
    self._silent = quiet or not leader
    self.console = rich.console.Console(stderr=True, highlight=False)

  def say(self, line: str) -> None:
    """Prints one line, unless quiet."""
    if not self._silent:
      self._print(line)

  def warn(self, line: str) -> None:
    """Prints a warning, with `--quiet` as well."""
    if self._leader:
      self._print(f'warning: {line}')

  def _print(self, line: str) -> None:
    self.console.print(
      printable(line), markup=False, emoji=False, soft_wrap=True
    )

  @contextlib.contextmanager
  def bar(self, description: str, total: int) -> Iterator[Bar]:
    """Shows progress towards `total` while the context is open."""
    if self._silent or not sys.stderr.isatty():
      yield Bar(self, description, total)
      return
    columns = (
      rich.progress.TextColumn('{task.description}'),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeRemainingColumn(),
      rich.progress.TextColumn('{task.fields[note]}'),
    )
    with rich.progress.Progress(*columns, console=self.console) as progress:
      yield Bar(self, description, total, progress)
