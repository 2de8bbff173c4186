"""The errors a user can meet: one line with what, where and what to do.

`main` prints the message of a `LambdaVitError` and exits with its
`exit_code`; a traceback is shown with `--debug` only.
"""

import difflib
import sys
import types
import warnings
from collections.abc import Iterable

from lambda_vit_jax.core.text import printable


class LambdaVitError(Exception):
  """Something the user can fix. `str(error)` is one complete line.

  Names and values of files are part of many messages: `printable` keeps them on
  that line.
  """

  exit_code = 1

  def __init__(self, message: object = ''):
    super().__init__(printable(message))


class UsageError(LambdaVitError):
  """A wrong command line or configuration (exit code 2)."""

  exit_code = 2


class DataError(LambdaVitError):
  """A data set that is missing, inconsistent or unreadable."""


class PartialError(DataError):
  """Part of what was asked for failed; stdout has the rest.

  With `--json` what failed is there as well, so that nothing is added to it.
  """


class ModelError(LambdaVitError, ValueError):
  """Invalid sizes, modes or layers of a model."""


def not_finite(place: str = '', context: str = '') -> ModelError:
  """Returns the error for activations that are NaN or infinite.

  Args:
    place: where, such as `block 3`, if known.
    context: what was done to the network, starting with a space.
  """
  return ModelError(
    f'{place}{": " * bool(place)}activations are NaN or infinite{context}; '
    'check the weights, the dtype and how the images are normalised'
  )


class CheckpointError(LambdaVitError):
  """A checkpoint or weight file that cannot be used."""


def warn_user(message: str) -> None:
  """Warns, as of the line outside this package that led here."""
  package = __name__.partition('.')[0]
  frame, level = sys._getframe(), 1
  while frame.f_back and _root_of(frame) == package:
    frame, level = frame.f_back, level + 1
  warnings.warn(message, stacklevel=level)


def _root_of(frame: types.FrameType) -> str:
  """The package whose code a frame runs."""
  return str(frame.f_globals.get('__name__', '')).partition('.')[0]


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
  """Returns `'; did you mean a, b?'` for a misspelt name, or `''`."""
  matches = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
  return f'; did you mean {", ".join(matches)}?' if matches else ''


class StoppedError(BaseException):
  """The process was asked to stop, and has saved what it can.

  Not an `Exception`, like `KeyboardInterrupt`: handlers that explain a damaged
  file must not catch a signal.

  Attributes:
    exit_code: 128 + the signal's number.
  """

  def __init__(self, signum: int, message: str):
    super().__init__(message)
    self.exit_code = 128 + signum
