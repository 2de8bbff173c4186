"""Train a network into a smaller one: λ leads from it to its stand-in.

The stand-in is what a closed form makes of the network: with maps for attention
(`linearize`), without attention or blocks (`prune`, `drop_blocks`), with narrower
MLPs (`narrow`), refitted or recentred. Where λ has come to 0, the network that
trains is the stand-in, and the program becomes that of the stand-in.
"""

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import (
  Batches,
  gathered,
  gathered_labels,
  read_images,
)
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import ModelError, UsageError
from lambda_vit_jax.core.images import check_classes
from lambda_vit_jax.models import edits
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.training import in_memory, optim
from lambda_vit_jax.training.job import Job
from lambda_vit_jax.training.step import LossSettings
from lambda_vit_jax.training_free.stand_in import Plan, plan_towards

# At 5e-5 a hundred steps cost a fine-tuned network more than they bring it
# (docs/results_trained.md#paths-of-dilution).
LEARNING_RATE = 2e-5
BATCH_SIZE = 32
_WARMUP = 0.05
"""Share of the steps."""

# Name, least and largest value, as the stage has them.
_SHARES = (
  ('learning_rate', 0, 10),
  ('weight_decay', 0, 10),
  ('distill_weight', 0, 1),
  ('label_smoothing', 0, 1),
)


# What of a teacher's form is that of the model, by `distill`.
_FOLLOWED = {
  'soft': ('num_classes',),
  'hard': ('num_classes',),
  'feature': ('embed_dim',),
  'streams': ('num_classes', 'embed_dim', 'depth', 'num_tokens', 'merge'),
}


@dataclasses.dataclass(frozen=True)
class DiluteOptions:
  """How `dilute` trains; see there."""

  steps: int
  settle_steps: int
  learning_rate: float = LEARNING_RATE
  weight_decay: float = 0.05
  batch_size: int = BATCH_SIZE
  distill: str = 'soft'
  distill_weight: float = 0.5
  label_smoothing: float = 0.0
  seed: int = 0
  when: Mapping[int, tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )

  def __post_init__(self):
    for block, span in self.when.items():
      pair = tuple(span) if isinstance(span, Sequence) else ()
      numeric = all(isinstance(share, numbers.Real) for share in pair)
      if len(pair) != 2 or not numeric or not 0 <= pair[0] < pair[1] <= 1:
        raise UsageError(
          f'dilute: when={{{block}: {span}}}: give where its λ begins and ends to '
          'fall, two shares of the steps such as (0, 0.5)'
        )
    for name, least, most in _SHARES:
      value = getattr(self, name)
      if not least <= value <= most:
        raise UsageError(
          f'dilute: {name}={value:g}: must be from {least} to {most}'
        )
    if self.steps < 1 or self.settle_steps < 0:
      raise UsageError(
        f'dilute: steps={self.steps}, settle_steps={self.settle_steps}: give at '
        'least one step, and no negative number'
      )


@check_arguments
def dilute(
  model: Model,
  batches: Batches,
  towards: Any,
  *,
  steps: int,
  settle_steps: int | None = None,
  when: Mapping[int, Any] | None = None,
  teacher: Model | None = None,
  distill: str = 'soft',
  distill_weight: float | None = None,
  learning_rate: float = LEARNING_RATE,
  weight_decay: float = 0.05,
  batch_size: int = BATCH_SIZE,
  label_smoothing: float = 0.0,
  seed: int = 0,
  mesh: Mesh | None = None,
  on_progress: Callable[[int, int], None] | None = None,
) -> Model:
  """Trains `model` while λ turns it into a smaller network, then goes on.

  Over `steps` steps the network changes from `model` to `towards`, linearly in λ;
  `settle_steps` more train what is left (docs/training_free.md#towards-a-stand-in). All
  parameters train. What needs checkpoints or more images than fit in memory is
  the stage `dilute`.

  Args:
    model: finished, not folded, without token merging or a decoder; not changed.
    batches: images, normalised, and labels; see `images.read_images`. Without
      labels the teacher alone is followed.
    towards: the smaller network, made from `model` by `linearize`, `prune`,
      `drop_blocks`, `narrow`, `refit` or `recentre`; where `model` has maps, they
      may be gone in it (`prune(model, layers, 'absent')`); or layers (block indices, or
      a `Selection`), whose attention becomes the identity, x + x. Tokens that
      merge in it (`merge_tokens`, `compress`) do so from the first step on.
    steps: while λ falls from 1 to 0.
    settle_steps: after that; by default a third of `steps`, as published.
    when: per block of `model` where in `steps` its λ begins and ends to fall, as
      two shares: `{3: (0, 0.5), 8: (0.5, 1)}` changes block 3 before block 8. By
      default, and for other blocks, (0, 1).
    teacher: gives the outputs to follow; by default `model`.
    distill: `soft`, `hard`, `feature` or `streams`, of `step.LossSettings`, or
      `none` for labels alone. Without two classes the first two are `feature`.
    distill_weight: share of the teacher in the loss; by default 0.5, and 1
      without labels (which a single class does not need).
    learning_rate: the highest, after a short warm-up and before a cosine to 0;
      for hundreds of steps less than for thousands.
    weight_decay: of AdamW.
    batch_size: images per step.
    label_smoothing: of the labels.
    seed: of the order of the images.
    mesh: devices that share the images; see `images.read_images`.
    on_progress: is called with steps done and steps in all.

  Returns:
    `towards` with trained parameters; float32 arrays on the host.

  Raises:
    ModelError: networks that are not made from each other, or are the same; maps
      and blocks that double the stream in one call; a teacher of another form; or
      a loss that is not finite.
    DataError: no image, images of another shape, labels that are no classes of
      the model or that some batches lack.
    UsageError: no steps, no span of them in `when`, a loss that is not known or
      has nothing to follow, or a batch size that the devices do not divide.
  """
  stand_in = _stand_in(model, towards)
  # Early: a decoder's images have masks.
  plan = plan_towards(model, stand_in)
  images = read_images(batches, model, mesh)
  # A single class is always right: neither labels nor a teacher say more.
  judged = model.num_classes > 1
  labelled = images.labels is not None and judged
  if distill in ('soft', 'hard') and not judged:
    distill = 'feature'
  if distill_weight is None:
    distill_weight = 0.5 if labelled else 1.0
  if labelled:
    labels = gathered_labels(images)
    check_classes(labels, model.num_classes, 'dilute: labels are')
  else:
    _check_followed(distill, distill_weight)
  _check_teacher(teacher or model, model, stand_in, distill)
  options = DiluteOptions(
    steps,
    steps // 3 if settle_steps is None else settle_steps,
    learning_rate,
    weight_decay,
    batch_size,
    distill,
    distill_weight,
    label_smoothing,
    seed,
    when or {},
  )
  devices = images.placement.mesh.devices.reshape(-1, 1)
  mesh = Mesh(devices, sharding.BATCH_AXES)
  arrays = {'image': gathered(images)}
  if labelled:
    arrays['label'] = labels
  job = dilute_job(plan, teacher or model, arrays, options, mesh)
  params = in_memory.run(job, plan.params, mesh, 'dilute', on_progress)
  trained = model.replace(module=plan.after, params=params)
  if plan.dropped:
    trained = edits.drop_blocks(trained, plan.dropped)
  return stand_in.replace(params=trained.params)


def _stand_in(model: Model, towards: Any) -> Model:
  """The smaller network; of layers alone, that without their attention."""
  if isinstance(towards, Model):
    return towards
  if isinstance(getattr(towards, 'model', None), Model):
    raise UsageError(
      f'dilute: towards is a {type(towards).__name__}, which holds the smaller '
      'network: give found.model'
    )
  return edits.prune(model, towards)


def _check_followed(distill: str, weight: float) -> None:
  """Refuses a loss without labels in which the teacher has no share."""
  if distill == 'none' or not weight:
    what = 'distill=none' if distill == 'none' else 'distill_weight=0'
    raise UsageError(
      f'dilute: {what} needs labels and a head with two classes or more; give '
      'labelled batches, or a teacher a share'
    )


def _check_teacher(
  teacher: Model, model: Model, stand_in: Model, distill: str
) -> None:
  """Refuses a teacher whose outputs are of another form."""
  for name in ('image_size', 'in_chans', *_FOLLOWED.get(distill, ())):
    own, wanted = (getattr(each.module, name) for each in (teacher, model))
    if own != wanted:
      raise ModelError(
        f'dilute: the teacher has {name}={own}, and the model {wanted}; give '
        'another teacher, or another distill'
      )
  if distill == 'streams' and any(stand_in.module.merge):
    raise ModelError(
      'dilute: distill=streams compares tokens one by one, and the smaller network '
      'merges some; use soft or feature'
    )


def dilute_job(
  plan: Plan,
  teacher: Model,
  arrays: Mapping[str, np.ndarray],
  options: DiluteOptions,
  mesh: Mesh,
) -> Job:
  """What `dilute` does, as data.

  Args:
    plan: of `plan_towards`.
    teacher: to follow.
    arrays: `image` and perhaps `label`, of every process.
    options: checked.
    mesh: devices to train on.

  Raises:
    UsageError: see `dilute`.
  """
  sharding.check_batch_size(options.batch_size, mesh)
  total = options.steps + options.settle_steps
  schedule = optim.learning_rate_schedule(
    options.learning_rate, total, int(_WARMUP * total), 0.0
  )
  settings = {
    'b1': 0.9,
    'b2': 0.999,
    'weight_decay': options.weight_decay,
    'clip_norm': 1.0,
    'layer_decay': 1.0,
    'accumulate_steps': 1,
    'frozen': '',
  }
  return Job(
    stage='dilute',
    phases=plan.phases(options.steps, total),
    optimizer=optim.make_optimizer(settings, schedule, plan.during.depth),
    learning_rate=schedule,
    loss=LossSettings(
      label_smoothing=options.label_smoothing,
      distill=options.distill,
      distill_weight=options.distill_weight,
    ),
    dilution=plan.dilution(options.steps, options.when),
    seed=options.seed,
    steps_per_epoch=-(-len(arrays['image']) // options.batch_size),
    make_batches=lambda first: in_memory.batches(
      arrays, options.batch_size, options.seed, first
    ),
    teacher=(teacher.module, teacher.params),
    batch_size=options.batch_size,
    description={},
    log_every=total,
    checkpoint_every=total,
  )
