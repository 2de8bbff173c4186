"""Check training against the data set and the devices, before it begins.

Runs before the first stage of a command, so that a recipe that a late stage
would refuse costs nothing and binds no workdir.
"""

from collections.abc import Iterable

import jax.numpy as jnp

from lambda_vit_jax.cli.report.speed_table import si
from lambda_vit_jax.cli.stages import registry
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.models.build import make_module
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.runtime import processes
from lambda_vit_jax.training import step_memory


def check(run: Run, stages: Iterable[str]) -> None:
  """Checks the unfinished ones among `stages` that train.

  Raises:
    UsageError: a warm-up longer than the training; a batch that is larger than
      the training images, or than the memory of a device.
  """
  found = [registry.STAGES[name] for name in stages]
  due = processes.from_leader(
    lambda: [
      stage.spec.name
      for stage in found
      if stage.spec.trains and not stage.finished(run)
    ]
  )
  if not due:
    return
  each = run.steps_per_epoch
  for section in run.settings.training_stages:
    run.settings.training(section).check_warmup(section, each)
  if not any(run.settings.training(name).total_steps(each) for name in due):
    return
  check_batch_size(run.batch_size, len(run.train_indices))
  _check_memory(run)


def check_batch_size(batch_size: int, images: int) -> None:
  """Raises UsageError if a batch has more images than there are."""
  if batch_size > images:
    raise UsageError(
      f'config.batch_size={batch_size}: there are only {images} images to '
      'train on; lower it'
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
