"""The plots of a run, as SVG text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lambda_vit_jax.cli.report import style
from lambda_vit_jax.cli.report.drawing import (
  Axes,
  draw,
  gaps,
  legend_below,
  limits,
  mark_removed,
)

# Shortest axes: 10 points of accuracy, 0.2 nats of loss. A difference of 0.006
# is then a thirtieth of the height.
_LEAST = {'accuracy': 10.0, 'loss': 0.2}

# Panels of the plot of scores, one per round.
MOST_ROUNDS = 12


def _window(rounds: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
  """The part of the scores' axis that is shown.

  One block, mostly the first, scores many times what the candidates do between
  which there is something to choose. A linear axis to that block puts those
  candidates in a heap at zero; a logarithmic or symmetric one stretches the
  neighbourhood of zero, where half of them are noise, and lengths of intervals
  can no longer be compared. So the axis stays linear, ends a little above the
  intervals of the chosen ones and of those as good, and what lies beyond has an
  arrow at the edge with its value written.
  """
  core, every = [0.0], [0.0]
  for row in rounds:
    for block, score in row['scores'].items():
      ends = row.get('intervals', {}).get(block, (score, score))
      every += [score, *ends]
      if int(block) in (row['chosen'], *row.get('indistinguishable', ())):
        core += [score, *ends]
  low, high = min(core), max(core)
  reach = 0.25 * (high - low) or math.inf
  return max(min(every), low - reach), min(max(every), high + reach)


def scores_of_rounds(rounds: Sequence[Mapping[str, Any]], unit: str) -> str:
  """A panel per round: every candidate's score with its interval.

  Args:
    rounds: of `selection.json`; the first `MOST_ROUNDS` are drawn.
    unit: of the scores, or ''.
  """
  shown = rounds[:MOST_ROUNDS]
  low, high = _window(shown)
  margin = 0.06 * (high - low) or 1.0

  def paint(panels: Any) -> None:
    for index, (axes, row) in enumerate(
      zip(panels if len(shown) > 1 else [panels], shown, strict=True)
    ):
      _paint_round(axes, row, low, high)
      axes.set_title(
        f'round {index + 1}: block {row["chosen"]}',
        fontsize='small',
        loc='left',
      )
      axes.set_ylim(low - margin, high + 3 * margin)

  label = f'score ({unit})' if unit else 'score'
  return draw(paint, 'block', label, len(shown), 0.6 + 1.3 * len(shown))


def _paint_round(
  axes: Axes, row: Mapping[str, Any], low: float, high: float
) -> None:
  alike = row.get('indistinguishable', ())
  axes.axhline(0.0, color=style.GREY, lw=0.8)
  small = len(row['scores']) > 14
  for key, score in row['scores'].items():
    block = int(key)
    if not low <= score <= high:
      edge, marker = (high, '^') if score > high else (low, 'v')
      axes.plot([block], [edge], marker=marker, color=style.GREY, ms=5)
      axes.annotate(
        f'{score:.2g}',
        (block, edge),
        xytext=(0, 4 if score > high else -4),
        textcoords='offset points',
        ha='center',
        va='bottom' if score > high else 'top',
        fontsize=7 if small else 8,
        rotation=90 if small else 0,
      )
      continue
    ends = row.get('intervals', {}).get(key)
    colour = style.PLOT[0]
    if ends is not None:
      axes.plot([block, block], ends, color=colour, lw=1.2)
    if block == row['chosen']:
      axes.plot([block], [score], marker='o', ms=8, color=style.PLOT[1])
    elif block in alike:
      axes.plot(
        [block], [score], marker='D', ms=6, mfc='none', color=style.PLOT[1]
      )
    else:
      axes.plot([block], [score], marker='o', ms=5, mfc='none', color=colour)


def score_over_removed(rounds: Sequence[Mapping[str, Any]], unit: str) -> str:
  """The score of the network after each removal, with its interval."""

  def paint(axes: Axes) -> None:
    numbers = range(1, len(rounds) + 1)
    keys = [str(row['chosen']) for row in rounds]
    values = [row['scores'][key] for row, key in zip(rounds, keys, strict=True)]
    drawn = list(values)
    axes.plot([0, *numbers], [0.0, *values], marker='o')
    for number, row, key in zip(numbers, rounds, keys, strict=True):
      ends = row.get('intervals', {}).get(key)
      if ends is not None:
        axes.plot([number, number], ends, color=style.PLOT[0], lw=1.2)
        drawn += ends
    axes.set_xticks([0, *numbers])
    axes.set_ylim(*limits([0.0, *drawn], 0.0))

  return draw(paint, 'attention layers removed', f'score ({unit})')


def top1_over_removed(values: Sequence[float]) -> str:
  """Top-1 in percent with the first 0, 1, … layers left out."""

  def paint(axes: Axes) -> None:
    axes.plot(range(len(values)), values, marker='o')
    axes.set_xticks(range(len(values)))
    axes.set_ylim(*limits(values, _LEAST['accuracy'], 0.0, 100.0))

  return draw(paint, 'attention layers removed', 'top-1 (%)')


def layer_entropy(
  attention: Sequence[float | None],
  mlp: Sequence[float | None],
  removed: Sequence[int],
) -> str:
  """Entropy of each block's attention and MLP output; None leaves a gap."""

  def paint(axes: Axes) -> None:
    axes.plot(gaps(attention), marker='o', label='attention')
    axes.plot(gaps(mlp), marker='s', ls='--', label='MLP')
    mark_removed(axes, removed)
    legend_below(axes)

  return draw(paint, 'block', 'entropy (nats)')


def over_blocks(
  values: Sequence[float | None], removed: Sequence[int], label: str
) -> str:
  """One value per block, with the removed ones marked."""

  def paint(axes: Axes) -> None:
    axes.plot(gaps(values), marker='o')
    mark_removed(axes, removed)
    if removed:
      legend_below(axes)

  return draw(paint, 'block', label)


def spectrum(
  frequencies: Sequence[float], rows: Mapping[str, Sequence[float]]
) -> str:
  """Relative log amplitude over the frequency, a line per row."""

  def paint(axes: Axes) -> None:
    styles = ('-', '--', ':')
    for index, (name, values) in enumerate(rows.items()):
      axes.plot(
        [value / math.pi for value in frequencies],
        values,
        marker='o',
        ms=4,
        ls=styles[index % len(styles)],
        label=name,
      )
    legend_below(axes)

  return draw(paint, 'frequency (π radians per token)', 'Δ log amplitude')


def speed_against_error(
  pairs: Sequence[tuple[float, float]], target: float, unit: str
) -> str:
  """The path of a search: speed-up and error of each network."""

  def paint(axes: Axes) -> None:
    axes.plot(*zip(*pairs, strict=True), marker='o', ms=4)
    axes.axvline(target, color=style.GREY, ls='--', label=f'target {target:g}')
    axes.set_xlim(left=min(1.0, *(pair[0] for pair in pairs)))
    legend_below(axes)

  label = f'error ({unit})' if unit else 'error'
  return draw(paint, 'speed-up (times dense)', label)


def strip(
  shares: Sequence[float], attention: Mapping[str, Sequence[float]]
) -> str:
  """What is left of each block: its MLP upwards, its attention downwards.

  Args:
    shares: of each MLP's width.
    attention: per kind, and for each block, how much of the bar it takes.
  """

  def paint(axes: Axes) -> None:
    blocks = range(len(shares))
    axes.bar(blocks, shares, label='MLP')
    for name, heights in attention.items():
      axes.bar(blocks, [-height for height in heights], label=name)
    axes.set_yticks([])
    axes.set_xticks(list(blocks))
    axes.tick_params(axis='x', labelsize='small' if len(shares) < 18 else 6)
    legend_below(axes)

  return draw(paint, 'block', 'share left')


def training_limits(
  rows: Sequence[Mapping[str, Any]], key: str
) -> tuple[float, float]:
  """Ends of the axis of a metric, never so short that noise looks large."""
  values = [
    row[name] for row in rows for name in (key, f'holdout_{key}') if name in row
  ]
  scale = 100.0 if key == 'accuracy' else 1.0
  most = 100.0 if key == 'accuracy' else math.inf
  return limits([scale * v for v in values], _LEAST[key], 0.0, most)


def training_curves(
  rows: Sequence[Mapping[str, Any]],
  key: str,
  ends: tuple[float, float],
) -> str:
  """A metric of training batches and held-out images from step 0, and λ.

  Args:
    rows: of one stage.
    key: `loss` or `accuracy`.
    ends: of the metric's axis, see `training_limits`.
  """
  percent = key == 'accuracy'
  scale = 100.0 if percent else 1.0

  def paint(axes: Axes) -> None:
    for name, label, look in (
      (key, 'training batches', {'color': style.PLOT[0]}),
      (
        f'holdout_{key}',
        'held-out images',
        {'color': style.PLOT[1], 'marker': 'o', 'ms': 4},
      ),
    ):
      known = [row for row in rows if name in row]
      if known:
        steps = [row['step'] for row in known]
        axes.plot(
          steps, [scale * row[name] for row in known], label=label, **look
        )
    axes.set_ylim(*ends)
    axes.set_xlim(left=0, right=max(1, *(row['step'] for row in rows)))
    factor = axes.twinx()
    factor.plot(
      [row['step'] for row in rows],
      [row['lambda'] for row in rows],
      color=style.GREY,
      ls='--',
    )
    axes.plot([], [], color=style.GREY, ls='--', label='λ (right)')
    factor.set_ylim(-0.05, 1.05)
    factor.set_ylabel('λ', rotation=0)
    factor.spines['top'].set_visible(False)
    factor.grid(False)
    legend_below(axes)

  return draw(paint, 'step', 'accuracy (%)' if percent else 'loss (nats)')
