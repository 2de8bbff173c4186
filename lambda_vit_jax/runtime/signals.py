"""Training after SIGTERM or Ctrl-C: finish the step, save, exit 143 or 130.

In a job of several processes, a signal to any of them stops all at the same
step. They agree on it through the coordination service, without a device.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax

from lambda_vit_jax.runtime import interrupts, processes
from lambda_vit_jax.runtime.supervise import SIGNALS


class StopFlag:
  """Set by a signal.

  Attributes:
    has_work: whether there is something to save; not before the first step.
    is_saving: whether a checkpoint is being written.
  """

  def __init__(self) -> None:
    self.has_work = False
    self.is_saving = False
    self._own = 0
    self._since = 0.0

  @property
  def signum(self) -> int:
    """0 until this process receives a signal."""
    return self._own or interrupts.received()

  def receive(self, signum: int) -> bool:
    """Notes a signal; returns whether the process should stop at once.

    That is on a second signal, unless a checkpoint is being saved or the first
    one came only a moment ago.
    """
    now = time.monotonic()
    again = self._own and now - self._since > interrupts.SAME_SECONDS
    if not self._own:
      self._own, self._since = signum, now
    return bool(again) and not self.is_saving

  def reached(self, step: int) -> int:
    """The signal that stops training after `step` steps, 0 to continue.

    Raises:
      LambdaVitError: see `interrupts.fail`.
    """
    del step
    self.has_work = True
    interrupts.check()
    return self.signum

  def finish(self) -> int:
    """After the last step: the signal that arrived in the meantime, or 0."""
    return self.signum

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """While open, further signals are ignored."""
    self.is_saving = True
    try:
      yield
    finally:
      self.is_saving = False


class SharedStopFlag(StopFlag):
  """A stop flag for a job of several processes, which stop at the same step.

  The process that gets a signal publishes it. In every process a thread then
  publishes how many steps were begun and holds back the next one; all continue
  to the greatest of these numbers plus one. The thread answers even while the
  main thread waits for a collective, so that no process waits in vain.
  """

  def __init__(self, name: str):
    """Starts the thread that listens for a published signal.

    Args:
      name: of this stretch of training, the same in all processes.
    """
    super().__init__()
    # All have to agree on a step, even if one of them has taken none.
    self.has_work = True
    self._name = f'lambda_vit/stop/{name}'
    self._lock = threading.Lock()
    self._step = 0
    self._stop_at: int | None = None
    self._agreed = 0
    self._published = False
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()

  def reached(self, step: int) -> int:
    interrupts.check()
    if self.signum and not self._published:
      self._published = True
      processes.publish(self._name, self.signum)
    with self._lock:
      self._step = step
      at_end = self._stop_at is not None and step >= self._stop_at
      return self._agreed if at_end else 0

  def finish(self) -> int:
    self._closed.set()
    return max(processes.gather(self.signum))

  def _listen(self) -> None:
    try:
      signum = processes.await_value(self._name, self._closed.is_set)
      if signum is None:
        return
      with self._lock:
        processes.publish(f'{self._name}/{jax.process_index()}', self._step)
        steps = [
          processes.await_value(f'{self._name}/{index}', self._closed.is_set)
          for index in range(jax.process_count())
        ]
        if None not in steps:
          self._stop_at, self._agreed = max(steps) + 1, signum
    except processes.LostProcessError:
      # The main thread notices it by itself.
      return


@contextlib.contextmanager
def stop_flag(name: str = '') -> Iterator[StopFlag]:
  """While open, a first signal only sets the flag.

  A second one ends the command, if there is an `interrupts.watch`; else it goes
  to the handler of before.

  Args:
    name: of this stretch of training, the same in all processes of a job.

  Raises:
    StoppedError: a signal has arrived before.
  """
  interrupts.check()
  flag = SharedStopFlag(name) if jax.process_count() > 1 else StopFlag()
  with interrupts.left_to(flag), _handled_by(flag):
    yield flag


@contextlib.contextmanager
def _handled_by(flag: StopFlag) -> Iterator[None]:
  previous: dict[int, Any] = {
    signum: signal.getsignal(signum) for signum in SIGNALS
  }

  def handler(signum: int, frame: FrameType | None) -> None:
    old = previous[signum]
    if flag.receive(signum) and callable(old):
      old(signum, frame)

  try:
    for signum in SIGNALS:
      signal.signal(signum, handler)
  except ValueError:
    # Not the main thread (a notebook's worker, a test): no handlers there.
    yield
    return
  try:
    yield
  finally:
    for number, old in previous.items():
      signal.signal(number, old)
