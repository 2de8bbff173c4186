"""Format the cells of the tables and the line under each."""

from collections.abc import Iterable
from typing import Any


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """A Markdown table; the first column left-aligned, the others right."""
  header = list(header)
  lines = [
    '| ' + ' | '.join(header) + ' |',
    '|---' + '|---:' * (len(header) - 1) + '|',
  ]
  lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
  return '\n'.join(lines)


def origin(name: str, script: str, found: dict[str, Any]) -> str:
  """The line under a table: script, figures, hardware, date."""
  hardware = found.get('device') or found.get('processor')
  if hardware is None:
    place = found['hardware']
    hardware = f'{place["cores"]} x {place["processor"]}'
  return (
    f'[`{script}`](../benchmarks/{script}), '
    f'[`{name}.json`](benchmarks/{name}.json); {hardware}; {found["date"]}.'
  )


def percent(value: float, digits: int = 2) -> str:
  """A fraction as a percentage."""
  return f'{100 * value:.{digits}f}'


def span(value: dict[str, float], digits: int = 2) -> str:
  """A median with its extremes."""
  return (
    f'{value["median"]:.{digits}f} '
    f'[{value["min"]:.{digits}f}, {value["max"]:.{digits}f}]'
  )


def layers(blocks: Iterable[int]) -> str:
  """Block indices; a dash for none."""
  return ' '.join(map(str, blocks)) or '–'
