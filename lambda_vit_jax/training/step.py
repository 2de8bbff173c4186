"""The training step: mixing, forward pass with λ, losses, update, averaging."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.typing import Array, Intermediates, Params
from lambda_vit_jax.models import modes, surgery
from lambda_vit_jax.models.build import apply_module
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation, sharding
from lambda_vit_jax.training import losses, mixing
from lambda_vit_jax.training.dilution import Dilution


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a checkpoint holds.

  Attributes:
    step: int32 scalar, optimisation steps done.
    params: float32 parameters.
    opt_state: optax state.
    ema: exponential moving average of the parameters, or None for none.
  """

  step: Array
  params: Params
  opt_state: Any
  ema: Params | None

  @property
  def averaged(self) -> Params:
    """The average where one is kept, else the parameters."""
    return self.params if self.ema is None else self.ema


DISTILLATIONS = ('none', 'soft', 'hard', 'feature', 'streams')
"""Possible values of `LossSettings.distill`."""


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """Static settings of the training step, besides the optimizer.

  Attributes:
    label_smoothing: share of each target that is spread over all classes.
    mixup_alpha: Beta parameter of mixup, 0 for none.
    cutmix_alpha: Beta parameter of cutmix, 0 for none.
    mix_size: images that share a draw of mixup or cutmix; None for all.
    distill: one of `DISTILLATIONS`: `soft` and `hard` follow the teacher's
      logits, `feature` its pooled features, `streams` its stream after every
      block and, as `soft`, its logits (without a head its pooled features).
    distill_weight: share of the distillation loss in the total.
    temperature: softmax temperature of `soft` and `streams`.
    stream_pairs: for `streams`, blocks of the student and the teacher's blocks
      that end alike; () where both have the same blocks.
    ema_decay: decay of the average of the parameters, 0 for no average.
    ema_start: updates before the average begins; until then it is the
      parameters themselves. With λ = 0 from there on, no parameters of a
      network with attention are in it.
  """

  label_smoothing: float = 0.0
  mixup_alpha: float = 0.0
  cutmix_alpha: float = 0.0
  mix_size: int | None = None
  distill: str = 'none'
  distill_weight: float = 0.5
  temperature: float = 1.0
  stream_pairs: tuple[tuple[int, int], ...] = ()
  ema_decay: float = 0.0
  ema_start: int = 0

  def __post_init__(self):
    if self.distill not in DISTILLATIONS:
      raise UsageError(
        f'distill={self.distill!r} is not known: use one of '
        f'{", ".join(DISTILLATIONS)}'
      )


def init_state(
  params: Params, optimizer: optax.GradientTransformation, with_ema: bool
) -> TrainState:
  """The state at step 0; the average starts as the parameters."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    ema=params if with_ema else None,
  )


def prune_state(
  state: TrainState,
  layers: Iterable[int],
  linear: Iterable[int] = (),
  narrowed: Mapping[int, np.ndarray] = MappingProxyType({}),
) -> TrainState:
  """Drops attention and neurons from parameters, moments and average.

  Args:
    state: of the network before the switch.
    layers: blocks that lose their attention and its norm.
    linear: blocks that keep the affine map that replaces their attention.
    narrowed: per block that loses neurons those that stay; of none, its MLP goes.

  Returns:
    The state of the pruned network. Optimizer moments are pruned with the
    parameters: a subtree with a patch embedding is taken for a parameter tree.
  """
  layers, linear = tuple(layers), tuple(linear)

  def is_model_tree(node: Any) -> bool:
    return isinstance(node, dict) and 'patch_embed' in node

  def prune(node: Any) -> Any:
    if not is_model_tree(node):
      return node
    node = surgery.prune_tree(surgery.keep_maps(node, linear), layers)
    return surgery.narrow_tree(node, narrowed)

  return jax.tree.map(prune, state, is_leaf=is_model_tree)


def make_train_step(
  module: ViT,
  optimizer: optax.GradientTransformation,
  settings: LossSettings,
  dilution_plan: Dilution,
  seed: int,
  mesh: Mesh,
  state_shardings: TrainState,
  teacher: ViT | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
  """Builds the jitted step `(state, batch, teacher_params) -> state, metrics`.

  λ is computed from `state.step` inside the program, so one compilation serves
  the whole schedule. Random keys are folded from (seed, step, block, branch),
  so leaving out one branch does not change the draws of another. The state is
  donated.

  Args:
    module: the network, in modes `full` and `diluted` or already pruned.
    optimizer: an optax transformation.
    settings: terms of the loss, mixing and averaging.
    dilution_plan: λ by step, for the blocks in mode `diluted`, and what it does
      to other parameters.
    seed: of every random choice in the step.
    mesh: devices that hold the batch and the parameters.
    state_shardings: a sharding per leaf of the state.
    teacher: dense module for distillation.

  Returns:
    A function whose metrics are `loss`, `gradient_norm`, `lambda` and, for
    batches with `label`, `accuracy` (against the unmixed labels, so only
    indicative when images are mixed).
  """

  def step(
    state: TrainState, batch: dict[str, Array], teacher_params: Any
  ) -> tuple[TrainState, dict[str, Array]]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    drop_path_key, mix_key = jax.random.split(key)
    images, target_loss = _mix(module, settings, batch, mix_key)
    streams = teacher is not None and settings.distill == 'streams'
    factors = dilution_plan.block_factors(state.step, module.attention_modes)

    def loss_and_logits(params: Params) -> tuple[Array, Array]:
      student = apply_module(
        module,
        dilution_plan.blended(params, state.step),
        images,
        dilution_factor=factors,
        drop_path_key=drop_path_key,
        capture=streams,
      )
      if teacher is None or settings.distill == 'none':
        return target_loss(student[0]), student[0]
      taught = apply_module(teacher, teacher_params, images, capture=streams)
      weight = settings.distill_weight
      loss = (1.0 - weight) * target_loss(student[0])
      loss += weight * _distillation_loss(student, taught, settings, teacher)
      return loss, student[0]

    (loss, logits), gradients = jax.value_and_grad(
      loss_and_logits, has_aux=True
    )(state.params)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    ema = _average(state, params, settings)
    metrics = {
      'loss': loss,
      'gradient_norm': optax.tree.norm(gradients),
      'lambda': dilution_plan.factor(state.step),
    }
    if 'label' in batch:
      metrics['accuracy'] = losses.accuracy(logits, batch['label'])
    return TrainState(state.step + 1, params, opt_state, ema), metrics

  return compilation.Program(
    step,
    donate_argnums=0,
    out_shardings=(state_shardings, sharding.replicated(mesh)),
  )


def _average(
  state: TrainState, params: Params, settings: LossSettings
) -> Params | None:
  """The average after an update to `params`, None where none is kept."""
  if state.ema is None:
    return None
  begun = state.step >= settings.ema_start
  share = jnp.where(begun, 1.0 - settings.ema_decay, 1.0)
  return optax.incremental_update(params, state.ema, share)


def _mix(
  module: ViT, settings: LossSettings, batch: dict[str, Array], key: Array
) -> tuple[Array, Callable[[Array], Array]]:
  """Images after mixup or cutmix, and the loss of their logits.

  Images with a mask are not mixed, and neither are images without labels, of
  which only distillation has a loss.
  """
  if 'label' not in batch:
    return batch['image'], lambda logits: jnp.zeros(())
  images, labels = batch['image'], batch['label']
  smoothing = settings.label_smoothing
  if module.segmentation is not None:
    return images, functools.partial(
      losses.pixel_cross_entropy, labels=labels, smoothing=smoothing
    )
  images, targets = mixing.mix(
    images,
    losses.smooth_one_hot(labels, module.num_classes, smoothing),
    key,
    mixup_alpha=settings.mixup_alpha,
    cutmix_alpha=settings.cutmix_alpha,
    group_size=settings.mix_size,
  )
  return images, functools.partial(losses.cross_entropy, targets=targets)


def _distillation_loss(
  student: tuple[Array, Intermediates],
  taught: tuple[Array, Intermediates],
  settings: LossSettings,
  teacher: ViT,
) -> Array:
  """Loss between what two networks return for the same images."""
  (logits, taps), (teacher_logits, teacher_taps) = student, taught
  if settings.distill == 'streams':
    pairs = settings.stream_pairs or [(i, i) for i in range(teacher.depth)]
    loss = losses.stream_distillation_loss(
      [taps[modes.block_name(ours)]['output'] for ours, _ in pairs],
      [teacher_taps[modes.block_name(own)]['output'] for _, own in pairs],
      teacher.class_token,
    )
    return loss + _output_loss(student, taught, settings, teacher)
  if settings.distill == 'feature':
    return losses.feature_distillation_loss(
      taps['features'], teacher_taps['features']
    )
  return losses.distillation_loss(
    logits, teacher_logits, settings.distill, settings.temperature
  )


def _output_loss(
  student: tuple[Array, Intermediates],
  taught: tuple[Array, Intermediates],
  settings: LossSettings,
  teacher: ViT,
) -> Array:
  """Distance of the logits, or of the features of a network without a head."""
  if teacher.num_classes:
    return losses.distillation_loss(
      student[0], taught[0], 'soft', settings.temperature
    )
  return losses.feature_distillation_loss(student[0], taught[0])
