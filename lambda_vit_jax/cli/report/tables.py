"""The results table: a row per model, on a terminal and on the page."""

from lambda_vit_jax.cli.report import speed_table
from lambda_vit_jax.cli.report.html import Cell, cell
from lambda_vit_jax.cli.report.results import Results
from lambda_vit_jax.cli.report.speed_table import si

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


def head(results: Results) -> str:
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
  return ('model', head(results), *_FIGURES)


def results_cells(results: Results) -> list[tuple[Cell, ...]]:
  """Rows of the results table, in the order of `results_columns`.

  A figure that no stage has measured yet is a dash.
  """
  start = 'init' if results.config.get('init') else ''
  rows: list[tuple[Cell, ...]] = []
  for name in models(results):
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


def models(results: Results) -> list[str]:
  """Names of the rows."""
  return [
    name for name in _ROWS if name not in _EXTRA or name in results.evaluation
  ]


def _steps(number: float, start: str) -> str:
  """Training steps, after those that the weights `start` have seen."""
  return ' + '.join(filter(None, (start, str(number) if number else ''))) or '0'


def comparison(results: Results) -> list[str]:
  """Says what the rows are, and whether they have seen as many steps."""
  rows = results.evaluation
  lines = [f'{name}: {what}' for name, what in _EXTRA.items() if name in rows]
  steps = [rows.get(k, {}).get('steps', 0) for k in ('dense', 'pruned')]
  if 'baseline' not in rows and steps[1] > steps[0]:
    more = steps[1] - steps[0]
    lines.append(f'pruned was trained {more} steps more than dense')
  return lines
