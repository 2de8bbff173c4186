"""Stage `pretrain`: load or train the dense model."""

import dataclasses

from lambda_vit_jax.checkpoints import load
from lambda_vit_jax.cli import task
from lambda_vit_jax.cli.stages.training_job import train
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.data import first_look
from lambda_vit_jax.models.build import is_head
from lambda_vit_jax.models.edits import dequantize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Phase


def starting_model(run: Run) -> Model:
  """Returns the untrained dense model: `init` weights, else random ones.

  Raises:
    UsageError: all of it or its head is random, and no step would train it.
  """
  settings = run.settings
  if not settings.init:
    if not pretrain_steps(run):
      raise UsageError(
        "config.init='' and config.pretrain.steps=0: the dense model would "
        'stay random; set config.pretrain.steps (30ep, say) or config.init'
      )
    model = run.fresh_model()
  else:
    found = load.load_pretrained(
      settings.init,
      variant=settings.model.variant,
      image_size=settings.model.image_size,
    )
    # Training changes weights by less than int8 resolves.
    found = dequantize(found)
    # Only the pruned model merges tokens, and as this config asks.
    found = found.replace(module=found.module.clone(merge=()))
    model = task.with_outputs(settings, found, run.dataset)
    _check_head(run, found, model)
  ratio = settings.model.crop_ratio
  if ratio is None:
    return model
  return model.replace(
    preprocessing=dataclasses.replace(model.preprocessing, crop_ratio=ratio)
  )


def _check_head(run: Run, found: Model, model: Model) -> None:
  """Warns of a new head or decoder; refuses one that no step would train.

  Args:
    run: the command.
    found: the weights as loaded.
    model: the same with the outputs of the task.
  """
  heads = [name for name in model.params if is_head(name)]
  if all(model.params[name] is found.params.get(name) for name in heads):
    names = found.class_names, model.class_names
    if all(names) and names[0] != names[1]:
      run.reporter.warn(
        f'config.init={run.settings.init}: its classes have other names than '
        f'those of {run.settings.data.source}; its head is kept'
      )
    return
  kind = 'decoder' if run.settings.segments else 'head'
  text = f'the {kind} for {model.num_classes} classes is new'
  if kind == 'head' and found.num_classes:
    text += f' (the weights have {found.num_classes})'
  if not pretrain_steps(run):
    raise UsageError(
      f'config.pretrain.steps=0: {text} and would stay random; set '
      'config.pretrain.steps (30ep, say), or take weights of the same classes'
    )
  run.reporter.warn(f'{run.settings.init}: {text}')


def pretrain_steps(run: Run) -> int:
  """Returns the number of steps of the stage `pretrain`."""
  return run.settings.pretrain.total_steps(run.steps_per_epoch)


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
