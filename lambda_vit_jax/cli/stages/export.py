"""Stage `export`: write the pruned model in the formats of the config."""

from collections.abc import Callable
from typing import Any

from etils import epath

from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.stages.finished import pruned_model
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.exporters import export, formats, publish
from lambda_vit_jax.models.model import Model


def export_model(run: Run) -> None:
  """Writes `export/`; with `export.hub` also its card, and uploads it.

  An export that is there already is only published: the card quotes what
  `evaluate` and `benchmark` have found since.
  """
  if not run.leader:
    return
  folder, repository = run.path('export'), run.settings.export.hub
  if not run.path(stage_table.EXPORT).exists():
    _write(run, folder)
  if repository:
    model = load.load_export(folder)
    report = load.read_description(run.path(stage_table.EXPORT))
    publish.publish(model, folder, repository, report, run.workdir)


def is_finished(run: Run) -> bool:
  """Whether the export is there, and is not to be published."""
  exported = run.path(stage_table.EXPORT).exists()
  return exported and not run.settings.export.hub


def _write(run: Run, folder: epath.Path) -> None:
  """Writes every format, each checked against the model."""
  model = pruned_model(run)
  # Logits per pixel take more memory.
  number = 2 if run.settings.segments else 8
  if len(run.holdout_indices(number)):
    batches = run.holdout_batches(model.preprocessing, number, alone=True)
  else:
    # Nothing is held out; programs are only compared on these.
    batches = run.eval_batches(model.preprocessing)
  batch = next(batches)
  results = export.export(
    model,
    folder,
    check_images=batch['image'][:number],
    **run.settings.export.options,
  )
  for line in results.get('warnings', ()):
    run.reporter.warn(line)


def exported_predict(run: Run) -> Model | Callable[[Any], Any]:
  """Loads `export/model.stablehlo`, else the model in `export/`."""
  program = run.path('export') / 'model.stablehlo'
  if program.exists():
    load.check_exported(run.path('export'), 'model.stablehlo')
    return formats.read_stablehlo(program)
  return load.load_export(run.path('export'))
