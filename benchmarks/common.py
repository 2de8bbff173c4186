"""Shared by the scripts here: open runs, summarise rounds, keep results.

Nothing heavy is imported at the head: some scripts choose their cores before
JAX starts.
"""

import argparse
import datetime
import json
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / 'docs' / 'benchmarks'


def provenance() -> dict[str, Any]:
  """When and on what a result was measured: `date`, `device`, `versions`."""
  from lambda_vit_jax.evaluation import benchmark

  return {
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'device': benchmark.describe_device(),
    'versions': benchmark.versions(),
  }


def spread(values: Iterable[float]) -> dict[str, float]:
  """Median and extremes of the rounds."""
  values = [float(value) for value in values]
  return {
    'min': min(values),
    'median': statistics.median(values),
    'max': max(values),
  }


def read(path: pathlib.Path) -> dict[str, Any]:
  """The results written so far; empty where there are none."""
  return json.loads(path.read_text()) if path.exists() else {}


def write(path: pathlib.Path, results: Any) -> None:
  """Writes results as JSON."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(results, indent=2) + '\n')


def write_entry(path: pathlib.Path, name: str, result: Any) -> None:
  """Replaces one entry of a file of results and leaves the others."""
  write(path, read(path) | {name: result})


def open_run(config: str, workdir: str, *arguments: str) -> Any:
  """The `Run` of a workdir, as the command line would open it.

  Args:
    config: file of the config, with its argument after a colon if any.
    workdir: made if it does not exist.
    *arguments: overrides such as `--config.seed=1`.
  """
  from lambda_vit_jax.cli import flags
  from lambda_vit_jax.cli.workdir import Run
  from lambda_vit_jax.runtime.progress import Reporter

  _, parsed, _ = flags.parse(
    ['run', f'--config={config}', f'--workdir={workdir}', *arguments]
  )
  return Run(parsed.to_dict(), workdir, Reporter())


def planned(model: Any, layers: Iterable[int]) -> Any:
  """`model` without some attention layers, and with MLPs of 5/8 of their width.

  Some 1.6 times fewer operations of a DeiT without 5 of 12. Which neurons go is
  of no matter to its speed.
  """
  from lambda_vit_jax.models.edits import narrow_mlps, prune

  kept = {
    block: range(5 * width // 8) for block, width in enumerate(model.mlp_dims)
  }
  return narrow_mlps(prune(model, layers), kept)


def named_run(description: str) -> tuple[str, Any]:
  """The name of the result and the run, from the command line.

  Flags other than `--name`, `--config` and `--workdir` override the config.
  """
  parser = argparse.ArgumentParser(description=description.splitlines()[0])
  parser.add_argument('--name', required=True)
  parser.add_argument('--config', required=True)
  parser.add_argument('--workdir', required=True)
  options, overrides = parser.parse_known_args()
  return options.name, open_run(options.config, options.workdir, *overrides)
