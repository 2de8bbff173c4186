"""Report on a finished stage: JSON for programs, a hint for people."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from lambda_vit_jax.cli import result_files, stage_table
from lambda_vit_jax.cli.report import build
from lambda_vit_jax.cli.stages import registry
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.training.metrics import read_metrics

# Stages whose results `run --json` prints.
_OF_A_RUN = ('select', 'evaluate', 'benchmark')


def result_of(run: Run, stage: str) -> Any:
  """Returns a stage's JSON file; after training, its last metrics."""
  if stage not in registry.STAGES:
    return None
  spec = registry.STAGES[stage].spec
  if spec.trains:
    path = run.path(stage_table.METRICS)
    rows = read_metrics(path) if path.exists() else []
    return next((r for r in reversed(rows) if r.get('stage') == stage), None)
  if spec.result not in result_files.SCHEMAS:
    return None
  found = result_files.read(run.workdir, spec.result)
  rounds = (found or {}).get('rounds', ())
  if spec.result == stage_table.SELECTION and isinstance(rounds, list):
    for row in rounds:
      # A bit per resample, for a resumed search alone; `agreement` is its sum.
      row.pop('agreeing', None)
  return found


def to_json(
  run: Run, stage: str, done: Sequence[tuple[str, bool, float]]
) -> dict[str, Any]:
  """Returns what `--json` prints.

  Args:
    run: the workdir.
    stage: as on the command line; `run` for all.
    done: per stage its name, whether it ran, and its seconds.

  Returns:
    `stage`, `workdir`, `stages` (`stage`, `status`: `done` or `already done`,
    `seconds`), `result` (the content of the stage's file; for `run` one entry
    for each of `select`, `evaluate`, `benchmark`), `report` (a path, or null)
    and `next` (the first unfinished stage after this one, or null).
  """
  page = run.path(stage_table.REPORT)
  return {
    'stage': stage,
    'workdir': str(run.workdir),
    'stages': [
      {
        'stage': name,
        'status': 'done' if ran else 'already done',
        'seconds': round(seconds, 3),
      }
      for name, ran, seconds in done
    ],
    'result': (
      {name: result_of(run, name) for name in _OF_A_RUN}
      if stage == 'run'
      else result_of(run, stage)
    ),
    'report': str(page) if page.exists() else None,
    'next': next_stage(run, stage),
  }


def show(
  run: Run,
  stage: str,
  done: Sequence[tuple[str, bool, float]],
  argv: Sequence[str],
  *,
  as_json: bool,
) -> None:
  """Prints what a finished command has to show.

  Args:
    run: the workdir.
    stage: as on the command line; `run` for all.
    done: see `to_json`.
    argv: the command line, for the hint on the next one.
    as_json: one JSON object instead of tables and hints.
  """
  if as_json:
    print(json.dumps(to_json(run, stage, done)))
    return
  if stage in ('run', 'report'):
    build.print_results(run.workdir)
    return
  if stage == 'benchmark':
    build.print_benchmark(run.workdir)
  following = next_stage(run, stage)
  if following:
    # Not shown with --quiet.
    line = shlex.join(['lambda-vit', following, *argv[1:]])
    run.reporter.say(f'next: {line}')


def next_stage(run: Run, stage: str) -> str | None:
  """Returns the first unfinished stage after one; None after the last.

  Earlier ones that were left out, such as `analyze`, are not named again.
  """
  if stage in ('run', 'report'):
    return None
  order = list(registry.STAGES)
  later = order[order.index(stage) + 1 :]
  try:
    return next(
      name
      for name in registry.needed(run)
      if name in later and not registry.STAGES[name].finished(run)
    )
  except LambdaVitError:
    return None
