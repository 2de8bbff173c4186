"""Stage `evaluate`: accuracy of the dense, pruned and exported model."""

from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.stages import evaluate_masks
from lambda_vit_jax.cli.stages.export import exported_predict
from lambda_vit_jax.cli.stages.finished import pruned_model
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.evaluation import accuracy


def evaluate_all(run: Run) -> None:
  """Evaluates the dense, pruned and exported model on every test image."""
  total = len(run.dataset.test)
  results: dict[str, Mapping[str, Any]] = {}
  models = {
    'dense': run.load('pretrain'),
    'pruned': pruned_model(run),
  }
  with run.reporter.bar('evaluate', 3 * total) as bar:
    if run.settings.segments:
      found = evaluate_masks.evaluate(
        run, models, exported_predict(run), bar.advance
      )
      run.write_json(stage_table.EVALUATION, found)
      return
    for name, model in models.items():
      results[name] = accuracy.evaluate_model(
        model,
        run.eval_batches(model.preprocessing),
        run.mesh,
        bar.advance,
      )
    results['exported'] = accuracy.evaluate_program(
      exported_predict(run), run.eval_batches(model.preprocessing), bar.advance
    )
  run.write_json(stage_table.EVALUATION, results)
