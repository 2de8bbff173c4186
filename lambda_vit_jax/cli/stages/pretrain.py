"""Stage `pretrain`: load or train the dense model."""

import dataclasses

from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli import task
from lambda_vit_jax.cli.stages.training_job import train
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.data import first_look
from lambda_vit_jax.models.edits import dequantize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Phase


def starting_model(run: Run) -> Model:
  """Returns the untrained dense model: `init` weights, else random ones."""
  settings = run.settings
  if not settings.init:
    model = run.fresh_model()
  else:
    model = load.load_pretrained(
      settings.init,
      variant=settings.model.variant,
      num_classes=None if settings.segments else run.dataset.num_classes,
      image_size=settings.model.image_size,
    )
    # Training changes weights by less than int8 resolves.
    model = dequantize(model)
    # Only the pruned model merges tokens, and as this config asks.
    model = model.replace(module=model.module.clone(merge=()))
    model = task.with_outputs(settings, model, run.dataset)
  ratio = settings.model.crop_ratio
  if ratio is None:
    return model
  return model.replace(
    preprocessing=dataclasses.replace(model.preprocessing, crop_ratio=ratio)
  )


def pretrain_steps(run: Run) -> int:
  """Returns the number of steps of the stage `pretrain`."""
  return run.settings.pretrain.steps.steps(run.steps_per_epoch)


def pretrain(run: Run) -> None:
  """Trains the dense model, or takes the `init` weights as they are."""
  steps = pretrain_steps(run)
  model = run.with_options(starting_model(run))
  _look_at_data(run, model)
  # Refuses an impossible merging before hours of training.
  run.merge_schedule(model.module, None)
  phases = (Phase(model.module, until=steps),)
  train(run, 'pretrain', model, phases, Dilution())


def _look_at_data(run: Run, model: Model) -> None:
  """Says what is read and how, before anything is made of it."""
  run.reporter.say(f'pretrain: {run.dataset.summary()}')
  images = first_look.describe_images(run.dataset.train, model.preprocessing)
  run.reporter.say(f'pretrain: {images}')
  if run.settings.segments:
    rules = task.mask_rules(run.settings.segment, run.dataset.num_classes)
    warning = first_look.check_classes(run.dataset, rules)
    if warning is not None:
      run.reporter.warn(warning)
