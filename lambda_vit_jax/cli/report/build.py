"""Build `report.html` and the results table from the files of a workdir."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.console import print_line, print_table
from lambda_vit_jax.cli.report import (
  compression,
  html,
  plots,
  runtime_table,
  speed_table,
)
from lambda_vit_jax.cli.report.html import Cell, cell, escape
from lambda_vit_jax.cli.report.results import Results, read_results
from lambda_vit_jax.cli.report.speed_table import si
from lambda_vit_jax.core import files

# Names of the run's main score in the table and the cards.
_SCORES = {'top1': 'top-1 %', 'mean_iou': 'mean IoU %'}

# Columns after `model` and the score.
_FIGURES = (
  'steps',
  'images',
  'parameters',
  'MACs',
  'MACs executed',
  'weights',
  'images/s',
  'times dense',
)

# Rows of the results table that are there only if they were evaluated.
_EXTRA = {
  'baseline': 'the dense model, trained for as many steps as the pruned one',
  'pruned_raw': 'the parameters that pruned averages',
  'pruned_ema': 'the moving average of the parameters of pruned',
}
_ROWS = ('dense', 'baseline', 'pruned', 'pruned_raw', 'pruned_ema', 'exported')

# Files that the page links to, where they are there.
_FILES = (
  stage_table.CONFIG,
  stage_table.METRICS,
  *(
    name
    for stage, spec in stage_table.STAGES.items()
    for name in spec.writes
    if stage != 'report' and not name.endswith('/')
  ),
)

# What a row of `metrics.jsonl` must have to be drawn.
_CURVES = {'loss', 'lambda'}

# Most rows in the tables that go with the training plots.
_MOST_ROWS = 60


def _head(results: Results) -> str:
  """Returns the name of the main score; says if the masks lack classes."""
  head = _SCORES[results.score]
  for row in results.evaluation.values():
    if row.get('missing_classes') and 'iou' in row:
      number = len(row['iou'])
      held = number - len(row['missing_classes'])
      return f'{head} (test masks hold {held} of {number} classes)'
  return head


def results_columns(results: Results) -> tuple[str, ...]:
  """Heads of the results table."""
  return ('model', _head(results), *_FIGURES)


def results_cells(results: Results) -> list[tuple[Cell, ...]]:
  """Rows of the results table, in the order of `results_columns`.

  A figure that no stage has measured yet is a dash.
  """
  start = 'init' if results.config.get('init') else ''
  rows: list[tuple[Cell, ...]] = []
  for name in _rows(results):
    score = results.evaluation.get(name, {})
    size = results.benchmark.get(name, {})
    speed = size.get('images_per_second', {}).get('median')
    rows.append(
      (
        Cell(name, name),
        cell(score.get(results.score), lambda value: f'{100 * value:.2f}'),
        cell(score.get('steps'), lambda value: _steps(value, start)),
        cell(score.get('num_images'), str),
        cell(size.get('parameters'), si),
        cell(size.get('macs'), si),
        cell(size.get('macs_executed'), si),
        cell(size.get('weight_bytes'), lambda value: si(value, 'B')),
        cell(speed, lambda value: f'{value:.1f}'),
        speed_table.over_dense(name, size),
      )
    )
  return rows


def _rows(results: Results) -> list[str]:
  return [
    name for name in _ROWS if name not in _EXTRA or name in results.evaluation
  ]


def _steps(number: float, start: str) -> str:
  """Training steps, after those that the weights `start` have seen."""
  return ' + '.join(filter(None, (start, str(number) if number else ''))) or '0'


def _comparison(results: Results) -> list[str]:
  """Says what the rows are, and whether they have seen as many steps."""
  rows = results.evaluation
  lines = [f'{name}: {what}' for name, what in _EXTRA.items() if name in rows]
  steps = [rows.get(k, {}).get('steps', 0) for k in ('dense', 'pruned')]
  if 'baseline' not in rows and steps[1] > steps[0]:
    more = steps[1] - steps[0]
    lines.append(f'pruned was trained {more} steps more than dense')
  return lines


def print_results(workdir: str | epath.Path) -> None:
  """The results table and where the page is, on stdout."""
  results = read_results(workdir)
  rows = html.texts(results_cells(results))
  print_table(results_columns(results), rows)
  for line in _comparison(results):
    print_line(line)
  if results.selection:
    dropped = results.dropped
    if dropped:
      print_line(f'whole blocks {dropped} dropped')
    removed = [
      block for block in results.selection['removed'] if block not in dropped
    ]
    if removed or not dropped:
      print_line(f'attention removed from blocks {removed}')
    if results.gone_before:
      print_line(
        f'attention gone before from blocks {results.gone_before}; in all '
        f'{results.gone}'
      )
  print_line(f'report: {results.workdir / stage_table.REPORT}')


def print_benchmark(workdir: str | epath.Path) -> None:
  """The table of the stage `benchmark` on stdout, if it has run."""
  measured = read_results(workdir).benchmark
  if measured:
    speed_table.show(measured)
    runtime_table.show(measured)


def _summary(results: Results) -> list[str]:
  """Shows the main numbers, and how speed was measured."""
  measured, key = results.benchmark, results.score
  figures = []
  # Networks that have seen as many steps, where both are there.
  start = 'baseline' if 'baseline' in results.evaluation else 'dense'
  before, after = (
    results.evaluation.get(name, {}).get(key) for name in (start, 'pruned')
  )
  if before is not None and after is not None:
    change = f'{100 * before:.2f} → {100 * after:.2f}'
    figures.append((f'{_head(results)}, {start} → pruned', change))
  if measured:
    speed = f'× {speed_table.speedup(measured)}'
    figures.append(('images per second', speed))
    for key, name in (
      ('parameters', 'parameters'),
      # What runs, which is what the speed can follow.
      ('macs_executed', 'MACs executed'),
    ):
      before, after = (measured[m].get(key) for m in ('dense', 'pruned'))
      if before is not None and after is not None:
        share = f'{100 * (after / before - 1):+.1f} %'
        figures.append((name, share.replace('-', '−')))
  parts = [html.cards(figures)]
  columns = results_columns(results)
  parts.append(html.table(columns, results_cells(results), 'Results'))
  parts += [
    f'<p class="soft">{escape(line)}.</p>' for line in _comparison(results)
  ]
  if measured:
    parts.append(
      f'<p class="soft">Speed: batch {escape(measured["batch_size"])}, '
      f'{escape(measured["dtype"])}, {escape(measured["device"])}, '
      f'{escape(measured["date"])}.</p>'
    )
  return parts


def _problems(lines: Sequence[str]) -> list[str]:
  """Says which files are left out."""
  if not lines:
    return []
  items = ''.join(f'<li>{escape(line)}</li>' for line in lines)
  return ['<h2>Left out</h2>', f'<ul class="left-out">{items}</ul>']


def _selection(results: Results, depth: int) -> list[str]:
  """Shows which blocks lost their attention, and the scores."""
  selected, dropped = results.selection, results.dropped
  before = results.gone_before
  removed = [block for block in selected['order'] if block not in dropped]
  blocks = ', '.join(map(str, removed)) or 'none'
  parts = [
    '<h2>Selection</h2>',
    html.blocks(depth, selected['removed'], dropped, before),
    *(
      [f'<p>Whole blocks dropped: {escape(", ".join(map(str, dropped)))}.</p>']
      if dropped
      else []
    ),
    f'<p>Attention removed from blocks {escape(blocks)}, in this order, by '
    f'<code>{escape(selected["criterion"])}</code> on '
    f'<code>{escape(selected["target"])}</code> of '
    f'{escape(selected["num_samples"])} images.</p>',
  ]
  if before:
    gone, everything = (', '.join(map(str, x)) for x in (before, results.gone))
    parts.append(
      f'<p>Gone before: {escape(gone)}. Without attention in all: '
      f'{escape(everything)}.</p>'
    )
  scored = [row for row in selected['rounds'] if row['scores']]
  if scored:
    rows = [
      (str(k + 1), block, _number(value), '✓' * (int(block) == row['chosen']))
      for k, row in enumerate(scored)
      for block, value in row['scores'].items()
    ]
    parts.append(
      html.figure(
        plots.transfer_entropy_rounds(scored),
        'Score of every candidate block in every round; filled marks are the '
        'blocks chosen.',
        ('round', 'block', 'score', 'chosen'),
        rows,
      )
    )
  return parts


def _number(value: float | None) -> str:
  return '–' if value is None else f'{value:.4g}'


def _analysis(profile: dict[str, Any]) -> list[str]:
  attention, mlp = profile['attention_entropy'], profile['mlp_entropy']
  rows = [
    (str(k), _number(a), _number(m))
    for k, (a, m) in enumerate(zip(attention, mlp, strict=True))
  ]
  drawn = html.figure(
    plots.layer_entropy(attention, mlp),
    'Gaussian entropy of each attention and MLP output of the dense model.',
    ('block', 'attention (nats)', 'MLP (nats)'),
    rows,
  )
  return ['<h2>Entropy per layer</h2>', drawn]


def _training(stage: str, rows: Sequence[dict[str, Any]]) -> list[str]:
  """Loss, and accuracy where there are labels, over the steps of a stage."""
  drawn = []
  for key in ('loss', 'accuracy'):
    curve = [row for row in rows if key in row]
    if not curve:
      continue
    every = -(-len(curve) // _MOST_ROWS)
    cells = [
      (str(row['step']), _number(row[key]), _number(row['lambda']))
      for row in curve[::every]
    ]
    drawn.append(
      html.figure(
        plots.training_curves(curve, key),
        f'{key} on training batches, and λ (dashed), over the steps of {stage}.',
        ('step', key, 'λ'),
        cells,
      )
    )
  return [
    f'<h2>Training: {escape(stage)}</h2>',
    f'<div class="figures">{"".join(drawn)}</div>',
  ]


def _speed(measured: dict[str, Any]) -> list[str]:
  """Every batch size that was measured."""
  return [
    '<h2>Speed</h2>',
    html.table(speed_table.COLUMNS, speed_table.cells(measured), 'Speed'),
    f'<p class="soft">{escape(speed_table.conditions(measured))}.</p>',
    *_runtimes(measured),
  ]


def _runtimes(measured: dict[str, Any]) -> list[str]:
  rows = runtime_table.cells(measured)
  if not rows:
    return []
  return [
    '<h2>Runtimes</h2>',
    html.table(runtime_table.COLUMNS, rows, 'Runtimes'),
    f'<p class="soft">{escape(runtime_table.conditions(measured))}.</p>',
  ]


def _segmentation(results: Results) -> list[str]:
  """Pictures of test images, and the scores per class."""
  evaluation = results.evaluation
  if results.score != 'mean_iou':
    return []
  models = [name for name in _ROWS if name in evaluation]
  each = itertools.zip_longest(
    *(evaluation[name].get('iou', ()) for name in models)
  )
  rows = [
    (str(k), *(_number(value) for value in values))
    for k, values in enumerate(each)
  ]
  pictures = [
    html.picture(
      picture.png,
      picture.size,
      f'Test image {picture.index}: image, truth, dense, pruned.',
    )
    for picture in results.pictures
  ]
  return [
    '<h2>Segmentation</h2>',
    *pictures,
    html.numbers(
      'Intersection over union of each class', ('class', *models), rows
    ),
  ]


def _sections(results: Results) -> list[str]:
  parts = _summary(results) + _problems(results.problems)
  parts += _segmentation(results)
  if results.benchmark:
    parts += _speed(results.benchmark)
  if results.compression is not None:
    parts += compression.section(results.compression)
  profile = results.analysis.get('profile', {})
  selected = results.selection
  if selected:
    known = [int(k) for row in selected['rounds'] for k in row['scores']]
    depth = len(profile.get('attention_entropy', ()))
    last = max((*known, *results.gone, *results.dropped), default=-1)
    parts += _selection(results, max(depth, last + 1))
  if profile:
    parts += _analysis(profile)
  for stage in ('pretrain', 'linearize', 'dilute', 'baseline'):
    curve = [
      row
      for row in results.metrics
      if row['stage'] == stage and row.keys() >= _CURVES
    ]
    if curve:
      parts += _training(stage, curve)
  there = [name for name in _FILES if (results.workdir / name).exists()]
  if there:
    parts += ['<h2>Files of this run</h2>', html.links(there)]
  return parts


def write_report(
  workdir: str | epath.Path, warn: Callable[[str], None] = lambda line: None
) -> epath.Path:
  """Writes `WORKDIR/report.html` from the results of the stages so far.

  Args:
    workdir: of a run, finished or not.
    warn: takes one line for every damaged file, which the page leaves out.

  Returns:
    The page: one file that loads nothing, for screens of any size, light or
    dark. Its links to the files of the run are relative.
  """
  results = read_results(workdir)
  for line in results.problems:
    warn(f'report: left out: {line}')
  variant = results.config.get('model', {}).get('variant', '')
  path = results.workdir / stage_table.REPORT
  page = html.page(f'λ-ViT report: {variant}', _sections(results))
  files.write_text(path, page)
  return path
