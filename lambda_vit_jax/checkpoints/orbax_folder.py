"""What Orbax logs, and raises, when a folder of checkpoints is opened."""

import contextlib
import logging
from collections.abc import Iterator

from etils import epath

from lambda_vit_jax.core.files import read_json
from lambda_vit_jax.core.schema import Number, Object

_SCORES = Object({'accuracy': Number()})
"""Of a step's item `metrics`, in steps that were evaluated."""


def check_scores(directory: epath.Path) -> None:
  """Refuses a step whose file of scores is damaged, and names the file."""
  for path in sorted(directory.glob('*/metrics/metrics')):
    read_json(
      path,
      _SCORES,
      f'remove the folder {path.parent}, which holds nothing else',
    )


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
  """Leaves out what Orbax logs whenever a folder is opened to be read."""

  def is_news(record: logging.LogRecord) -> bool:
    return 'directory is read only' not in str(record.msg)

  # Also the logger of absl is reached by its name.
  logger = logging.getLogger('absl')
  logger.addFilter(is_news)
  try:
    yield
  finally:
    logger.removeFilter(is_news)
