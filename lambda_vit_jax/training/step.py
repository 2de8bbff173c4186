"""One optimisation step, with dilution inside, and what prunes its state."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import modes, surgery
from lambda_vit_jax.models.build import apply_module
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation, sharding
from lambda_vit_jax.training import dilution, losses, mixing


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything a checkpoint holds.

  Attributes:
    step: int32 scalar, optimisation steps done.
    params: float32 parameters.
    opt_state: optax state.
    ema: exponential moving average of the parameters, or None.
  """

  step: Array
  params: Params
  opt_state: Any
  ema: Params | None


DISTILLATIONS = ('none', 'soft', 'hard', 'feature')
"""Values of `LossSettings.distill`."""


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """What the loss adds to cross-entropy; all static.

  Attributes:
    label_smoothing: share spread over all classes.
    mixup_alpha: Beta parameter of mixup, 0 for none.
    cutmix_alpha: Beta parameter of cutmix, 0 for none.
    distill: one of `DISTILLATIONS`: not at all, towards the teacher's
      logits (`soft`, `hard`), or towards its features.
    distill_weight: share of the distillation loss.
    temperature: of soft distillation.
    ema_decay: 0 for no average.
  """

  label_smoothing: float = 0.0
  mixup_alpha: float = 0.0
  cutmix_alpha: float = 0.0
  distill: str = 'none'
  distill_weight: float = 0.5
  temperature: float = 1.0
  ema_decay: float = 0.0

  def __post_init__(self):
    if self.distill not in DISTILLATIONS:
      raise UsageError(
        f'distill={self.distill!r} is not known; known are '
        f'{", ".join(DISTILLATIONS)}'
      )


@dataclasses.dataclass(frozen=True)
class Dilution:
  """Which layers are diluted and when; `layers=()` is plain training.

  Attributes:
    layers: blocks.
    steps: from dense to diluted.
    halfway: the step at which a warm start has reached its affine maps.
  """

  layers: tuple[int, ...] = ()
  steps: int = 0
  halfway: int | None = None

  def factor(self, step: Array) -> Array:
    """λ of the layers at `step`."""
    if self.halfway is not None:
      return dilution.warm_schedule(self.steps, self.halfway)(step)
    return dilution.dilution_schedule(self.steps)(step)


def init_state(
  params: Params, optimizer: optax.GradientTransformation, with_ema: bool
) -> TrainState:
  """A state at step 0."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    ema=params if with_ema else None,
  )


def prune_state(
  state: TrainState, layers: Iterable[int], linear: Iterable[int] = ()
) -> TrainState:
  """Drops the attention of `layers` from parameters, moments and average.

  Of blocks in `linear` the affine maps stay.

  Every subtree shaped like the parameters is found by its first block.
  """
  layers, linear = tuple(layers), tuple(linear)
  marker = modes.block_name(0)

  def is_model_tree(node: Any) -> bool:
    return isinstance(node, dict) and marker in node

  return jax.tree.map(
    lambda node: (
      surgery.prune_tree(surgery.keep_maps(node, linear), layers)
      if is_model_tree(node)
      else node
    ),
    state,
    is_leaf=is_model_tree,
  )


def _target(
  module: ViT, settings: LossSettings, batch: dict[str, Array], key: Array
) -> tuple[Array, Callable[[Array], Array]]:
  """The images as mixed, and the loss of their logits against the labels."""
  images, labels = batch['image'], batch['label']
  mixes = settings.mixup_alpha or settings.cutmix_alpha
  if module.segmentation is not None or not mixes:
    return images, lambda logits: losses.label_loss(
      logits, labels, settings.label_smoothing
    )
  images, targets = mixing.mix(
    images,
    losses.smooth_one_hot(labels, module.num_classes, settings.label_smoothing),
    key,
    mixup_alpha=settings.mixup_alpha,
    cutmix_alpha=settings.cutmix_alpha,
  )
  return images, lambda logits: losses.cross_entropy(logits, targets)


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

  λ is evaluated from `state.step` inside the program, so one compilation
  serves the whole schedule. Random keys are folded from (seed, step, block,
  branch): leaving a branch out shifts no other. The state is donated.

  Args:
    module: in modes `full` and `diluted`, or the pruned module.
    optimizer: an optax transformation.
    settings: terms of the loss.
    dilution_plan: λ over steps, for the blocks in mode `diluted`.
    seed: of every random choice in the step.
    mesh: the batch and the parameters live on it.
    state_shardings: a sharding per leaf of the state.
    teacher: dense module for distillation.

  Returns:
    A function whose metrics are `loss`, `accuracy` (of the unmixed labels;
    against mixed images it is only indicative), `gradient_norm` and `lambda`.
  """
  depth = module.depth
  diluting = 'diluted' in module.attention_modes

  def loss_and_logits(
    params: Params, state: TrainState, batch: dict[str, Array], teacher_params
  ) -> tuple[Array, Array]:
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    path_key, mix_key = jax.random.split(key)
    images, loss_of = _target(module, settings, batch, mix_key)
    factor = None
    if diluting:
      factor = dilution.factor_vector(
        dilution_plan.factor(state.step), dilution_plan.layers, depth
      )
    logits, taps = apply_module(
      module,
      params,
      images,
      dilution_factor=factor,
      drop_path_key=path_key,
      capture=False,
    )
    loss = loss_of(logits)
    if teacher is not None and settings.distill != 'none':
      teacher_logits, teacher_taps = apply_module(
        teacher, teacher_params, images, capture=False
      )
      if settings.distill == 'feature':
        extra = losses.feature_distillation_loss(
          taps['features'], teacher_taps['features']
        )
      else:
        extra = losses.distillation_loss(
          logits, teacher_logits, settings.distill, settings.temperature
        )
      weight = settings.distill_weight
      loss = (1.0 - weight) * loss + weight * extra
    return loss, logits

  def step(
    state: TrainState, batch: dict[str, Array], teacher_params: Params | None
  ) -> tuple[TrainState, dict[str, Array]]:
    (loss, logits), gradients = jax.value_and_grad(
      loss_and_logits, has_aux=True
    )(state.params, state, batch, teacher_params)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
      ema = optax.incremental_update(params, ema, 1.0 - settings.ema_decay)
    metrics = {
      'loss': loss,
      'accuracy': losses.accuracy(logits, batch['label']),
      'gradient_norm': optax.tree.norm(gradients),
      'lambda': (
        dilution_plan.factor(state.step) if dilution_plan.layers else 1.0
      ),
    }
    return TrainState(state.step + 1, params, opt_state, ema), metrics

  return compilation.Program(
    step,
    donate_argnums=0,
    out_shardings=(state_shardings, sharding.replicated(mesh)),
  )
