"""Misspelt keywords of public functions: one line with the right name."""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from lambda_vit_jax.core.errors import UsageError, nearest

P = ParamSpec('P')
R = TypeVar('R')

# That a message lists: it is one line of at most 300 characters.
_MOST_NAMES = 12


class KeywordError(UsageError, TypeError):
  """A keyword that a function does not take."""


def unknown_keyword(
  function: str, keyword: str, known: tuple[str, ...]
) -> KeywordError:
  """Returns the error for a keyword that is not one of `known`."""
  remedy = nearest(keyword, known, 1)
  if not remedy:
    names = ', '.join((*known[:_MOST_NAMES], '…')[: len(known)])
    remedy = f'; known are {names}'
  return KeywordError(f'{function}() has no keyword {keyword!r}{remedy}')


def check_keywords(function: Callable[P, R]) -> Callable[P, R]:
  """Decorates a public function without `**keywords`: names the nearest one.

  Python's own message about an unknown keyword does not say what there is.
  """
  parameters = inspect.signature(function).parameters.values()
  known = tuple(
    each.name for each in parameters if each.kind is not each.VAR_POSITIONAL
  )

  @functools.wraps(function)
  def checked(*args: P.args, **kwargs: P.kwargs) -> R:
    for keyword in kwargs:
      if keyword not in known:
        raise unknown_keyword(function.__name__, keyword, known)
    return function(*args, **kwargs)

  return checked
