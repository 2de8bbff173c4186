"""What one training stage does: phases, data, loss, and how often it saves."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import optax

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import modes as modes_lib
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.step import LossSettings
from lambda_vit_jax.training.tracing import Window

Evaluate = Callable[[ViT, Params, Array | None], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Phase:
  """A stretch of steps under one compiled program.

  Attributes:
    module: the network of this phase.
    until: the step at which it ends.
    removed: layers whose attention is dropped from the state when it begins.
    linear: layers of whose attention only the affine maps stay then.
  """

  module: ViT
  until: int
  removed: tuple[int, ...] = ()
  linear: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Job:
  """What one training stage does.

  Attributes:
    stage: name, for folders and metrics.
    phases: in order; the last one's `until` is the total number of steps.
    optimizer: an optax transformation.
    learning_rate: by step, for the metrics.
    loss: terms of the loss.
    dilution: λ over steps.
    seed: of the random choices in the step.
    steps_per_epoch: for the metrics.
    make_batches: from a first step to an endless iterator of this process's
      batches.
    teacher: module and parameters for distillation, or None.
    batch_size: images of one step over all processes.
    description: of the model, for the checkpoint (`description.describe`).
    log_every: steps between two lines of metrics.
    checkpoint_every: steps between two checkpoints.
    evaluate: from a module, its parameters and its diluted layers' factors
      (or None) to `loss` and `accuracy` on images kept out of training.
    eval_every: steps between two evaluations, besides the last of each
      phase; 0 for none.
    start: a checkpoint of another run to go on from, where this one has none.
    window: steps whose profile is traced.
  """

  stage: str
  phases: Sequence[Phase]
  optimizer: optax.GradientTransformation
  learning_rate: Callable[[int], Any]
  loss: LossSettings
  dilution: Dilution
  seed: int
  steps_per_epoch: int
  make_batches: Callable[[int], Iterator[dict[str, np.ndarray]]]
  teacher: tuple[ViT, Params] | None
  batch_size: int
  description: dict[str, Any]
  log_every: int
  checkpoint_every: int
  evaluate: Evaluate | None = None
  eval_every: int = 0
  start: orbax_store.Source | None = None
  window: Window = dataclasses.field(default_factory=Window)

  @property
  def total_steps(self) -> int:
    """Steps of all phases."""
    return self.phases[-1].until

  def phase_at(self, step: int) -> int:
    """Index of the phase whose program runs at `step`."""
    for index, phase in enumerate(self.phases):
      if step < phase.until:
        return index
    return len(self.phases) - 1

  def meta_at(self, step: int) -> dict[str, Any]:
    """The checkpoint's JSON at `step`."""
    module = self.phases[self.phase_at(step)].module
    modes = {
      'attention_modes': list(module.attention_modes),
      'removed_layers': list(modes_lib.removed_layers(module.attention_modes)),
      'dilution_path': module.dilution_path,
    }
    return {
      'stage': self.stage,
      'step': step,
      'total_steps': self.total_steps,
      'model': self.description | modes,
      'has_ema': bool(self.loss.ema_decay),
      'data': {'seed': self.seed, 'next_step': step},
    }
