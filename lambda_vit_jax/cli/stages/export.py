"""Stage `export`: write the pruned model in the formats of the config."""

from collections.abc import Callable
from typing import Any

from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli.stages.finished import pruned_model
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.exporters import export, formats, publish
from lambda_vit_jax.models.model import Model


def export_model(run: Run) -> None:
  """Writes `export/`, each format checked against the model."""
  if not run.leader:
    return
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
    run.path('export'),
    check_images=batch['image'][:number],
    **run.settings.export.options,
  )
  for line in results.get('warnings', ()):
    run.reporter.warn(line)
  if run.settings.export.hub:
    publish.publish(
      model, run.path('export'), run.settings.export.hub, results, run.workdir
    )


def exported_predict(run: Run) -> Model | Callable[[Any], Any]:
  """Loads `export/model.stablehlo`, else the model in `export/`."""
  program = run.path('export') / 'model.stablehlo'
  if program.exists():
    load.check_exported(run.path('export'), 'model.stablehlo')
    return formats.read_stablehlo(program)
  return load.load_export(run.path('export'))
