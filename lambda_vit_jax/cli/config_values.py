"""Read individual config values: each function returns a typed value or raises.

Every function takes the value as the config has it and the value's full key,
and raises a UsageError that names the key.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

from lambda_vit_jax.core.errors import UsageError

# At most as many digits as an int64 holds.
_INTEGER = re.compile(r'-?[0-9]{1,18}')
_EPOCHS = re.compile(r'([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*ep')
_T = TypeVar('_T')


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


def duration(value: Any, key: str) -> Duration:
  """Reads `1000`, `'1000'` or `'30ep'`."""
  text = str(value).strip()
  epochs = _EPOCHS.fullmatch(text)
  if epochs:
    return Duration(float(epochs[1]), in_epochs=True)
  if isinstance(value, bool) or not re.fullmatch('[0-9]{1,18}', text):
    raise UsageError(
      f'config.{key}={value!r} is no duration; give steps (1000) or epochs '
      "('30ep')"
    )
  return Duration(int(text))


def integer(value: Any, key: str, least: int = 0) -> int:
  """Reads an int of at least `least`, also from text."""
  text = str(value).strip()
  if isinstance(value, bool) or not _INTEGER.fullmatch(text):
    raise UsageError(f'config.{key}={value!r} is not a whole number')
  if int(text) < least:
    raise UsageError(f'config.{key}={text} must be at least {least}')
  return int(text)


def positive(value: Any, key: str) -> int:
  """Reads an int of at least 1."""
  return integer(value, key, least=1)


def number(value: Any, key: str) -> float:
  """Reads a finite float, also from text."""
  try:
    found = float(value)
  except (TypeError, ValueError, OverflowError):
    found = math.nan
  if not math.isfinite(found):
    raise UsageError(f'config.{key}={value!r} is not a number')
  return found


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


def tuple_of(
  read: Callable[[Any, str], _T],
) -> Callable[[Any, str], tuple[_T, ...]]:
  """Returns a reader of lists whose elements `read` reads."""
  return lambda value, key: tuple(read(x, key) for x in sequence(value, key))


def sizes(value: Any, key: str) -> tuple[int, ...]:
  """Reads one size, or a list of sizes, of at least 1."""
  given = (value,) if isinstance(value, int) else value
  return tuple_of(positive)(given, key)


def image_size(value: Any, key: str) -> int | tuple[int, int]:
  """Reads `224`, `'224'`, `(224, 160)` or `'224x160'` (height, width)."""
  parts = re.split(r'[x,]', value) if isinstance(value, str) else value
  parts = list(parts) if isinstance(parts, list | tuple) else [parts]
  found = tuple(positive(part, key) for part in parts)
  if len(found) not in (1, 2):
    raise UsageError(
      f'config.{key}={value!r}: give one side or (height, width)'
    )
  return found[0] if len(found) == 1 else (found[0], found[1])


def share(value: Any, key: str) -> float:
  """Reads a number in (0, 1]."""
  found = number(value, key)
  if not 0 < found <= 1:
    raise UsageError(f'config.{key}={found} must lie in (0, 1]')
  return found
