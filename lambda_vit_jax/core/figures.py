"""Matplotlib figures that notebooks show as pictures.

They are made without `pyplot`, which would keep every figure and choose a
backend. Matplotlib is imported when one is made.
"""

import functools
import io
from typing import Any

import numpy as np

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.text import printable


@functools.cache
def _figure_class() -> Any:
  import matplotlib.figure

  class Figure(matplotlib.figure.Figure):
    """Jupyter knows figures as pictures only once `pyplot` is imported."""

    def _repr_png_(self) -> bytes:
      png = io.BytesIO()
      self.savefig(png, format='png')
      return png.getvalue()

  return Figure


def axes_to_draw_in(
  ax: Any = None, columns: int = 1, size: tuple[float, float] = (6.4, 3.6)
) -> tuple[Any, list[Any]]:
  """The axes that a method `plot` draws in, and their figure.

  Args:
    ax: axes, or several of them; by default those of a new figure.
    columns: axes of a new figure, side by side.
    size: width and height of a new figure, in inches.

  Returns:
    The figure, and its axes from left to right.

  Raises:
    UsageError: no axes.
  """
  if ax is None:
    figure = _figure_class()(figsize=size, layout='constrained')
    ax = figure.subplots(1, columns)
  axes = np.ravel(np.asarray(ax, dtype=object)).tolist()
  if not axes or not all(hasattr(each, 'twinx') for each in axes):
    raise UsageError(
      f'plot(ax=<{type(ax).__name__}>): must be axes of matplotlib, as '
      'plt.subplots() returns them'
    )
  return axes[0].figure, axes


def axis_label(name: object) -> str:
  r"""A name that may come from a file, as matplotlib shows it.

  Its fonts lack most characters but those of ASCII, which are written as escapes,
  and a dollar sign would begin a formula.
  """
  text = printable(name, 100).encode('ascii', 'backslashreplace').decode()
  return text.replace('_', ' ').replace('$', r'\$')
