"""No signal is lost, whatever runs when it arrives.

A handler that raises passes none of the first tests: Python prints `Exception
ignored in` and goes on.
"""

import gc
import signal
import subprocess
import sys
import time

import pytest

from lambda_vit_jax.core.errors import LambdaVitError, StoppedError
from lambda_vit_jax.runtime import interrupts
from tests.support.stage_runs import ROOT


def never(error):
  raise AssertionError(f'ended from the thread: {error}')


def command(work):
  """Does some work as a command does."""
  with interrupts.watch(never):
    work()


def wait_for(found):
  """The thread has a pipe to read first."""
  end = time.monotonic() + 10
  while not found():
    assert time.monotonic() < end


class Dropped:
  """Gets a signal while Python runs its destructor."""

  def __del__(self):
    signal.raise_signal(signal.SIGTERM)


def in_a_destructor():
  Dropped()


def in_a_callback_of_the_collector():
  def callback(phase, info):
    del phase, info
    gc.callbacks.remove(callback)
    signal.raise_signal(signal.SIGTERM)

  gc.callbacks.append(callback)
  gc.collect()


def plainly():
  signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
  'arrive', [plainly, in_a_destructor, in_a_callback_of_the_collector]
)
def test_a_signal_is_kept_until_the_end_of_the_command(arrive):
  before = signal.getsignal(signal.SIGTERM)
  seen = []

  def work():
    arrive()
    seen.append('went on')

  with pytest.raises(StoppedError, match='SIGTERM') as info:
    command(work)
  assert seen
  assert info.value.exit_code == 143
  # What explains damaged files by catching all errors must not catch it.
  assert not issubclass(StoppedError, Exception)
  assert signal.getsignal(signal.SIGTERM) is before
  assert interrupts.received() == 0


def test_the_work_ends_between_two_pieces():
  def work():
    interrupts.check()
    signal.raise_signal(signal.SIGINT)
    wait_for(interrupts.received)
    interrupts.check()
    raise AssertionError('went on')

  with pytest.raises(StoppedError) as info:
    command(work)
  assert info.value.exit_code == 130


class Keeper:
  has_work = True
  is_saving = False


def test_work_that_saves_first_is_left_to_do_so():
  done = []

  def work():
    with interrupts.left_to(Keeper()):
      signal.raise_signal(signal.SIGTERM)
      wait_for(interrupts.received)
      interrupts.check()
      done.append('saved')
    interrupts.check()
    done.append('went on')

  with pytest.raises(StoppedError):
    command(work)
  assert done == ['saved']


def test_an_error_of_another_thread_is_raised_even_there():
  def work():
    with interrupts.left_to(Keeper()):
      interrupts.fail(LambdaVitError('gone'))
      interrupts.check()

  with pytest.raises(LambdaVitError, match='gone'):
    command(work)


def test_signals_of_others_end_nothing():
  """C code writes their numbers into the same pipe."""
  handled = []
  before = signal.signal(signal.SIGUSR1, lambda *words: handled.append(words))

  def work():
    signal.raise_signal(signal.SIGUSR1)
    wait_for(lambda: handled)

  try:
    command(work)
  finally:
    signal.signal(signal.SIGUSR1, before)


def test_without_a_command_nothing_happens():
  interrupts.check()
  interrupts.fail(LambdaVitError('unseen'))
  interrupts.check()
  with interrupts.watch(never), interrupts.watch(never):
    interrupts.check()


# Signals itself, then works on without ever asking.
_DEAF = """
import signal, sys, time
from lambda_vit_jax.runtime import interrupts
interrupts._PIECE_SECONDS, interrupts.SAME_SECONDS = map(float, sys.argv[1:3])
class Keeper:
  has_work, is_saving = sys.argv[3] != 'no', sys.argv[3] == 'saving'
def end(error):
  print(error, flush=True)
  return error.exit_code
with interrupts.watch(end), interrupts.left_to(Keeper()):
  signal.raise_signal(signal.SIGTERM)
  began = time.monotonic()
  again = False
  while time.monotonic() - began < 1:
    if not again and time.monotonic() - began > 0.3:
      again = True
      signal.raise_signal(signal.SIGTERM)
print('done')
"""


@pytest.mark.parametrize(
  'piece, same, keeper, expected',
  [
    ('0.1', '9', 'no', ['interrupted by SIGTERM']),
    ('9', '0.1', 'no', ['interrupted by SIGTERM']),
    # The piece may last, and the signal comes but once.
    ('9', '9', 'no', ['done']),
    ('0.1', '9', 'has work', ['done']),
    ('9', '0.1', 'has work', ['interrupted by SIGTERM']),
    ('0.1', '0.1', 'saving', ['done']),
  ],
)
def test_work_that_does_not_ask_is_ended(piece, same, keeper, expected):
  """Early if it has nothing to save; at once on a second signal."""
  done = subprocess.run(
    [sys.executable, '-c', _DEAF, piece, same, keeper],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  if expected == ['done']:
    # The signal is raised when the command ends.
    assert done.returncode == 1
    assert 'StoppedError' in done.stderr
    assert done.stdout == ''
  else:
    assert done.returncode == 143
    assert done.stdout.startswith(expected[0])
