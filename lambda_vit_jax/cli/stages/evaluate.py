"""Stage `evaluate`: accuracy of the dense, pruned and exported models."""

import io
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lambda_vit_jax.cli import stage_table
from lambda_vit_jax.cli.stages import evaluate_masks
from lambda_vit_jax.cli.stages.export import exported_predict
from lambda_vit_jax.cli.stages.finished import compared_models
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.data import decode, masks
from lambda_vit_jax.evaluation import accuracy, changes
from lambda_vit_jax.models.model import Model

# Longest side of a picture of an image that two models take differently.
_PICTURE_SIDE = 128


def evaluate_all(run: Run) -> None:
  """Evaluates every model of `compared_models`, and the export, on all images."""
  found = compared_models(run)
  models = {name: model for name, (model, _) in found.items()}
  exported = exported_predict(run)
  results: dict[str, Any] = {}
  if run.leader and run.path(stage_table.PICTURES).exists():
    # Of an earlier evaluation, which the report would show. Other processes
    # write theirs after an exchange with this one.
    run.path(stage_table.PICTURES).rmtree()
  total = (len(models) + 1) * len(run.dataset.test)
  with run.reporter.bar('evaluate', total) as bar:
    if run.settings.segments:
      results = evaluate_masks.evaluate(run, models, exported, bar.advance)
    else:
      results = _classify(run, models, bar.advance)
      batches = run.eval_batches(models['pruned'].preprocessing)
      results['exported'] = accuracy.evaluate_program(
        exported, batches, bar.advance
      )
  steps = {name: number for name, (_, number) in found.items()}
  steps['exported'] = steps['pruned']
  rows = {name: row | {'steps': steps[name]} for name, row in results.items()}
  run.write_json(stage_table.EVALUATION, rows)


def _classify(
  run: Run, models: Mapping[str, Model], advance: Callable[[int], None]
) -> dict[str, Any]:
  """Accuracy of each model, and what changes from `dense` to `pruned`."""
  results: dict[str, Any] = {}
  answers: dict[str, changes.Answers] = {}
  for name, model in models.items():
    answers[name] = changes.Answers()
    results[name] = accuracy.evaluate_model(
      model,
      run.eval_batches(model.preprocessing),
      run.mesh,
      advance,
      answers[name],
    )
  others: dict[str, changes.Answers] = {
    name: answers[name] for name in changes.COMPARED if name in answers
  }
  results['pruned'] |= changes.describe(
    answers['pruned'], others, run.dataset.class_names
  )
  if run.leader:
    differing = results['pruned'].get('changed', {}).get('images', ())
    _write_pictures(run, [row['index'] for row in differing])
  return results


def _write_pictures(run: Run, indices: Iterable[int]) -> None:
  """Test images, shrunk where they are large."""
  for index in indices:
    record = run.dataset.test[index]
    image = decode.load(decode.open_image(record['image']), 3)
    scale = min(1.0, _PICTURE_SIDE / max(image.size))
    if scale < 1.0:
      image = image.resize(masks.scaled(image.size, scale))
    file = io.BytesIO()
    image.save(file, 'PNG')
    folder = run.path(stage_table.PICTURES)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{index:04d}.png').write_bytes(file.getvalue())
