"""The plots of a run, as SVG text. Matplotlib is imported when one is drawn."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_SIZE = (4.2, 2.6)

# Readable on white and on black; the lines of texts and axes take the page's
# colour instead.
_COLOURS = ('#3b82c4', '#e07b39', '#2f9e6e', '#b565b0', '#b8921f', '#d9534f')
_BLACK = '#000000'


def _draw(paint: Callable[[Any], None], x: str, y: str) -> str:
  """An SVG whose colours follow the page, from a function of the axes."""
  import matplotlib.figure
  from cycler import cycler

  text = io.StringIO()
  # A fixed salt and no date: the same run makes the same file.
  with matplotlib.rc_context(
    {
      'svg.hashsalt': 'lambda_vit_jax',
      'svg.fonttype': 'none',
      'axes.prop_cycle': cycler(color=_COLOURS),
      'axes.grid': True,
      'grid.alpha': 0.25,
      'font.family': 'sans-serif',
    }
  ):
    figure = matplotlib.figure.Figure(figsize=_SIZE, layout='constrained')
    axes = figure.add_subplot()
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    paint(axes)
    figure.savefig(
      text, format='svg', transparent=True, metadata={'Date': None}
    )
  svg = text.getvalue().replace(_BLACK, 'currentColor')
  return svg[svg.index('<svg') :]


def transfer_entropy_rounds(rounds: Sequence[dict[str, Any]]) -> str:
  """Every candidate's score in every round; the chosen ones are filled."""

  def paint(axes: Any) -> None:
    for index, row in enumerate(rounds):
      blocks = [int(block) for block in row['scores']]
      values = list(row['scores'].values())
      (line,) = axes.plot(
        blocks, values, marker='o', mfc='none', lw=0.8, label=f'{index + 1}'
      )
      chosen = row['chosen']
      value = row['scores'].get(str(chosen), row['scores'].get(chosen))
      axes.plot([chosen], [value], marker='o', ms=9, color=line.get_color())
    axes.legend(title='round', frameon=False, ncols=2)

  return _draw(paint, 'block', 'score (nats)')


def _gaps(values: Sequence[float | None]) -> list[float]:
  return [float('nan') if value is None else value for value in values]


def layer_entropy(
  attention: Sequence[float | None], mlp: Sequence[float | None]
) -> str:
  """Entropy of each block's attention and MLP output; None leaves a gap."""

  def paint(axes: Any) -> None:
    axes.plot(_gaps(attention), marker='o', label='attention')
    axes.plot(_gaps(mlp), marker='s', label='MLP')
    axes.legend(frameon=False)

  return _draw(paint, 'block', 'entropy (nats)')


def speed_against_error(pairs: Sequence[tuple[float, float]]) -> str:
  """The path of a search: speed-up and error of each network."""

  def paint(axes: Any) -> None:
    axes.plot(*zip(*pairs, strict=True), marker='o', ms=4)

  return _draw(paint, 'speed-up', 'error')


def strip(
  shares: Sequence[float], attention: Mapping[str, Sequence[float]]
) -> str:
  """What is left of each block: its MLP upwards, its attention downwards.

  Args:
    shares: of each MLP's width.
    attention: per kind, and for each block, how much of the bar it takes.
  """

  def paint(axes: Any) -> None:
    blocks = range(len(shares))
    axes.bar(blocks, shares, label='MLP')
    for name, heights in attention.items():
      axes.bar(blocks, [-height for height in heights], label=name)
    axes.set_yticks([])
    axes.set_xticks(list(blocks))
    axes.legend(frameon=False, ncols=3, loc='lower center')

  return _draw(paint, 'block', '')


def training_curves(rows: Sequence[dict[str, Any]], key: str) -> str:
  """One metric of a training stage over steps, with λ in the background."""

  def paint(axes: Any) -> None:
    steps = [row['step'] for row in rows]
    axes.plot(steps, [row[key] for row in rows], color='C0')
    axes.yaxis.label.set_color('C0')
    factor = axes.twinx()
    factor.plot(steps, [row['lambda'] for row in rows], color='C1', ls='--')
    factor.set_ylim(-0.05, 1.05)
    factor.set_ylabel('λ', color='C1', rotation=0)
    factor.spines['top'].set_visible(False)
    factor.grid(False)

  return _draw(paint, 'step', key)
