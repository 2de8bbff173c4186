"""Stage `evaluate`: accuracy of the dense, pruned and exported model."""

from typing import Any

from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.stages import evaluate_masks
from lambda_vit_jax.cli.stages.export import exported_predict
from lambda_vit_jax.cli.stages.finished import pruned_model
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.evaluation import accuracy


def evaluate_all(run: Run) -> None:
  """Evaluates the dense, pruned and exported model on every test image."""
  models = {'dense': run.load('pretrain'), 'pruned': pruned_model(run)}
  exported = exported_predict(run)
  results: dict[str, Any] = {}
  with run.reporter.bar('evaluate', 3 * len(run.dataset.test)) as bar:
    if run.settings.segments:
      results = evaluate_masks.evaluate(run, models, exported, bar.advance)
    else:
      for name, model in models.items():
        batches = run.eval_batches(model.preprocessing)
        results[name] = accuracy.evaluate_model(
          model, batches, run.mesh, bar.advance
        )
      batches = run.eval_batches(model.preprocessing)
      results['exported'] = accuracy.evaluate_program(
        exported, batches, bar.advance
      )
  run.write_json(stage_table.EVALUATION, results)
