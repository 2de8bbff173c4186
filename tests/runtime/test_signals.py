"""Signals: the first is kept, a later one raises, several processes agree."""

import signal
import threading

import jax
import pytest

from lambda_vit_jax.runtime import processes, signals


@pytest.fixture
def clock(monkeypatch):
  class Clock:
    now = 0.0

    def monotonic(self):
      return self.now

  clock = Clock()
  monkeypatch.setattr(signals, 'time', clock)
  return clock


def test_the_same_signal_sent_twice_by_a_launcher_is_one(clock):
  flag = signals.StopFlag()
  assert not flag.receive(signal.SIGTERM)
  clock.now = 1.0
  assert not flag.receive(signal.SIGTERM)
  assert flag.reached(5) == signal.SIGTERM
  clock.now = 10.0
  assert flag.receive(signal.SIGINT)
  # The first one names the exit code.
  assert flag.finish() == signal.SIGTERM


def test_no_signal_disturbs_a_save(clock):
  flag = signals.StopFlag()
  flag.receive(signal.SIGTERM)
  clock.now = 10.0
  with flag.saving():
    assert not flag.receive(signal.SIGTERM)
  assert flag.receive(signal.SIGTERM)


def test_handlers_are_put_back():
  before = signal.getsignal(signal.SIGTERM)
  with signals.stop_flag() as flag:
    signal.raise_signal(signal.SIGTERM)
    assert flag.reached(1) == signal.SIGTERM
  assert signal.getsignal(signal.SIGTERM) is before


class Job:
  """A job of threads that stand for processes, with a store of their own."""

  def __init__(self, count, monkeypatch):
    self.count = count
    self.values = {}
    self.changed = threading.Condition()
    self.index = threading.local()
    self.gathered = 0
    monkeypatch.setattr(jax, 'process_count', lambda: count)
    for name in ('publish', 'await_value', 'gather'):
      monkeypatch.setattr(processes, name, getattr(self, name))

  def publish(self, name, value):
    with self.changed:
      if name in self.values:
        return False
      self.values[name] = value
      self.changed.notify_all()
      return True

  def await_value(self, name, stopped=lambda: False):
    with self.changed:
      while name not in self.values:
        if stopped():
          return None
        # As often as signals are looked at.
        self.changed.wait(0.05)
      return self.values[name]

  def gather(self, value):
    self.publish(f'gather/{self.index.value}', value)
    return [self.await_value(f'gather/{i}') for i in range(self.count)]


@pytest.mark.parametrize('signalled', [0, 1, 2])
def test_several_processes_stop_at_one_step(monkeypatch, signalled):
  """Threads that wait for each other at every step, as collectives do."""
  count, total = 3, 50
  job = Job(count, monkeypatch)
  # Which process the flag's own thread belongs to: that which made it.
  monkeypatch.setattr(
    jax, 'process_index', lambda: owners[threading.current_thread()]
  )
  owners = {}
  stopped = {}
  collective = threading.Barrier(count)

  def train(index):
    job.index.value = index
    owners[threading.current_thread()] = index
    flag = signals.SharedStopFlag('stage')
    owners[flag._thread] = index
    for step in range(1, total + 1):
      collective.wait(timeout=30)
      if index == signalled and step == 5:
        flag.receive(signal.SIGTERM)
      signum = flag.reached(step) if step < total else 0
      if signum:
        stopped[index] = (step, signum)
        break
    flag._closed = True

  def run(index):
    try:
      train(index)
    except threading.BrokenBarrierError:
      stopped[index] = 'left behind'

  threads = [
    threading.Thread(target=run, args=(index,)) for index in range(count)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(timeout=60)
  # None waits for a step that another does not take.
  assert len(stopped) == count
  assert len(set(stopped.values())) == 1
  step, signum = stopped[0]
  assert signum == signal.SIGTERM
  assert step > 5


def test_a_signal_in_the_last_step_stops_all_behind_it(monkeypatch):
  job = Job(2, monkeypatch)
  owners = {}
  monkeypatch.setattr(
    jax, 'process_index', lambda: owners[threading.current_thread()]
  )
  found = {}

  def run(index):
    job.index.value = index
    owners[threading.current_thread()] = index
    flag = signals.SharedStopFlag('stage')
    owners[flag._thread] = index
    if index == 1:
      flag.receive(signal.SIGTERM)
    found[index] = flag.finish()

  threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(timeout=60)
  assert found == {0: signal.SIGTERM, 1: signal.SIGTERM}
