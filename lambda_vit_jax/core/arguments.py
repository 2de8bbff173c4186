"""Arguments of public functions: misspelt keywords and values of another type.

One decorator checks them all against the function's signature, so that a slip
is one line with what to do instead of an error from deep inside JAX.
"""

import functools
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar

from lambda_vit_jax.core.errors import UsageError, nearest

P = ParamSpec('P')
R = TypeVar('R')

# That a message lists: it is one line of at most 300 characters.
_MOST_NAMES = 12
# Characters of a value that a message shows.
_LONGEST_VALUE = 60
# A class is described by its name, but for those that a remedy is known for.
_REMEDIES = {
  'Model': 'a Model: lv.load_pretrained(…) or lv.create_model(…) makes one'
}
_REMEDIES['TakesImages'] = _REMEDIES['Model']
# What these stand for is converted: lists, and tensors of PyTorch.
_ARRAYS = ('Array', 'ndarray')
# Of numbers whose names mean the same everywhere. JAX's keys drop higher bits.
_RANGES = {'seed': (0, 2**32 - 1), 'resamples': (0, 1_000_000)}


class ArgumentError(UsageError, TypeError):
  """A keyword that a function does not take, or a value of another type."""


def unknown_keyword(
  function: str, keyword: str, known: tuple[str, ...]
) -> ArgumentError:
  """Returns the error for a keyword that is not one of `known`."""
  remedy = nearest(keyword, known, 1)
  if not remedy:
    names = ', '.join((*known[:_MOST_NAMES], '…')[: len(known)])
    remedy = f'; known are {names}'
  return ArgumentError(f'{function}() has no keyword {keyword!r}{remedy}')


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
  """Decorates a public function: refuses what its signature does not take.

  A misspelt keyword is answered with the nearest one, where there are no
  `**keywords`; values are compared with the annotations, see `check_types`.
  """
  parameters = inspect.signature(function).parameters.values()
  kinds = {each.kind for each in parameters}
  known = tuple(
    each.name for each in parameters if each.kind is not each.VAR_POSITIONAL
  )
  positional = [
    each.name
    for each in parameters
    if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
  ]

  @functools.wraps(function)
  def checked(*args: P.args, **kwargs: P.kwargs) -> R:
    for keyword in kwargs:
      if keyword not in known and inspect.Parameter.VAR_KEYWORD not in kinds:
        raise unknown_keyword(function.__name__, keyword, known)
    given = dict(zip(positional, args, strict=False)) | kwargs
    check_types(function, given)
    return function(*args, **kwargs)

  return checked


def check_types(
  annotated: Any, values: Mapping[str, Any], name: str = ''
) -> None:
  """Compares values with the annotations of a function or a class.

  Numbers of NumPy are numbers, and anything with items is a list. Annotations
  with `Any` or arrays among them are left to the function.

  Args:
    annotated: has the annotations.
    values: by the name of the argument or field; others are passed over.
    name: for the message; by default that of `annotated`.

  Raises:
    ArgumentError: names the first value of another type, or out of range.
  """
  hints = _hints(annotated)
  for argument, value in values.items():
    kinds = _kinds(hints[argument]) if argument in hints else {}
    if kinds and not any(holds(value) for holds in kinds.values()):
      # What has a remedy comes last.
      wanted = ' or '.join(sorted(kinds, key=lambda words: ':' in words))
      raise ArgumentError(
        f'{name or annotated.__name__}({argument}={_shown(value)}): must be '
        f'{wanted}'
      )
    least, most = _RANGES.get(argument, (None, None))
    if least is not None and not least <= value <= most:
      raise ArgumentError(
        f'{name or annotated.__name__}({argument}={value}): must be from '
        f'{least} to {most}'
      )


@functools.cache
def _hints(annotated: Any) -> dict[str, Any]:
  return typing.get_type_hints(annotated)


def _kinds(hint: Any) -> dict[str, Callable[[Any], bool]]:
  """What a hint takes, in words, and its checks; empty if it takes anything."""
  if hint in _PLAIN:
    return _PLAIN[hint]
  origin = typing.get_origin(hint) or hint
  if origin in (typing.Union, types.UnionType):
    parts = [_kinds(part) for part in typing.get_args(hint)]
    joined = {words: holds for part in parts for words, holds in part.items()}
    return joined if all(parts) else {}
  if origin is Literal:
    return _PLAIN[str]
  if origin in _GENERIC:
    return _GENERIC[origin]
  is_class = isinstance(origin, type) and origin.__name__ not in _ARRAYS
  # Of protocols only those that are `runtime_checkable` can be checked.
  if not is_class or not getattr(origin, '_is_runtime_protocol', True):
    return {}
  words = _REMEDIES.get(origin.__name__, f'a {origin.__name__}')
  return {words: lambda value: isinstance(value, origin)}


def _is_whole(value: Any) -> bool:
  try:
    operator.index(value)
  except TypeError:
    return False
  return not _is_bool(value)


def _is_number(value: Any) -> bool:
  if isinstance(value, str | bytes) or _is_bool(value):
    return False
  try:
    return math.isfinite(value)
  except (TypeError, ValueError, OverflowError):
    return False


def _is_bool(value: Any) -> bool:
  # NumPy's has another type.
  return type(value).__name__ in ('bool', 'bool_')


def _is_list(value: Any) -> bool:
  return isinstance(value, Iterable) and not isinstance(value, str | bytes)


_PLAIN: dict[Any, dict[str, Callable[[Any], bool]]] = {
  int: {'a whole number': _is_whole},
  float: {'a finite number': _is_number},
  bool: {'True or False': _is_bool},
  str: {'a text': lambda value: isinstance(value, str)},
  types.NoneType: {'None': lambda value: value is None},
  Any: {},
}
_GENERIC: dict[Any, dict[str, Callable[[Any], bool]]] = {
  os.PathLike: {'a path': lambda value: isinstance(value, os.PathLike)},
  Mapping: {'a dict': lambda value: isinstance(value, Mapping)},
  Callable: {'a function': callable},
  **{
    listed: {'a list': _is_list}
    for listed in (Iterable, Collection, Sequence, tuple)
  },
}


def _shown(value: Any) -> str:
  """The repr of a short value, the type of a long one."""
  if isinstance(value, str | int | float | types.NoneType):
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f'{text[:_LONGEST_VALUE]}…'
  return f'<{type(value).__name__}>'
