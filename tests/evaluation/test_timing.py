"""Programs take turns, and are timed until their ratio is known."""

import itertools

import numpy as np
import pytest

from lambda_vit_jax.evaluation import timing
from lambda_vit_jax.evaluation.timing import Limits


class Machine:
  """A clock that only calls move, and the order of the calls."""

  def __init__(self):
    self.now = 0.0
    self.made = []

  def call(self, name, seconds):
    """A function that takes the next of `seconds` each time."""
    durations = iter(seconds)

    def run():
      self.made.append(name)
      self.now += next(durations)

    return run

  def turns(self):
    """The calls, those of one turn counted once."""
    return ''.join(name for name, _ in itertools.groupby(self.made))


@pytest.fixture
def machine(monkeypatch):
  found = Machine()
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: found.now)
  return found


def always(seconds):
  return itertools.repeat(seconds)


def test_calls_take_turns_and_the_first_rounds_do_not_count(machine):
  calls = {name: machine.call(name, itertools.count(1.0)) for name in 'abc'}
  seconds = timing.time_in_turn(calls, rounds=3)
  assert machine.turns() == 'abc' * (timing.WARM_UP + 3)
  first = timing.WARM_UP + 1.0
  for row in seconds.values():
    assert row == [first, first + 1, first + 2]


def test_a_quick_call_is_repeated_within_its_turn(machine):
  calls = {
    'a': machine.call('a', always(0.001)),
    'b': machine.call('b', always(0.5)),
  }
  seconds = timing.time_in_turn(calls, rounds=2)
  # 20 ms of calls in a turn that counts, one in the warm-up.
  assert machine.made.count('a') == timing.WARM_UP + 2 * 20
  assert machine.made.count('b') == timing.WARM_UP + 2
  assert seconds['a'] == pytest.approx([0.001] * 2)
  assert seconds['b'] == pytest.approx([0.5] * 2)


def measured(machine, times, **limits):
  calls = {name: machine.call(name, row) for name, row in times.items()}
  shares = []
  found = timing.measure(
    calls, Limits(**limits), ('dense', 'pruned'), shares.append
  )
  return found, shares


def test_a_clear_ratio_is_known_after_few_rounds(machine):
  found, _ = measured(
    machine, {'dense': always(2.0), 'pruned': always(1.0)}, seconds=1e6
  )
  assert len(found['dense']) == 5
  assert timing.ratio(found['dense'], found['pruned']).value == 2.0


def test_a_noisy_ratio_takes_as_many_rounds_as_it_needs(machine, rng):
  noise = 1.0 + 0.1 * rng.random((2, 10_000))
  found, shares = measured(
    machine, {'dense': 2.0 * noise[0], 'pruned': noise[1]}, seconds=1e6
  )
  estimate = timing.ratio(found['dense'], found['pruned'])
  assert len(found['dense']) > 5
  assert estimate.high - estimate.low <= 2 * 0.02 * estimate.value
  assert shares == sorted(shares)


def test_slow_rounds_cancel_in_the_ratio(machine, rng):
  """Half of the rounds take three times as long, for both."""
  slow = rng.choice([1.0, 3.0], timing.WARM_UP + 1000)
  found, _ = measured(
    machine, {'dense': 2.0 * slow, 'pruned': slow}, seconds=1e6, rounds=51
  )
  rate = timing.ratio([1.0] * 51, found['pruned'])
  assert rate.high / rate.low == pytest.approx(3.0)
  assert timing.ratio(found['dense'], found['pruned']).interval == [2.0, 2.0]


def test_time_is_up(machine, rng):
  noise = rng.uniform(0.5, 1.5, (2, 10_000))
  found, shares = measured(
    machine, {'dense': noise[0], 'pruned': noise[1]}, seconds=30.0
  )
  # A round takes two seconds.
  assert 12 <= len(found['dense']) <= 18
  assert shares[-1] == 1.0
  # At least five rounds, however long they take.
  found, _ = measured(
    machine, {'dense': noise[0], 'pruned': noise[1]}, seconds=0.0
  )
  assert len(found['dense']) == 5


def test_so_many_rounds_as_were_asked_for(machine):
  found, shares = measured(
    machine,
    {'dense': always(1.0), 'pruned': always(1.0)},
    rounds=2,
    seconds=0.0,
  )
  assert found == {'dense': [1.0] * 2, 'pruned': [1.0] * 2}
  assert shares == [0.5, 1.0]


def test_an_interval_covers_the_true_ratio(rng):
  """Of 300 measurements of 15 rounds with common and own noise."""
  covered = 0
  for _ in range(300):
    common = rng.lognormal(0.0, 0.3, 15)
    dense, pruned = common * rng.lognormal(0.0, 0.05, (2, 15))
    estimate = timing.ratio(1.2 * dense, pruned)
    assert estimate.low <= estimate.value <= estimate.high
    covered += estimate.low <= 1.2 <= estimate.high
  # The percentiles of a median of 15 are conservative.
  assert 0.93 <= covered / 300 <= 1.0


def test_the_ratio_is_that_of_the_medians():
  estimate = timing.ratio([4.0, 1.0, 9.0], [2.0, 1.0, 3.0])
  assert estimate.value == 2.0
  inverse = timing.ratio([2.0, 1.0, 3.0], [4.0, 1.0, 9.0])
  assert np.multiply(
    inverse.interval, estimate.interval[::-1]
  ) == pytest.approx(1.0)
