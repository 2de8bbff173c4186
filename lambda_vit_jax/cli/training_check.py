"""Check a command against data, weights, devices and packages, before it begins.

Runs before the first stage of a command, so that a recipe that a late stage
would refuse costs nothing and binds no workdir.
"""

from collections.abc import Collection, Sequence

import jax.numpy as jnp

from lambda_vit_jax.cli.report.speed_table import si
from lambda_vit_jax.cli.stages import held_out, pretrain, registry, select
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.exporters import export
from lambda_vit_jax.models.build import make_module
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.runtime import processes
from lambda_vit_jax.training import step_memory

_READ_HELD_OUT = ('analyze', 'select', 'linearize', 'compress')


def check(run: Run, stages: Collection[str]) -> None:
  """Checks the unfinished ones among `stages` that train or read images.

  Raises:
    UsageError: a dense model that would stay random; too few held-out images;
      a warm-up longer than the training; a batch that is larger than the
      training images, or than the memory of a device.
    LambdaVitError: a format to export whose package is not installed.
  """
  found = [registry.STAGES[name] for name in stages]
  if 'export' in stages and not registry.STAGES['export'].finished(run):
    export.check_packages(run.settings.export.formats)
  if any(map(_reads_training_images, found)):
    run.share_labels()
  due = processes.from_leader(
    lambda: [
      stage.spec.name
      for stage in found
      if _reads_training_images(stage) and not stage.finished(run)
    ]
  )
  if 'pretrain' in due:
    pretrain.check_start(run)
  _check_held_out(run, due)
  trained = [name for name in due if registry.STAGES[name].spec.trains]
  if not trained:
    return
  each = run.steps_per_epoch
  for section in run.settings.training_stages:
    run.settings.training(section).check_lengths(section, each)
  _check_dilution(run, due)
  if not any(run.settings.training(name).total_steps(each) for name in trained):
    return
  check_batch_size(
    run.batch_size, len(run.train_indices), len(run.holdout_indices())
  )
  _check_memory(run)


def _check_dilution(run: Run, due: Sequence[str]) -> None:
  """Raises UsageError where parts of an epoch come to no step at all."""
  settings = run.settings
  dilution = settings.dilute
  if 'dilute' not in due or settings.select.num_layers == 0:
    return
  if not dilution.total_steps(run.steps_per_epoch):
    lengths = ' + '.join(str(part) for part in dilution.lengths)
    raise UsageError(
      f'config.dilute: {lengths} is no step, as an epoch has '
      f'{run.steps_per_epoch}: nothing would be trained without the layers; '
      'lengthen one of them'
    )


def _reads_training_images(stage: registry.Stage) -> bool:
  return stage.spec.trains or stage.spec.name in _READ_HELD_OUT


def _check_held_out(run: Run, due: Sequence[str]) -> None:
  """Checks that there are images for those of `_READ_HELD_OUT` in `due`."""
  settings = run.settings
  if 'analyze' in due:
    held_out.check(run, settings.analyze.num_images)
  if 'select' in due and select.reads_images(settings.select):
    # A deviation needs two.
    held_out.check(run, settings.select.num_images, least=2)
  if 'linearize' in due:
    held_out.check(run, settings.linearize.num_images)
  if 'compress' in due:
    # A quarter of them is scored.
    held_out.check(run, settings.compress.num_images, least=4)


def check_batch_size(batch_size: int, images: int, held_out: int) -> None:
  """Raises UsageError if a batch has more images than there are."""
  if batch_size > images:
    raise UsageError(
      f'config.batch_size={batch_size}: there are only {images} images to '
      f'train on, as config.data.holdout_images={held_out} are held out; lower '
      'one of the two'
    )


def _check_memory(run: Run) -> None:
  """Raises UsageError if a step takes more than any device has."""
  settings = run.settings
  # The variant's own image size, where the weights decide it.
  module = make_module(
    get_variant(settings.model.variant),
    image_size=settings.model.image_size,
    num_classes=0,
    dtype=jnp.dtype(settings.model.dtype),
    remat=settings.model.remat,
  )
  needed = step_memory.estimate(
    module,
    run.batch_size // run.mesh.size,
    settings.mesh.fsdp,
    with_ema=bool(settings.pretrain.ema or settings.dilute.ema),
  )
  available = step_memory.device_bytes()
  if available is not None and needed > available:
    raise UsageError(
      f'config.batch_size={run.batch_size}: a training step takes at least '
      f'about {si(needed, "B")} of each device, which has '
      f'{si(available, "B")}; lower it, or set config.model.remat=True'
    )
