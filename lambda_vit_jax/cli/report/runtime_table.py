"""Show what `benchmark.json` has of other runtimes as a table."""

from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.cli.console import print_line, print_table
from lambda_vit_jax.cli.report.html import Cell, cell, texts
from lambda_vit_jax.cli.report.speed_table import over_dense, si

COLUMNS = (
  'runtime',
  'computes in',
  'model',
  'images/s',
  'min to max',
  'times dense',
  'peak memory',
  'top-1 %',
  'largest difference',
)


def cells(measured: Mapping[str, Any]) -> list[tuple[Cell, ...]]:
  """A row per runtime, dtype and model, in the order of `COLUMNS`.

  Args:
    measured: the contents of `benchmark.json`. A missing figure is a dash.
  """
  return [
    _row(runtime, dtype, model, row)
    for runtime, dtypes in measured.get('runtimes', {}).items()
    for dtype, models in dtypes.items()
    for model, row in models.items()
  ]


def _row(
  runtime: str, dtype: str, model: str, row: Mapping[str, Any]
) -> tuple[Cell, ...]:
  rates = row['images_per_second']
  return (
    Cell(runtime, runtime),
    Cell(dtype, dtype),
    Cell(model, model),
    cell(rates['median'], lambda value: f'{value:.1f}'),
    Cell(f'{rates["min"]:.1f} to {rates["max"]:.1f}', rates['min']),
    over_dense(model, row),
    cell(row.get('peak_bytes'), lambda value: si(value, 'B')),
    cell(row.get('top1'), lambda value: f'{100 * value:.2f}'),
    cell(row.get('largest_difference'), lambda value: f'{value:.1e}'),
  )


def conditions(measured: Mapping[str, Any]) -> str:
  """Returns one line on how the figures were measured."""
  images = {
    row['num_images']
    for dtypes in measured['runtimes'].values()
    for models in dtypes.values()
    for row in models.values()
    if 'num_images' in row
  }
  parts = [
    measured['device'],
    f'{measured.get("threads", "?")} threads each',
    f'batch {measured["batch_size"]}',
    *(f'top-1 of the first {number} test images' for number in sorted(images)),
    'differences of logits from the model in float32',
    measured['date'],
    ' '.join(f'{k} {v}' for k, v in measured.get('versions', {}).items()),
  ]
  return ', '.join(part for part in parts if part)


def show(measured: Mapping[str, Any]) -> None:
  """Prints the table and its conditions, if there are any rows."""
  rows = cells(measured)
  if rows:
    print_table(COLUMNS, texts(rows))
    print_line(conditions(measured))
