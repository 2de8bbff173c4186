"""A figure that becomes an SVG file, the same bytes for the same content."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

DATA_SETS = {
  'caltech101': 'Caltech-101',
  'cifar10': 'CIFAR-10',
  'cifar10_fine_tuned': 'CIFAR-10, fine-tuned',
}


@contextlib.contextmanager
def sheet(
  path: pathlib.Path,
  description: str,
  rows: int,
  columns: int,
  inches: tuple[float, float],
  **options: Any,
) -> Iterator[Any]:
  """Yields matplotlib's axes, `[rows, columns]`, and writes the file at the end.

  Args:
    path: of the file; its name salts the ids in it.
    description: in the file, for those who do not see it.
    rows: of panels.
    columns: of panels.
    inches: width and height.
    **options: of `pyplot.subplots`.
  """
  import matplotlib

  matplotlib.use('svg')
  from matplotlib import pyplot

  with pyplot.rc_context(
    {'svg.hashsalt': path.stem, 'svg.fonttype': 'none', 'font.size': 10}
  ):
    figure, axes = pyplot.subplots(
      rows, columns, figsize=inches, squeeze=False, **options
    )
    yield axes
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={'Date': None, 'Description': description})
    pyplot.close(figure)
