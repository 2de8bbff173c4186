"""Stage `evaluate`: accuracy of the dense, pruned and exported models."""

from typing import Any

from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.stages import evaluate_masks
from lambda_vit_jax.cli.stages.export import exported_predict
from lambda_vit_jax.cli.stages.finished import compared_models
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.evaluation import accuracy


def evaluate_all(run: Run) -> None:
  """Evaluates every model of `compared_models`, and the export, on all images."""
  found = compared_models(run)
  models = {name: model for name, (model, _) in found.items()}
  exported = exported_predict(run)
  results: dict[str, Any] = {}
  total = (len(models) + 1) * len(run.dataset.test)
  with run.reporter.bar('evaluate', total) as bar:
    if run.settings.segments:
      results = evaluate_masks.evaluate(run, models, exported, bar.advance)
    else:
      for name, model in models.items():
        batches = run.eval_batches(model.preprocessing)
        results[name] = accuracy.evaluate_model(
          model, batches, run.mesh, bar.advance
        )
      batches = run.eval_batches(models['pruned'].preprocessing)
      results['exported'] = accuracy.evaluate_program(
        exported, batches, bar.advance
      )
  steps = {name: number for name, (_, number) in found.items()}
  steps['exported'] = steps['pruned']
  rows = {name: row | {'steps': steps[name]} for name, row in results.items()}
  run.write_json(stage_table.EVALUATION, rows)
