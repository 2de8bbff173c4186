"""`metrics.jsonl`: one JSON object per line, no step of a stage twice."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from lambda_vit_jax.training.trackers import Tracker


class MetricsWriter:
  """Appends to `WORKDIR/metrics.jsonl`, on the leading process only."""

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
    self._leader = leader
    self._trackers = tuple(trackers) if leader else ()

  def write(self, stage: str, step: int, **values: float) -> None:
    """Appends one line that starts with `stage` and `step`."""
    if not self._leader:
      return
    line = json.dumps({'stage': stage, 'step': step, **values})
    with self._path.open('a') as file:
      file.write(line + '\n')
    for tracker in self._trackers:
      tracker.write(step, values)

  def close(self) -> None:
    """Closes the trackers."""
    for tracker in self._trackers:
      tracker.close()

  def rewind(self, stage: str, step: int) -> None:
    """Drops lines of `stage` after `step`: a resumed run repeats them."""
    for tracker in self._trackers:
      tracker.begin(stage, step)
    if not self._leader or not self._path.exists():
      return
    rows = read_metrics(self._path)
    kept = [row for row in rows if row['stage'] != stage or row['step'] <= step]
    if len(kept) == len(rows) and self._path.read_text().endswith('\n'):
      return
    temporary = self._path.parent / '.metrics.jsonl.part'
    temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept))
    temporary.replace(self._path)


def read_metrics(path: str | epath.Path) -> list[dict[str, Any]]:
  """Reads all complete lines; skips the partial one of a killed process."""
  rows = []
  for line in epath.Path(path).read_text().splitlines():
    with contextlib.suppress(ValueError):
      rows.append(json.loads(line))
  return rows
