"""Show `benchmark.json` as a table, on a terminal and on the report page."""

from collections.abc import Mapping, Sequence
from typing import Any

from lambda_vit_jax.cli.console import print_line, print_table
from lambda_vit_jax.cli.report.html import Cell, cell, texts

COLUMNS = (
  'model',
  'batch',
  'images/s',
  'images/s, 95%',
  'times dense',
  'GFLOP/s',
  'of matrix product',
  'peak memory',
  'compile s',
)


def si(value: float, unit: str = '') -> str:
  """A number with a prefix: `4.60 G`."""
  for factor, prefix in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= factor:
      return f'{value / factor:.2f} {prefix}{unit}'
  return f'{value:.0f} {unit}'.strip()


def cells(measured: Mapping[str, Any]) -> list[tuple[Cell, ...]]:
  """A row per model and batch size, in the order of `COLUMNS`.

  Args:
    measured: the contents of `benchmark.json`. A missing figure is a dash.
  """
  by_size = {row['batch_size']: row for row in measured.get('sweep', ())}
  by_size[measured['batch_size']] = measured
  return [
    _row(name, size, by_size[size][name])
    for size in sorted(by_size)
    for name in ('dense', 'pruned', 'exported')
    if name in by_size[size]
  ]


def interval(ends: Sequence[float], digits: int = 2) -> str:
  """`[1.02, 1.31]`."""
  low, high = (f'{end:.{digits}f}' for end in ends)
  return f'[{low}, {high}]'


def told_apart(row: Mapping[str, Any]) -> bool:
  """Whether a speedup's interval leaves out 1; true where none was measured."""
  low, high = row.get('speedup_interval', (0.0, 0.0))
  return not low <= 1.0 <= high


def speedup(row: Mapping[str, Any]) -> str:
  """A speedup with its interval: `1.21 [1.18, 1.25]`."""
  text = f'{row["speedup"]:.2f}'
  if 'speedup_interval' in row:
    text += f' {interval(row["speedup_interval"])}'
  return text if told_apart(row) else f'{text}, not told apart'


def over_dense(name: str, row: Mapping[str, Any]) -> Cell:
  """How many times as fast as `dense` a model is."""
  ratio = None if name == 'dense' else row.get('speedup')
  return cell(ratio, lambda _: speedup(row))


def _row(name: str, size: int, row: Mapping[str, Any]) -> tuple[Cell, ...]:
  speed = row.get('images_per_second', {}).get('median')
  ends = row.get('images_per_second_interval')
  return (
    Cell(name, name),
    Cell(str(size), size),
    cell(speed, lambda value: f'{value:.1f}'),
    Cell('–') if ends is None else Cell(interval(ends, 1), ends[0]),
    over_dense(name, row),
    cell(row.get('flops_per_second'), lambda value: f'{value / 1e9:.2f}'),
    cell(row.get('fraction_of_matmul'), lambda value: f'{100 * value:.1f} %'),
    cell(row.get('peak_bytes'), lambda value: si(value, 'B')),
    cell(row.get('compile_seconds'), lambda value: f'{value:.2f}'),
  )


def conditions(measured: Mapping[str, Any]) -> str:
  """Returns one line on how the figures were measured."""
  parts = [
    measured['device'],
    measured['dtype'],
    f'{measured["attention_kernel"]} attention'
    if 'attention_kernel' in measured
    else '',
    f'{measured["rounds"]} rounds in turn' if 'rounds' in measured else '',
    measured['date'],
    ' '.join(
      f'{name} {measured["versions"][name]}'
      for name in ('jax', 'jaxlib')
      if name in measured.get('versions', {})
    ),
  ]
  return ', '.join(part for part in parts if part)


def show(measured: Mapping[str, Any]) -> None:
  """Prints the table and its conditions."""
  print_table(COLUMNS, texts(cells(measured)))
  print_line(conditions(measured))
  print_line(
    f'pruned over dense at batch {measured["batch_size"]}: '
    f'{speedup(measured)} times the images per second'
  )
