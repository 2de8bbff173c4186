"""Trace training steps with JAX's profiler: `--config.profile=START,STOP`."""

import dataclasses
import re

import jax
from etils import epath

from lambda_vit_jax.core.errors import UsageError


@dataclasses.dataclass
class Window:
  """A range of steps to trace, in each stage.

  Attributes:
    start: the first step of the trace.
    stop: the first step after it; equal to `start` for no trace.
    directory: output, for TensorBoard's profile plugin or Perfetto.
  """

  start: int = 0
  stop: int = 0
  directory: epath.Path | None = None
  _tracing: bool = dataclasses.field(default=False, init=False)

  def before(self, step: int) -> None:
    """Starts the trace if `step` is in the window."""
    if self.start <= step < self.stop and not self._tracing:
      # Its tracer of Python calls hooks into every thread of the process, also
      # those of loaders that just end, and has crashed there.
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0
      jax.profiler.start_trace(str(self.directory), profiler_options=options)
      self._tracing = True

  def after(self, step: int, values: object) -> None:
    """Ends the trace after the last step, once its results are computed."""
    if self._tracing and step >= self.stop:
      jax.block_until_ready(values)
      self.close()

  def close(self) -> None:
    """Ends a trace that is still open, if training ends in the window."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()


def window(text: object, directory: epath.Path) -> Window:
  """Parses `'10,20'`, `(10, 20)`, or an empty value for no trace.

  Raises:
    UsageError: the value is anything else.
  """
  if text in (None, '', ()):
    return Window()
  parts = text if isinstance(text, tuple | list) else str(text).split(',')
  match = re.fullmatch(r'\s*(\d+)\s*,\s*(\d+)\s*', ','.join(map(str, parts)))
  if not match or int(match[1]) >= int(match[2]):
    raise UsageError(
      f'config.profile={text!r}: give two steps, START,STOP, in that order'
    )
  return Window(int(match[1]), int(match[2]), directory)
