"""The part of the page about the search for layers: `selection.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lambda_vit_jax.cli.report import compression, html, network, plots
from lambda_vit_jax.cli.report.html import escape
from lambda_vit_jax.cli.report.results import Results
from lambda_vit_jax.selection.criteria import MEASURED

# Units of the scores, by criterion; others are plain numbers.
_UNITS = {'transfer_entropy': 'nats', 'loss_increase': 'nats', 'output': 'nats'}


def unit_of(results: Results) -> str:
  """The unit of the scores of the search, or ''."""
  if results.compression is not None and results.compresses:
    return compression.unit_of(results.compression)
  selected = results.selection
  if selected.get('criterion') == 'output' and selected['target'] != 'logits':
    return 'mean square'
  return _UNITS.get(selected.get('criterion', ''), '')


def the_network(results: Results) -> list[str]:
  """The strip of blocks, and its legend."""
  blocks = network.blocks_of(results)
  if not blocks:
    return []
  return [
    '<h2>The network</h2>',
    network.strip(blocks, unit_of(results)),
    html.soft(
      'Bars: attention above, MLP below, filled as far as they are left. MACs '
      'are multiply-accumulates executed for one image.'
    ),
  ]


def section(results: Results) -> list[str]:
  """Which blocks lost their attention, and the scores of all candidates."""
  selected, dropped = results.selection, results.dropped
  before = results.gone_before
  removed = [block for block in selected['order'] if block not in dropped]
  blocks = ', '.join(map(str, removed)) or 'none'
  parts = ['<h2>Selection</h2>']
  if dropped:
    names = ', '.join(map(str, dropped))
    parts.append(f'<p>Whole blocks dropped: {escape(names)}.</p>')
  parts.append(
    f'<p>Attention removed from blocks {escape(blocks)}, in this order, by '
    f'<code>{escape(selected["criterion"])}</code> on '
    f'<code>{escape(selected["target"])}</code> of '
    f'{escape(selected["num_samples"])} images.</p>'
  )
  if before:
    gone, everything = (', '.join(map(str, x)) for x in (before, results.gone))
    parts.append(
      f'<p>Gone before: {escape(gone)}. Without attention in all: '
      f'{escape(everything)}.</p>'
    )
  scored = [row for row in selected['rounds'] if row['scores']]
  if scored:
    parts += _certainty(selected, scored)
    unit = unit_of(results)
    figures = [_scores(scored, unit)]
    if selected.get('top1'):
      figures.append(_top1(selected))
    elif selected['criterion'] in MEASURED and all(map(_is_whole, scored)):
      figures.append(_over_removed(scored, unit))
    parts.append(f'<div class="figures">{"".join(figures)}</div>')
  return parts


def _is_whole(row: Mapping[str, Any]) -> bool:
  """Whether a round has the score of its own choice."""
  return str(row['chosen']) in row['scores']


def _certainty(
  selected: Mapping[str, Any], scored: Sequence[Mapping[str, Any]]
) -> list[str]:
  """How sure the choice is, where resampling has measured that."""
  open_rounds = [
    f'round {number}: {row["chosen"]} or '
    f'{", ".join(map(str, row["indistinguishable"]))}'
    for number, row in enumerate(scored, 1)
    if row.get('indistinguishable')
  ]
  parts = []
  agreement = selected.get('agreement')
  if isinstance(agreement, int | float):
    parts.append(
      html.soft(
        f'{100 * agreement:.0f} % of {selected.get("resamples", 0):,} resamples '
        'of the images choose the same layers in every round.'
      )
    )
  if open_rounds:
    parts.append(html.soft(f'As good as the choice: {"; ".join(open_rounds)}.'))
  return parts


def _scores(scored: Sequence[Mapping[str, Any]], unit: str) -> str:
  left_out = len(scored) - plots.MOST_ROUNDS
  caption = (
    'Score of every candidate block in every round, with its 95% interval. '
    'Filled: the block chosen; diamonds: as good as it; arrows: beyond the axis, '
    'with the score.'
  )
  if left_out > 0:
    caption += f' The last {left_out} rounds are in the table alone.'
  rows = []
  for number, row in enumerate(scored, 1):
    for block, value in row['scores'].items():
      ends = row.get('intervals', {}).get(block)
      mark = 'chosen' if int(block) == row['chosen'] else ''
      if int(block) in row.get('indistinguishable', ()):
        mark = 'as good as'
      interval = '–' if ends is None else f'[{ends[0]:.3g}, {ends[1]:.3g}]'
      rows.append((str(number), block, html.number(value), interval, mark))
  score = f'score ({unit})' if unit else 'score'
  return html.figure(
    plots.scores_of_rounds(scored, unit),
    caption,
    ('round', 'block', score, '95%', 'choice'),
    rows,
  )


def _top1(selected: Mapping[str, Any]) -> str:
  values = [100.0 * value for value in selected['top1']]
  removed = ('–', *map(str, selected['order']))
  return html.figure(
    plots.top1_over_removed(values),
    f'Top-1 of {selected["num_samples"]} held-out images over the number of '
    'attention layers left out, before any training.',
    ('layers', 'last removed', 'top-1 (%)'),
    [
      (str(number), block, f'{value:.2f}')
      for number, (block, value) in enumerate(zip(removed, values, strict=True))
    ],
  )


def _over_removed(scored: Sequence[Mapping[str, Any]], unit: str) -> str:
  rows = [
    (
      str(number),
      str(row['chosen']),
      html.number(row['scores'][str(row['chosen'])]),
    )
    for number, row in enumerate(scored, 1)
  ]
  return html.figure(
    plots.score_over_removed(scored, unit),
    'Score of the network, without training, over the number of attention '
    'layers removed.',
    ('layers', 'last removed', f'score ({unit})' if unit else 'score'),
    rows,
  )
