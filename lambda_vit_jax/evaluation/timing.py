"""Time programs in turn, until the ratio of two of them is known.

Each round gives every program its turn, A B C A B C …, so that a slowdown of
the machine affects all of them. Ratios are of medians, and their intervals are
from resampled rounds, so that what a round did to both programs cancels.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

WARM_UP = 2
"""Rounds that do not count."""

# A call of a small network is over before the clock and the threads settle:
# it is repeated for this long in a turn.
_TURN_SECONDS = 0.02

# Fewer have no interval worth the name.
_FEWEST_ROUNDS = 5
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Limits:
  """How long to measure.

  Attributes:
    rounds: exactly so many that count; None to stop when the interval is
      narrow.
    seconds: without `rounds`, no new round begins after this time (but there
      are five).
    precision: half the width of the 95% interval that is narrow enough, as a
      share of the ratio.
  """

  rounds: int | None = None
  seconds: float = 30.0
  precision: float = 0.02


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A ratio of medians, and its 95% interval.

  Attributes:
    value: the ratio.
    low: the interval's lower end.
    high: its upper end.
  """

  value: float
  low: float
  high: float

  @property
  def interval(self) -> list[float]:
    """Both ends, as JSON holds them."""
    return [self.low, self.high]


def ratio(times: Sequence[float], others: Sequence[float]) -> Estimate:
  """The median of `times` over that of `others`, which are of the same rounds."""
  pairs = np.asarray([times, others], float)
  rounds = pairs.shape[1]
  drawn = np.random.default_rng(0).integers(0, rounds, (_RESAMPLES, rounds))
  above, below = np.median(pairs[:, drawn], axis=2)
  low, high = np.percentile(above / below, (2.5, 97.5))
  above, below = np.median(pairs, axis=1)
  return Estimate(float(above / below), float(low), float(high))


def time_in_turn(
  calls: Mapping[str, Callable[[], Any]],
  rounds: int,
) -> dict[str, list[float]]:
  """Seconds per call of every program in every round, without the warm-up."""
  return measure(calls, Limits(rounds=rounds))


def measure(
  calls: Mapping[str, Callable[[], Any]],
  limits: Limits,
  pair: tuple[str, str] = ('', ''),
  on_progress: Callable[[float], None] = lambda share: None,
) -> dict[str, list[float]]:
  """`time_in_turn` until the ratio of a pair is narrow, or time is up.

  Args:
    calls: without arguments; a call is timed until its result is ready.
    limits: see `Limits`.
    pair: names of the calls whose ratio is to be known.
    on_progress: called after every round with the share of the limit used.
  """
  first = dict.fromkeys(calls, math.inf)
  for _ in range(WARM_UP):
    for name, call in calls.items():
      first[name] = min(first[name], _turn(call, 1))
  repeats = {
    name: math.ceil(_TURN_SECONDS / max(seconds, 1e-6))
    for name, seconds in first.items()
  }
  found: dict[str, list[float]] = {name: [] for name in calls}
  began, done, next_look = time.perf_counter(), 0, _FEWEST_ROUNDS
  while True:
    for name, call in calls.items():
      found[name].append(_turn(call, repeats[name]))
    done += 1
    used = (time.perf_counter() - began) / max(limits.seconds, 1e-6)
    if limits.rounds is not None:
      used = done / limits.rounds
    on_progress(min(used, 1.0))
    if limits.rounds is not None:
      if used >= 1.0:
        return found
    elif used >= 1.0 and done >= _FEWEST_ROUNDS:
      return found
    elif done >= next_look:
      estimate = ratio(*(found[name] for name in pair))
      if estimate.high - estimate.low <= 2 * limits.precision * estimate.value:
        return found
      # Not after every round: of many looks, one is narrow by chance.
      next_look = math.ceil(1.2 * done)


def _turn(call: Callable[[], Any], repeats: int) -> float:
  """Seconds per call."""
  start = time.perf_counter()
  for _ in range(repeats):
    jax.block_until_ready(call())
  return (time.perf_counter() - start) / repeats
