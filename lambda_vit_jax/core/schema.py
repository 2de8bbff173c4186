"""What a JSON value must be, as data.

  STEP = Object({'stage': Text(), 'step': Number(0, whole=True)})
  STEP.problem({'stage': 'dilute', 'step': -1})
  # '`step` is -1, but must be a whole number of at least 0'

A schema is a tree of the classes below. Values are taken as they are: nothing
is converted, `true` is no number and 3.0 no whole one.
"""

import abc
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lambda_vit_jax.core.text import printable

_MOST_SHOWN = 40
_LONGEST_KEY = 80


def shown(value: Any) -> str:
  """A value in a few words."""
  if isinstance(value, Mapping):
    return 'an object'
  if isinstance(value, list | tuple):
    return f'a list of {len(value)}'
  names = {None: 'null', True: 'true', False: 'false'}
  if value is None or isinstance(value, bool):
    return names[value]
  return printable(repr(value), _MOST_SHOWN)


def name_of(key: str) -> str:
  """A key in words; '' is the whole content."""
  return f'`{printable(key, _LONGEST_KEY)}`' if key else 'the content'


class Schema(abc.ABC):
  """What one value must be."""

  @property
  @abc.abstractmethod
  def words(self) -> str:
    """What the value must be, in words."""

  @abc.abstractmethod
  def holds(self, value: Any) -> bool:
    """Whether `value` is of the kind; says nothing of what is in it."""

  def problem_within(self, value: Any, key: str) -> str:
    """The first problem of what is in a value that holds, or ''."""
    del value, key
    return ''

  def problem(self, value: Any, key: str = '') -> str:
    """The first problem of `value`, which is at `key`; '' if there is none."""
    if not self.holds(value):
      return f'{name_of(key)} is {shown(value)}, but must be {self.words}'
    return self.problem_within(value, key)


@dataclasses.dataclass(frozen=True)
class Number(Schema):
  """A finite number from `least` to `most`; `above` leaves out `least`."""

  least: float = -math.inf
  most: float = math.inf
  whole: bool = False
  above: bool = False

  @property
  def words(self) -> str:
    kind = 'a whole number' if self.whole else 'a number'
    low = f'{"above" if self.above else "at least"} {self.least:g}'
    if math.isinf(self.most):
      return kind if math.isinf(self.least) else f'{kind} {low}'
    if self.above:
      return f'{kind} {low} and at most {self.most:g}'
    return f'{kind} from {self.least:g} to {self.most:g}'

  def holds(self, value: Any) -> bool:
    return (
      type(value) in ((int,) if self.whole else (int, float))
      and (value > self.least if self.above else value >= self.least)
      and value <= self.most
      and (type(value) is int or math.isfinite(value))
    )


@dataclasses.dataclass(frozen=True)
class Text(Schema):
  """A text of at most `longest` characters, of `pattern` if one is given."""

  longest: int = 10_000
  pattern: str = ''
  called: str = ''

  @property
  def words(self) -> str:
    return self.called or f'a text of at most {self.longest} characters'

  def holds(self, value: Any) -> bool:
    return (
      isinstance(value, str)
      and len(value) <= self.longest
      and (not self.pattern or bool(re.fullmatch(self.pattern, value)))
    )


@dataclasses.dataclass(frozen=True)
class Choice(Schema):
  """One of some texts."""

  choices: Sequence[str]

  @property
  def words(self) -> str:
    return f'one of {", ".join(self.choices)}'

  def holds(self, value: Any) -> bool:
    return isinstance(value, str) and value in self.choices


@dataclasses.dataclass(frozen=True)
class Bool(Schema):
  """`true` or `false`."""

  words = 'true or false'

  def holds(self, value: Any) -> bool:
    return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Anything(Schema):
  """Any JSON value, for what is read but not used."""

  words = 'any value'

  def holds(self, value: Any) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Nullable(Schema):
  """`null`, or what `schema` says."""

  schema: Schema

  @property
  def words(self) -> str:
    return f'{self.schema.words}, or null'

  def holds(self, value: Any) -> bool:
    return value is None or self.schema.holds(value)

  def problem_within(self, value: Any, key: str) -> str:
    return '' if value is None else self.schema.problem_within(value, key)


@dataclasses.dataclass(frozen=True)
class List(Schema):
  """A list of `least` to `most` values; `distinct`: none of them twice."""

  item: Schema
  least: int = 0
  most: int = 1_000_000
  distinct: bool = False

  @property
  def words(self) -> str:
    if self.least == self.most:
      return f'a list of {self.least}'
    return f'a list of {self.least} to {self.most}'

  def holds(self, value: Any) -> bool:
    # A tuple becomes a list in JSON.
    kind = isinstance(value, list | tuple)
    return kind and self.least <= len(value) <= self.most

  def problem_within(self, value: Any, key: str) -> str:
    seen = set()
    for index, item in enumerate(value):
      if found := self.item.problem(item, f'{key}[{index}]'):
        return found
      if self.distinct and item in seen:
        return f'{name_of(key)} holds {shown(item)} twice'
      if self.distinct:
        seen.add(item)
    return ''


@dataclasses.dataclass(frozen=True)
class Object(Schema):
  """An object with these keys.

  Attributes:
    needed: keys that have to be there.
    optional: keys that may be there.
    others: what all other keys hold; None refuses other keys.
    names: a regular expression that the other keys must match.
    alike: keys of lists that must have one length, where they are there.
  """

  needed: Mapping[str, Schema] = dataclasses.field(default_factory=dict)
  optional: Mapping[str, Schema] = dataclasses.field(default_factory=dict)
  others: Schema | None = Anything()
  names: str = ''
  alike: Sequence[str] = ()

  words = 'an object'

  def holds(self, value: Any) -> bool:
    return isinstance(value, Mapping)

  def problem_within(self, value: Any, key: str) -> str:
    start = f'{key}.' if key else ''
    for name in self.needed:
      if name not in value:
        return f'{name_of(start + name)} is missing'
    known = {**self.optional, **self.needed}
    for name, inner in value.items():
      schema = known.get(name, self.others)
      if schema is None or (
        name not in known and self.names and not re.fullmatch(self.names, name)
      ):
        return f'{name_of(start + name)} is no key that belongs there'
      if found := schema.problem(inner, start + name):
        return found
    lengths = {n: len(value[n]) for n in self.alike if value.get(n) is not None}
    if len(set(lengths.values())) > 1:
      each = ', '.join(f'{name} {count}' for name, count in lengths.items())
      return f'the lists in {name_of(key)} differ in length ({each})'
    return ''
