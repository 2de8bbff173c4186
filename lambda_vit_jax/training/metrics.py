"""`metrics.jsonl`: one JSON object per line, no step of a stage twice."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import parse_json
from lambda_vit_jax.core.growing_file import GrowingFile
from lambda_vit_jax.core.schema import Number, Object, Text
from lambda_vit_jax.training.trackers import Tracker

_REAL = Number(-1e30, 1e30)

ROW = Object(
  {'stage': Text(100), 'step': Number(0, 1 << 53, whole=True)},
  {
    'loss': _REAL,
    'accuracy': _REAL,
    'lambda': Number(0, 1),
    'holdout_loss': _REAL,
    'holdout_accuracy': _REAL,
  },
)
"""Of a line."""


class MetricsWriter:
  """Adds to `WORKDIR/metrics.jsonl`, on the leading process only.

  On object storage lines are written every few seconds, and by `save`.
  """

  def __init__(
    self,
    workdir: str | epath.Path,
    leader: bool = True,
    trackers: Sequence[Tracker] = (),
  ):
    """Opens no file yet.

    Args:
      workdir: of the run.
      leader: whether this process writes.
      trackers: receive the same values.
    """
    self._path = epath.Path(workdir) / 'metrics.jsonl'
    self._file = GrowingFile(self._path)
    self._leader = leader
    self._trackers = tuple(trackers) if leader else ()

  def write(self, stage: str, step: int, **values: float) -> None:
    """Appends one line that starts with `stage` and `step`."""
    if not self._leader:
      return
    line = json.dumps({'stage': stage, 'step': step, **values})
    self._file.write(f'{line}\n'.encode())
    self._file.flush()
    for tracker in self._trackers:
      tracker.write(step, values)

  def save(self) -> None:
    """Writes every line, before a checkpoint after which none is repeated."""
    self._file.save()
    for tracker in self._trackers:
      tracker.save()

  def close(self) -> None:
    """Writes every line and closes the trackers."""
    self._file.save()
    for tracker in self._trackers:
      tracker.close()

  def rewind(self, stage: str, step: int) -> None:
    """Drops lines of `stage` after `step`: a resumed run repeats them."""
    for tracker in self._trackers:
      tracker.begin(stage, step)
    self._file.save()
    if not self._leader or not self._path.exists():
      return
    rows = read_metrics(self._path)
    kept = [row for row in rows if row['stage'] != stage or row['step'] <= step]
    if len(kept) == len(rows) and self._path.read_bytes().endswith(b'\n'):
      return
    text = ''.join(json.dumps(row) + '\n' for row in kept)
    files.write_text(self._path, text)
    self._file = GrowingFile(self._path)


def read_metrics(path: str | epath.Path) -> list[dict[str, Any]]:
  """Reads all complete lines, each as `ROW` says; skips others."""
  return read_lines(path)[0]


def read_lines(path: str | epath.Path) -> tuple[list[dict[str, Any]], int]:
  """Reads a `metrics.jsonl`.

  Returns:
    The rows, and how many lines are damaged. What follows the last newline, as
    a killed process leaves it, is neither.
  """
  *lines, rest = epath.Path(path).read_bytes().split(b'\n')
  rows: list[dict[str, Any]] = []
  damaged = 0
  for line in filter(bytes.strip, lines):
    try:
      rows.append(parse_json(line, str(path), ROW))
    except CheckpointError:
      damaged += 1
  with contextlib.suppress(CheckpointError):
    rows.append(parse_json(rest, str(path), ROW))
  return rows, damaged
