"""What each way costs a real backbone, in points, with its 95% interval.

From docs/benchmarks/real_backbone.json (nothing trained), evidence.json and its
like, and camvid.json (each with the same further epochs).
"""

import pathlib
from typing import Any

from tables import evidence

from pictures import paper

_TUNED = {
  'evidence_with_tokens': 'Caltech-101',
  'evidence': 'Caltech-101',
  'evidence_on_cifar10': 'CIFAR-10',
}
FILES = ('real_backbone', *_TUNED, 'camvid')
TITLE = 'Change of accuracy'
CAPTION = (
  'Points of top-1, for CamVid of mean IoU; intervals are over the test images of '
  'the first draw or seed. The sections below and '
  '[results_trained.md](results_trained.md) say what the rows are.'
)

Row = tuple[str, float, float]
"""What was done, the change in points and half its interval."""


def panels(figures: dict[str, Any]) -> dict[str, list[Row]]:
  """Per title its rows, in the order of the tables: the first draw and seed."""
  found: dict[str, list[Any]] = {}
  for name, part in figures.get('real_backbone', {}).items():
    title = paper.DATA_SETS.get(name, name)
    found[f'{title}, nothing trained'] = [
      (key.partition(' ')[2], *row['change'])
      for key, row in part['rows'].items()
      if 'change' in row and key.startswith('0 ')
    ]
  for file, data in _TUNED.items():
    if file not in figures:
      continue
    tuned = figures[file]
    title = (
      f'{data}, {tuned["image_size"]} pixels, '
      f'{tuned["recipe"]["more_epochs"]} further epochs each'
    )
    found[title] = [
      (evidence.ROWS[name].replace('`', ''), *row['change'])
      for seed, name, row in evidence.ordered(tuned)
      if seed == '0' and 'before' in row
    ]
  if 'camvid' in figures:
    found[f'CamVid, {figures["camvid"]["more_epochs"]} further epochs each'] = [
      (evidence.SCENES[name], *row['change'])
      for name, row in figures['camvid']['rows'].items()
      if 'change' in row
    ]
  return {
    title: [(what, 100 * change, 100 * half) for what, change, half in rows]
    for title, rows in found.items()
    if rows
  }


def describe(figures: dict[str, Any]) -> str:
  """Every row in words."""
  parts = []
  for title, rows in panels(figures).items():
    points = ', '.join(
      f'{what} {x:+.1f} ± {half:.1f}' for what, x, half in rows
    )
    parts.append(f'{title}: {points}')
  return '. '.join(parts) + '.'


def draw(figures: dict[str, Any], path: pathlib.Path) -> None:
  """Writes the picture as SVG, the same bytes for the same figures."""
  shown = panels(figures)
  heights = [len(rows) + 1.5 for rows in shown.values()]
  with paper.sheet(
    path,
    describe(figures),
    len(shown),
    1,
    (8.0, 0.24 * sum(heights) + 0.6),
    height_ratios=heights,
    sharex=True,
  ) as axes:
    for ax, (title, rows) in zip(axes[:, 0], shown.items(), strict=True):
      places = range(len(rows))
      names, changes, halves = zip(*rows, strict=True)
      ax.errorbar(
        changes, places, xerr=halves, fmt='o', markersize=4, color='#0b62b0',
        elinewidth=1.4, capsize=2,
      )  # fmt: skip
      ax.axvline(0, color='#999999', linewidth=0.8, linestyle=':')
      ax.set_yticks(places, names, fontsize=8)
      ax.set_ylim(len(rows) - 0.5, -0.5)
      ax.set_title(f'DINOv2 ViT-S, {title}', fontsize=10, loc='left')
      ax.grid(axis='x', alpha=0.25)
    axes[-1][0].set_xlabel(
      'change to the dense network with its 95% interval, points'
    )
