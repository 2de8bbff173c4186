"""Build `report.html` and the results table from the files of a workdir."""

from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.console import print_line, print_table
from lambda_vit_jax.cli.report import (
  changes,
  compression,
  done,
  html,
  layers,
  lead,
  runtime_table,
  selection,
  speed_table,
  tables,
  training,
)
from lambda_vit_jax.cli.report.html import escape
from lambda_vit_jax.cli.report.results import Results, read_results
from lambda_vit_jax.core import files

# Files that the page links to, where they are there.
_FILES = (
  stage_table.CONFIG,
  stage_table.METRICS,
  stage_table.JOURNAL,
  *(
    name
    for stage, spec in stage_table.STAGES.items()
    for name in spec.writes
    if stage != 'report' and not name.endswith('/')
  ),
)


def print_results(workdir: str | epath.Path) -> None:
  """The results table and where the page is, on stdout."""
  results = read_results(workdir)
  rows = html.texts(tables.results_cells(results))
  print_table(tables.results_columns(results), rows)
  for line in tables.comparison(results):
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
  """The main figures in words, then all of them."""
  measured = results.benchmark
  columns = tables.results_columns(results)
  parts = [
    html.lead(lead.sentences(results)),
    '<h2>Results</h2>',
    html.table(columns, tables.results_cells(results), 'Results'),
    *(html.soft(f'{line}.') for line in tables.comparison(results)),
  ]
  if measured:
    parts.append(
      html.soft(
        f'Speed: batch {measured["batch_size"]}, {measured["dtype"]}, '
        f'{measured["device"]}, {measured["date"]}.'
      )
    )
  return parts


def _problems(lines: Sequence[str]) -> list[str]:
  """Says which files are left out."""
  if not lines:
    return []
  items = ''.join(f'<li>{escape(line)}</li>' for line in lines)
  return ['<h2>Left out</h2>', f'<ul class="left-out">{items}</ul>']


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


def _sections(results: Results) -> list[str]:
  parts = done.section(results)
  parts += _summary(results) + _problems(results.problems)
  parts += selection.the_network(results)
  if results.selection:
    parts += selection.section(results)
  if results.compression is not None:
    parts += compression.section(results.compression)
  parts += changes.section(results)
  if results.benchmark:
    parts += _speed(results.benchmark)
  parts += layers.section(results)
  parts += training.section(results)
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
