"""Accuracy of a real backbone as attention layers go, against operations.

By the criterion that orders the layers, and by what replaces them; from
docs/benchmarks/removal_curves.json, the first draw.
"""

import pathlib
from typing import Any

from tables import real_backbone

from pictures import paper

FILES = ('removal_curves',)
TITLE = 'Accuracy as attention goes'
CAPTION = (
  'Nothing is trained. Above, every criterion with the same maps; below, the layers '
  'of `output` with other stand-ins. Curves that leave the picture go on in the tables.'
)
COLOURS = ('#0b62b0', '#b0305c', '#1a7f64', '#d98200', '#7a4fbf',
           '#1793a6', '#8a3b12', '#6b6b6b', '#000000', '#8a8a00',
           '#c04fbf', '#3f6f9f')  # fmt: skip
DEPTH = 25
"""Points below the dense network that are in the picture."""

Curve = list[tuple[float, float]]


def curve(found: dict[str, Any], rows: dict[int, dict[str, Any]]) -> Curve:
  """Points (times fewer, top-1 in percent) from the dense network on."""
  dense = found['dense_macs']
  return [
    (1.0, 100 * found['dense_top1']),
    *(
      (dense / rows[count]['macs_executed'], 100 * rows[count]['top1'])
      for count in sorted(rows)
    ),
  ]


def panels(found: dict[str, Any]) -> tuple[dict[str, Curve], dict[str, Curve]]:
  """The curves of criteria, and those of stand-ins."""
  criteria, kinds = (
    {name: curve(found, rows) for name, rows in measured.items()}
    for measured in (
      real_backbone.curves(found),
      real_backbone.kind_curves(found),
    )
  )
  return criteria, kinds


def describe(figures: dict[str, Any]) -> str:
  """Every point in words."""
  parts = []
  for name, found in figures['removal_curves'].items():
    for curves in panels(found):
      for what, points in curves.items():
        words = ', '.join(f'{y:.1f}% at {x:.2f}x' for x, y in points[1:])
        parts.append(f'{paper.DATA_SETS.get(name, name)}, {what}: {words}')
  return '. '.join(parts) + '.'


def draw(figures: dict[str, Any], path: pathlib.Path) -> None:
  """Writes the picture as SVG, the same bytes for the same figures."""
  sets = figures['removal_curves']
  with paper.sheet(
    path, describe(figures), 2, len(sets), (4.8 * len(sets) + 0.4, 7.2)
  ) as axes:
    for column, (name, found) in enumerate(sets.items()):
      title = f'DINOv2 ViT-S, {paper.DATA_SETS.get(name, name)}'
      for row, curves in enumerate(panels(found)):
        _panel(axes[row][column], curves, 100 * found['dense_top1'], title)


def _panel(ax: Any, curves: dict[str, Curve], dense: float, title: str) -> None:
  colours = iter(COLOURS)
  for what, points in curves.items():
    # The draws of chance are one thing.
    chance = what.startswith('random')
    ax.plot(
      *zip(*points, strict=True),
      marker='' if chance else 'o',
      markersize=4,
      linewidth=0.8 if chance else 1.4,
      color='#999999' if chance else next(colours),
      label=None if chance and what != 'random 0' else what.removesuffix(' 0'),
    )
  ax.axhline(dense, color='#999999', linewidth=0.8, linestyle=':')
  ax.set_ylim(dense - DEPTH, dense + 2)
  ax.set_title(title, fontsize=10)
  ax.set_xlabel('times fewer operations executed')
  ax.set_ylabel('top-1, %')
  ax.grid(alpha=0.25)
  ax.legend(fontsize=7, loc='upper right', framealpha=0.9)
