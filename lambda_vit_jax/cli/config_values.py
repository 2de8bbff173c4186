"""Read individual config values: each reader returns a typed value or raises.

A reader takes the value as the config has it and the value's full key, and
raises a UsageError that names the key. Readers of numbers are dataclasses, so
that the range of every key is data that tests and docs can read.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from lambda_vit_jax.core.errors import UsageError

# At most as many digits as an int64 holds.
_INTEGER = re.compile(r'-?[0-9]{1,18}')
_EPOCHS = re.compile(r'([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*ep')
_T = TypeVar('_T')

MOST = 2**31 - 1
"""The largest count: steps and indices of images are int32 on the device."""


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training, given in steps or in epochs.

  Attributes:
    length: number of steps, or of epochs.
    in_epochs: whether `length` counts epochs.
  """

  length: float
  in_epochs: bool = False

  def steps(self, steps_per_epoch: int) -> int:
    """Returns the duration in optimisation steps."""
    if self.in_epochs:
      return round(self.length * steps_per_epoch)
    return int(self.length)

  def __str__(self) -> str:
    return f'{self.length:g}ep' if self.in_epochs else f'{self.length:.0f}'


@dataclasses.dataclass(frozen=True)
class Steps:
  """Reads `1000`, `'1000'` or `'30ep'` as a `Duration`.

  Attributes:
    least: bound of the steps, and of the epochs.
    greatest: the same.
  """

  least: int = 0
  greatest: int = MOST

  def __call__(self, value: Any, key: str) -> Duration:
    text = str(value).strip()
    epochs = _EPOCHS.fullmatch(text)
    if epochs:
      found = Duration(float(epochs[1]), in_epochs=True)
    elif isinstance(value, bool) or not re.fullmatch('[0-9]{1,18}', text):
      raise UsageError(
        f'config.{key}={value!r} is no duration; give steps (1000) or epochs '
        "('30ep')"
      )
    else:
      found = Duration(int(text))
    _check_range(found.length, key, self.least, self.greatest)
    return found

  def __str__(self) -> str:
    return f'from {self.least} steps or epochs'


@dataclasses.dataclass(frozen=True)
class Whole:
  """Reads an int from `least` to `greatest`, also from text."""

  least: int = 0
  greatest: int = MOST

  def __call__(self, value: Any, key: str) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not _INTEGER.fullmatch(text):
      raise UsageError(f'config.{key}={value!r} is not a whole number')
    _check_range(int(text), key, self.least, self.greatest)
    return int(text)

  def __str__(self) -> str:
    end = '' if self.greatest == MOST else f' to {self.greatest}'
    return f'from {self.least}{end}'


@dataclasses.dataclass(frozen=True)
class Real:
  """Reads a finite float between two bounds, also from text.

  Attributes:
    least: the lower bound.
    greatest: the upper bound.
    above: whether `least` itself is refused.
    below: whether `greatest` itself is refused.
  """

  least: float
  greatest: float
  above: bool = False
  below: bool = False

  def __call__(self, value: Any, key: str) -> float:
    try:
      found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
      found = math.nan
    if not math.isfinite(found):
      raise UsageError(f'config.{key}={value!r} is not a number')
    _check_range(found, key, self.least, self.greatest, self.above, self.below)
    return found

  def __str__(self) -> str:
    start = 'above' if self.above else 'from'
    end = 'below' if self.below else 'to'
    return f'{start} {self.least:g} {end} {self.greatest:g}'


def _check_range(
  value: float,
  key: str,
  least: float,
  greatest: float,
  above: bool = False,
  below: bool = False,
) -> None:
  """Raises UsageError for a value out of its range; names the bound."""
  bound = ''
  if value < least or (above and value == least):
    bound = f'{"greater than" if above else "at least"} {least:.10g}'
  if value > greatest or (below and value == greatest):
    bound = f'{"less than" if below else "at most"} {greatest:.10g}'
  if bound:
    raise UsageError(f'config.{key}={value:.10g} must be {bound}')


def flag(value: Any, key: str) -> bool:
  """Reads True or False."""
  if not isinstance(value, bool):
    raise UsageError(f'config.{key}={value!r}: give True or False')
  return value


def one_of(*names: str) -> Callable[[Any, str], str]:
  """Returns a reader that accepts only `names`."""

  def read(value: Any, key: str) -> str:
    if value not in names:
      raise UsageError(
        f'config.{key}={value!r} is not known; use {" or ".join(names)}'
      )
    return str(value)

  return read


def sequence(value: Any, key: str) -> tuple[Any, ...]:
  """Reads a list or tuple; its elements are checked where they are used."""
  if not isinstance(value, list | tuple):
    raise UsageError(f'config.{key}: {value!r} is not a list; give (1, 2)')
  return tuple(value)


@dataclasses.dataclass(frozen=True)
class ListOf(Generic[_T]):
  """Reads a list whose elements `item` reads, as a tuple.

  Attributes:
    item: the reader of one element.
    or_one: whether one element may stand for a list of one.
  """

  item: Callable[[Any, str], _T]
  or_one: bool = False

  def __call__(self, value: Any, key: str) -> tuple[_T, ...]:
    given = (value,) if self.or_one and isinstance(value, int) else value
    return tuple(self.item(element, key) for element in sequence(given, key))


@dataclasses.dataclass(frozen=True)
class OrWord:
  """Reads a number, or one word that stands for a choice by the program.

  Attributes:
    item: the reader of a number.
    word: returned as it is; empty means the same.
  """

  item: Real
  word: str

  def __call__(self, value: Any, key: str) -> float | str:
    empty = value is None or value == self.word
    return self.word if empty else self.item(value, key)


@dataclasses.dataclass(frozen=True)
class ImageSize:
  """Reads `224`, `'224'`, `(224, 160)` or `'224x160'` (height, width).

  Attributes:
    item: the reader of one side.
  """

  item: Whole

  def __call__(self, value: Any, key: str) -> int | tuple[int, int]:
    parts = re.split(r'[x,]', value) if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, list | tuple) else [parts]
    found = tuple(self.item(part, key) for part in parts)
    if len(found) not in (1, 2):
      raise UsageError(
        f'config.{key}={value!r}: give one side or (height, width)'
      )
    return found[0] if len(found) == 1 else (found[0], found[1])
