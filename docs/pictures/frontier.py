"""Accuracy of a real backbone against how many times fewer operations it executes.

For `lv.compress` and for other ways, from docs/benchmarks/compress.json.
"""

import pathlib
from typing import Any

from pictures import paper

FILES = ('compress',)
TITLE = 'Accuracy against speed-up'
CAPTION = (
  'Nothing is trained but with `finetune=300`. Curves that leave the picture go on in '
  'the tables below.'
)
# By lever, its name and colour; every shade has a contrast of 3 on white.
LEVERS = {
  'everything': ('lv.compress: attention, neurons, blocks, tokens', '#0b62b0'),
  'everything polish': ('lv.compress(finetune=300): the same', '#d98200'),
  'joint': ('lv.compress: attention, neurons, blocks', '#1793a6'),
  'attention': ('attention alone', '#7a4fbf'),
  'neurons': ('neurons alone', '#1a7f64'),
  'uniform': ('every MLP narrowed alike (CORP)', '#b25c00'),
  'merging': ('token merging (ToMe)', '#b0305c'),
  'span': ('blocks as one map (TOAST)', '#6b6b6b'),
  'dropped': ('consecutive blocks dropped', '#8a3b12'),
}

Curve = list[tuple[float, float]]


def curves(found: dict[str, Any]) -> dict[str, Curve]:
  """Per lever its points (speed-up, top-1 in percent) of the first draw."""
  dense = (1.0, 100 * found['dense_top1'])
  lines: dict[str, Curve] = {}
  for key, row in found['rows'].items():
    draw, lever, _, *after = key.split(' ')
    lever = ' '.join((lever, *after))
    if draw == '0' and row.get('speedup') and lever in LEVERS:
      lines.setdefault(lever, [dense]).append(
        (row['speedup'], 100 * row['top1'])
      )
  return {lever: sorted(lines[lever]) for lever in LEVERS if lever in lines}


def describe(figures: dict[str, Any]) -> str:
  """Every point in words: what a reader who does not see the picture reads."""
  parts = []
  for name, found in figures['compress'].items():
    for lever, curve in curves(found).items():
      points = ', '.join(f'{y:.1f}% at {x:.2f}x' for x, y in curve)
      parts.append(
        f'{paper.DATA_SETS.get(name, name)}, {LEVERS[lever][0]}: {points}'
      )
  return '. '.join(parts) + '.'


def draw(figures: dict[str, Any], path: pathlib.Path) -> None:
  """Writes the picture as SVG, the same bytes for the same figures."""
  sets = figures['compress']
  with paper.sheet(
    path, describe(figures), 1, len(sets), (4.6 * len(sets) + 0.4, 3.6)
  ) as axes:
    for ax, (name, found) in zip(axes[0], sets.items(), strict=True):
      for lever, curve in curves(found).items():
        title, colour = LEVERS[lever]
        ax.plot(
          *zip(*curve, strict=True),
          marker='o',
          markersize=4,
          color=colour,
          label=title,
          linewidth=2.2 if lever == 'everything' else 1.2,
          zorder=3 if lever == 'everything' else 2,
        )
      dense = 100 * found['dense_top1']
      ax.axhline(dense, color='#999999', linewidth=0.8, linestyle=':')
      ax.annotate(f'dense {dense:.1f}', (1.0, dense), (3, 4),
                  textcoords='offset points', fontsize=8)  # fmt: skip
      ax.set_ylim(dense - 15, dense + 2)
      ax.set_title(
        f'DINOv2 ViT-S, {paper.DATA_SETS.get(name, name)}', fontsize=10
      )
      ax.set_xlabel('times fewer operations executed')
      ax.set_ylabel('top-1, %')
      ax.grid(alpha=0.25)
    # The first panel has every curve, and the last one room below its own.
    handles, titles = axes[0][0].get_legend_handles_labels()
    axes[0][-1].legend(
      handles, titles, fontsize=7, loc='lower left', framealpha=0.9
    )
