"""`stages.json`: how long each stage took, when, where and with what."""

import datetime

from lambda_vit_jax.cli import result_files, stage_table
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.evaluation import benchmark


def note(run: Run, stage: str, seconds: float) -> None:
  """Writes down that a stage has finished; leading process only.

  Args:
    run: the workdir.
    stage: its name.
    seconds: that the command took which finished it; earlier ones that were
      interrupted are not counted.
  """
  try:
    found = result_files.read(run.workdir, stage_table.JOURNAL) or {}
  except CheckpointError:
    # No result depends on it: a damaged one is not worth a failed run.
    found = {}
  today = datetime.datetime.now(datetime.UTC).date()
  found[stage] = {
    'seconds': round(seconds, 3),
    'date': today.isoformat(),
    'device': benchmark.describe_device(),
    'versions': benchmark.versions(),
  }
  run.write_json(stage_table.JOURNAL, found)
