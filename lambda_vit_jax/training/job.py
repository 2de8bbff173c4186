"""`Job`: what one training stage does, as data."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optax

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models.modes import removed_layers
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training.blend import Blend
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.step import LossSettings, TrainState, prune_state
from lambda_vit_jax.training.tracing import Window


@dataclasses.dataclass(frozen=True)
class Phase:
  """Consecutive steps that run the same compiled program.

  Attributes:
    module: the network of this phase.
    until: the step at which the phase ends.
    removed: blocks that lose their attention when the phase begins.
    linear: blocks that then keep only the affine map of their attention.
    narrowed: per block that then loses neurons those that stay.
    blend: what λ does to parameters during the phase, None for nothing.
  """

  module: ViT
  until: int
  removed: tuple[int, ...] = ()
  linear: tuple[int, ...] = ()
  narrowed: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
  blend: Blend | None = None

  def prune(self, state: TrainState) -> TrainState:
    """The state of the phase before, without what goes when this one begins."""
    return prune_state(state, self.removed, self.linear, self.narrowed)


@dataclasses.dataclass(frozen=True)
class Job:
  """Everything that determines a training stage.

  Attributes:
    stage: name, for folders and metrics.
    phases: in order; `until` of the last one is the total number of steps.
    optimizer: an optax transformation.
    learning_rate: schedule over steps, for the metrics.
    loss: settings of the training step.
    dilution: which layers are diluted, and λ by step.
    seed: of every random choice in the step.
    steps_per_epoch: for the metrics.
    make_batches: from a first step to an endless iterator of this process's
      batches.
    teacher: module and parameters for distillation, or None.
    batch_size: images per step, over all processes.
    description: of the model, for the checkpoint (`description.describe`).
    log_every: steps between two lines of metrics.
    checkpoint_every: steps between two checkpoints.
    evaluate: from a module, its parameters and λ per block to `loss` and
      `accuracy` on held-out images; None for no evaluation.
    eval_every: steps between two evaluations; the last step of a phase is
      evaluated as well. 0 for no evaluation.
    start: a checkpoint of another run to start from if this run has none.
    window: steps to profile.
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
  evaluate: Callable[[ViT, Params, Array | None], dict[str, float]] | None = (
    None
  )
  eval_every: int = 0
  start: orbax_store.Source | None = None
  window: Window = dataclasses.field(default_factory=Window)

  @property
  def total_steps(self) -> int:
    """Number of steps of all phases."""
    return self.phases[-1].until

  def begun(self, step: int) -> list[Phase]:
    """The phases that have begun at `step`; the last of them runs then."""
    starts = (0, *(phase.until for phase in self.phases[:-1]))
    pairs = zip(self.phases, starts, strict=True)
    return [phase for phase, start in pairs if start <= step]

  def module_at(self, step: int) -> ViT:
    """The network that runs at `step`."""
    return self.begun(step)[-1].module

  def meta_at(self, step: int) -> dict[str, Any]:
    """Metadata, as JSON values, of the checkpoint at `step`."""
    module = self.module_at(step)
    return {
      'stage': self.stage,
      'step': step,
      'total_steps': self.total_steps,
      'model': {
        **self.description,
        'attention_modes': list(module.attention_modes),
        'removed_layers': list(removed_layers(module.attention_modes)),
        'dilution_path': module.dilution_path,
        'mlp_dims': list(module.hidden_dims),
      },
      'has_ema': bool(self.loss.ema_decay),
      'data': {'seed': self.seed, 'next_step': step},
    }
