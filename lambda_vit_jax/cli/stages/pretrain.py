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


def check_start(run: Run) -> None:
  """Checks that no part of the dense model would stay random.

  Raises:
    UsageError: all of it or its head is new, and no step would train it.
  """
  if pretrain_steps(run):
    return
  if not run.settings.init:
    raise UsageError(
      "config.init='' and config.pretrain.steps=0: the dense model would "
      'stay random; set config.pretrain.steps (30ep, say) or config.init'
    )
  found, model = _initial(run)
  if not _keeps_head(found, model):
    raise UsageError(
      f'config.pretrain.steps=0: {_new_head(found, model)} and would stay '
      'random; set config.pretrain.steps (30ep, say), or take weights of the '
      'same classes'
    )


def starting_model(run: Run) -> Model:
  """Returns the untrained dense model: `init` weights, else random ones."""
  settings = run.settings
  if not settings.init:
    model = run.fresh_model()
  else:
    found, model = _initial(run)
    _warn_of_head(run, found, model)
  ratio = settings.model.crop_ratio
  if ratio is None:
    return model
  return model.replace(
    preprocessing=dataclasses.replace(model.preprocessing, crop_ratio=ratio)
  )


def _initial(run: Run) -> tuple[Model, Model]:
  """Returns the `init` weights as loaded, and with the outputs of the task."""
  settings = run.settings
  found = load.load_pretrained(
    settings.init,
    variant=settings.model.variant,
    image_size=settings.model.image_size,
  )
  # Training changes weights by less than int8 resolves.
  found = dequantize(found)
  # Only the pruned model merges tokens, and as this config asks.
  found = found.replace(module=found.module.clone(merge=()))
  return found, task.with_outputs(settings, found, run.dataset)


def _keeps_head(found: Model, model: Model) -> bool:
  heads = [name for name in model.params if is_head(name)]
  return all(model.params[name] is found.params.get(name) for name in heads)


def _new_head(found: Model, model: Model) -> str:
  """Says that the head, or the decoder, is new."""
  decodes = model.module.segmentation is not None
  text = f'the {"decoder" if decodes else "head"} for {model.num_classes} '
  text += 'classes is new'
  if found.num_classes and not decodes:
    text += f' (the weights have {found.num_classes})'
  return text


def _warn_of_head(run: Run, found: Model, model: Model) -> None:
  """Warns of a new head or decoder, or of one for other classes."""
  init = run.settings.init
  if not _keeps_head(found, model):
    run.reporter.warn(f'{init}: {_new_head(found, model)}')
    return
  names = found.class_names, model.class_names
  if all(names) and names[0] != names[1]:
    run.reporter.warn(
      f'config.init={init}: its classes have other names than those of '
      f'{run.settings.data.source}; its head is kept'
    )


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
