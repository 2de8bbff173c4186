"""Draw with matplotlib into SVG that follows the page. It is imported when used."""

import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lambda_vit_jax.cli.report import style

_WIDTH, _HEIGHT = 4.2, 2.6

# Axes of whole numbers.
_COUNTS = ('block', 'step', 'attention layers removed')

_BLACK = '#000000'

Axes = Any
"""`matplotlib.axes.Axes`, which has no types of its own here."""


def draw(
  paint: Callable[[Any], None],
  x: str,
  y: str,
  panels: int = 1,
  height: float = _HEIGHT,
) -> str:
  """An SVG whose texts and axes have the colour of the page.

  Args:
    paint: draws into the axes; into a list of them if there are several.
    x: label of the axis, with its unit.
    y: the same.
    panels: axes below each other that share their scales.
    height: in inches; the width is fixed.
  """
  import matplotlib.figure
  from cycler import cycler

  text = io.StringIO()
  # A fixed salt and no date: the same run makes the same file.
  with matplotlib.rc_context(
    {
      'svg.hashsalt': 'lambda_vit_jax',
      'svg.fonttype': 'none',
      'axes.prop_cycle': cycler(color=style.PLOT),
      'axes.grid': True,
      'grid.alpha': 0.25,
      'font.family': 'sans-serif',
    }
  ):
    figure = matplotlib.figure.Figure(
      figsize=(_WIDTH, height), layout='constrained'
    )
    grid = figure.subplots(panels, 1, sharex=True, sharey=True, squeeze=False)
    every = grid[:, 0].tolist()
    for axes in every:
      axes.spines[['top', 'right']].set_visible(False)
      if x in _COUNTS:
        axes.xaxis.get_major_locator().set_params(integer=True)
    every[-1].set_xlabel(x)
    if panels == 1:
      every[0].set_ylabel(y)
    else:
      figure.supylabel(y, fontsize='medium')
    paint(every if panels > 1 else every[0])
    figure.savefig(
      text, format='svg', transparent=True, metadata={'Date': None}
    )
  svg = text.getvalue().replace(_BLACK, 'currentColor')
  return svg[svg.index('<svg') :]


def gaps(values: Sequence[float | None]) -> list[float]:
  """None as NaN, which leaves a gap in a line."""
  return [math.nan if value is None else value for value in values]


def limits(
  values: Iterable[float],
  least: float,
  floor: float = -math.inf,
  ceiling: float = math.inf,
) -> tuple[float, float]:
  """Ends of an axis that is at least `least` long, about the values.

  A small difference then looks small, whatever else there is to see.

  Args:
    values: that are drawn.
    least: the shortest axis.
    floor: no value is below it; the axis begins there at the earliest.
    ceiling: no value is above it; the axis ends little above it.
  """
  known = [value for value in values if math.isfinite(value)] or [0.0]
  low, high = min(known), max(known)
  # An axis without a length cannot be drawn.
  pad = max(0.05 * (high - low), (least - (high - low)) / 2) or 1.0
  low, high = low - pad, high + pad
  if low < floor:
    low, high = floor, max(high, floor + least)
  if high > ceiling:
    # A line along the ceiling stays visible.
    low, high = min(low, ceiling - least), ceiling + 0.03 * least
  return low, high


def mark_removed(axes: Axes, removed: Iterable[int]) -> None:
  """Shades the blocks without attention, and says so in the legend."""
  for number, block in enumerate(sorted(removed)):
    axes.axvspan(
      block - 0.4,
      block + 0.4,
      color=style.GREY,
      alpha=0.25,
      lw=0,
      label=None if number else 'attention removed',
    )


def legend_below(axes: Axes, columns: int = 3) -> None:
  """A legend that covers no point."""
  axes.legend(
    frameon=False,
    ncols=columns,
    loc='lower center',
    bbox_to_anchor=(0.5, 1.0),
    fontsize='small',
  )
