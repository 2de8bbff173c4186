"""Build `report.html` and the results table from the files of a workdir."""

from collections.abc import Sequence
from typing import Any

from etils import epath

from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.console import print_table
from lambda_vit_jax.cli.report import html, plots, speed_table
from lambda_vit_jax.cli.report.html import Cell, cell, escape
from lambda_vit_jax.cli.report.speed_table import si
from lambda_vit_jax.core import files
from lambda_vit_jax.training.metrics import read_metrics

# Names of the run's main score in the table and the cards.
_SCORES = {'top1': 'top-1 %', 'mean_iou': 'mean IoU %'}

# Columns after `model` and the score.
_FIGURES = ('images', 'parameters', 'MACs', 'weights', 'images/s')

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

# Most rows in the tables that go with the training plots.
_MOST_ROWS = 60


def _read(workdir: str | epath.Path, name: str) -> dict[str, Any]:
  """Returns the contents of a result; empty where there is none yet."""
  path = epath.Path(workdir) / name
  return files.read_object(path) if path.exists() else {}


def _score(evaluation: dict[str, Any]) -> str:
  """Returns the key of the run's main score."""
  segments = any('mean_iou' in row for row in evaluation.values())
  return 'mean_iou' if segments else 'top1'


def results_columns(workdir: str | epath.Path) -> tuple[str, ...]:
  """Heads of the results table."""
  evaluation = _read(workdir, stage_table.EVALUATION)
  return ('model', _SCORES[_score(evaluation)], *_FIGURES)


def results_cells(workdir: str | epath.Path) -> list[tuple[Cell, ...]]:
  """Rows of the results table, in the order of `results_columns`.

  A figure that no stage has measured yet is a dash.
  """
  evaluation = _read(workdir, stage_table.EVALUATION)
  key = _score(evaluation)
  measured = _read(workdir, stage_table.BENCHMARK)
  rows: list[tuple[Cell, ...]] = []
  for name in ('dense', 'pruned', 'exported'):
    score, size = evaluation.get(name, {}), measured.get(name, {})
    speed = size.get('images_per_second', {}).get('median')
    rows.append(
      (
        Cell(name, name),
        cell(score.get(key), lambda value: f'{100 * value:.2f}'),
        cell(score.get('num_images'), str),
        cell(size.get('parameters'), si),
        cell(size.get('macs'), si),
        cell(size.get('weight_bytes'), lambda value: si(value, 'B')),
        cell(speed, lambda value: f'{value:.1f}'),
      )
    )
  return rows


def print_results(workdir: str | epath.Path) -> None:
  """The results table and where the page is, on stdout."""
  rows = html.texts(results_cells(workdir))
  console = print_table(results_columns(workdir), rows)
  selected = _read(workdir, stage_table.SELECTION)
  if selected:
    dropped = _dropped(workdir)
    if dropped:
      console.print(f'whole blocks {dropped} dropped')
    removed = [block for block in selected['removed'] if block not in dropped]
    if removed or not dropped:
      console.print(f'attention removed from blocks {removed}')
  console.print(
    f'report: {epath.Path(workdir) / stage_table.REPORT}', soft_wrap=True
  )


def print_benchmark(workdir: str | epath.Path) -> None:
  """The table of the stage `benchmark` on stdout, if it has run."""
  measured = _read(workdir, stage_table.BENCHMARK)
  if measured:
    speed_table.show(measured)


def _summary(workdir: epath.Path) -> list[str]:
  """Shows the main numbers, and how speed was measured."""
  evaluation = _read(workdir, stage_table.EVALUATION)
  measured = _read(workdir, stage_table.BENCHMARK)
  figures = []
  if {'dense', 'pruned'} <= set(evaluation):
    key = _score(evaluation)
    dense, pruned = (evaluation[k][key] for k in ('dense', 'pruned'))
    change = f'{100 * dense:.2f} → {100 * pruned:.2f}'
    figures.append((f'{_SCORES[key]}, dense → pruned', change))
  if measured:
    figures.append(('images per second', f'× {measured["speedup"]:.2f}'))
    for key, name in (('parameters', 'parameters'), ('macs', 'MACs')):
      share = measured['pruned'][key] / measured['dense'][key] - 1
      figures.append((name, f'{100 * share:+.1f} %'.replace('-', '−')))
  parts = [html.cards(figures)]
  columns = results_columns(workdir)
  parts.append(html.table(columns, results_cells(workdir), 'Results'))
  if measured:
    parts.append(
      f'<p class="soft">Speed: batch {escape(measured["batch_size"])}, '
      f'{escape(measured["dtype"])}, {escape(measured["device"])}, '
      f'{escape(measured["date"])}.</p>'
    )
  return parts


def _dropped(workdir: str | epath.Path) -> list[int]:
  """Returns the whole blocks that the pruned network leaves out."""
  config = _read(workdir, stage_table.CONFIG)
  if config.get('method') != 'linearize':
    return []
  fitted = _read(workdir, stage_table.LINEAR)
  return list(fitted.get('linearize', {}).get('dropped', ()))


def _selection(
  selected: dict[str, Any], dropped: Sequence[int], depth: int
) -> list[str]:
  """Shows which blocks lost their attention, and the scores."""
  removed = [block for block in selected['order'] if block not in dropped]
  blocks = ', '.join(map(str, removed)) or 'none'
  parts = [
    '<h2>Selection</h2>',
    html.blocks(depth, selected['removed'], dropped),
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
  """Loss and accuracy over the steps of a stage, with λ."""
  every = -(-len(rows) // _MOST_ROWS)
  drawn = [
    html.figure(
      plots.training_curves(rows, key),
      f'{key} on training batches, and λ (dashed), over the steps of {stage}.',
      ('step', key, 'λ'),
      [
        (str(row['step']), _number(row[key]), _number(row['lambda']))
        for row in rows[::every]
      ],
    )
    for key in ('loss', 'accuracy')
  ]
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
  ]


def _segmentation(workdir: epath.Path) -> list[str]:
  """Pictures of test images, and the scores per class."""
  evaluation = _read(workdir, stage_table.EVALUATION)
  if _score(evaluation) != 'mean_iou':
    return []
  models = [k for k in ('dense', 'pruned', 'exported') if k in evaluation]
  each = zip(*(evaluation[name]['iou'] for name in models), strict=True)
  rows = [
    (str(k), *(_number(value) for value in values))
    for k, values in enumerate(each)
  ]
  pictures = [
    html.picture(
      path.read_bytes(),
      f'Test image {int(path.stem)}: image, truth, dense, pruned.',
    )
    for path in sorted((workdir / stage_table.PICTURES).glob('*.png'))
  ]
  return [
    '<h2>Segmentation</h2>',
    *pictures,
    html.numbers(
      'Intersection over union of each class', ('class', *models), rows
    ),
  ]


def _sections(workdir: epath.Path) -> list[str]:
  parts = _summary(workdir) + _segmentation(workdir)
  measured = _read(workdir, stage_table.BENCHMARK)
  if measured:
    parts += _speed(measured)
  analysis = _read(workdir, stage_table.ANALYSIS)
  selected = _read(workdir, stage_table.SELECTION)
  if selected:
    profile = analysis.get('profile', {})
    known = [int(k) for row in selected['rounds'] for k in row['scores']]
    depth = len(profile.get('attention_entropy', ()))
    dropped = _dropped(workdir)
    last = max((*known, *selected['removed'], *dropped), default=-1)
    parts += _selection(selected, dropped, max(depth, last + 1))
  if analysis:
    parts += _analysis(analysis['profile'])
  if (workdir / stage_table.METRICS).exists():
    rows = read_metrics(workdir / stage_table.METRICS)
    for stage in ('pretrain', 'dilute'):
      curve = [r for r in rows if r['stage'] == stage and 'loss' in r]
      if curve:
        parts += _training(stage, curve)
  there = [name for name in _FILES if (workdir / name).exists()]
  if there:
    parts += ['<h2>Files of this run</h2>', html.links(there)]
  return parts


def write_report(workdir: str | epath.Path) -> epath.Path:
  """Writes `WORKDIR/report.html` from the results of the stages so far.

  Args:
    workdir: of a run, finished or not.

  Returns:
    The page: one file that loads nothing, for screens of any size, light or
    dark. Its links to the files of the run are relative.
  """
  workdir = epath.Path(workdir)
  config = _read(workdir, stage_table.CONFIG)
  variant = config.get('model', {}).get('variant', '')
  path = workdir / stage_table.REPORT
  temporary = workdir / '.report.html.part'
  temporary.write_text(
    html.page(f'λ-ViT report: {variant}', _sections(workdir))
  )
  temporary.replace(path)
  return path
