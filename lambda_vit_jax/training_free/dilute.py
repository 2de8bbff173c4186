"""Train a network into a smaller one: λ leads from it to its stand-in.

The stand-in is what a closed form makes of the network: with maps for attention
(`linearize`), without attention or blocks (`prune`, `drop_blocks`), with narrower
MLPs (`narrow`), refitted or recentred. Where λ has come to 0, the network that
trains is the stand-in, and the program becomes that of the stand-in.
"""

import dataclasses
import itertools
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
from lambda_vit_jax.core.typing import AttentionMode, Params
from lambda_vit_jax.models import edits, map_inputs, surgery
from lambda_vit_jax.models.build import with_mlp_dims
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.training import blend, in_memory, optim
from lambda_vit_jax.training.dilution import Dilution, diluted_modes
from lambda_vit_jax.training.job import Job, Phase
from lambda_vit_jax.training.step import LossSettings
from lambda_vit_jax.training_free import paired

LEARNING_RATE = 5e-5
BATCH_SIZE = 32
_WARMUP = 0.05
"""Share of the steps."""


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

  def __post_init__(self):
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
  `settle_steps` more train what is left (docs/method.md#towards-a-stand-in). All
  parameters train. What needs checkpoints or more images than fit in memory is
  the stage `dilute`.

  Args:
    model: finished, not folded, and without token merging; not changed.
    batches: images, normalised, and labels; see `images.read_images`. Without
      labels the teacher alone is followed.
    towards: the smaller network, made from `model` by `linearize`, `prune`,
      `drop_blocks`, `narrow`, `refit` or `recentre`; or layers (block indices, or
      a `Selection`), whose attention becomes the identity, x + x.
    steps: while λ falls from 1 to 0.
    settle_steps: after that; by default a third of `steps`, as published.
    teacher: gives the outputs to follow; by default `model`.
    distill: `soft`, `hard`, `feature` or `streams`, of `step.LossSettings`, or
      `none` for labels alone. Without a head `soft` is `feature`.
    distill_weight: share of the teacher in the loss; by default 0.5, and 1
      without labels.
    learning_rate: the highest, after a short warm-up and before a cosine to 0.
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
      and blocks that double the stream in one call; or a loss that is not finite.
    DataError: no image, or images of another shape.
    UsageError: no steps, a loss that is not known or has nothing to follow, or a
      batch size that the devices do not divide.
  """
  stand_in = towards
  if not isinstance(towards, Model):
    stand_in = edits.prune(model, towards)
  images = read_images(batches, model, mesh)
  labelled = images.labels is not None
  if distill == 'none' and not (labelled and model.num_classes):
    raise UsageError(
      'dilute: distill=none needs labels and a head; give labelled batches, or '
      'another distill'
    )
  if distill == 'soft' and not model.num_classes:
    distill = 'feature'
  if distill_weight is None:
    distill_weight = 0.5 if labelled and model.num_classes else 1.0
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
  )
  devices = images.placement.mesh.devices.reshape(-1, 1)
  mesh = Mesh(devices, sharding.BATCH_AXES)
  arrays = {'image': gathered(images)}
  if labelled and model.num_classes:
    arrays['label'] = gathered_labels(images)
  plan = plan_towards(model, stand_in)
  job = dilute_job(plan, teacher or model, arrays, options, mesh)
  params = in_memory.run(job, plan.params, mesh, 'dilute', on_progress)
  trained = model.replace(module=plan.after, params=params)
  if plan.dropped:
    trained = edits.drop_blocks(trained, plan.dropped)
  return stand_in.replace(params=trained.params)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """From a network to its stand-in, in the blocks of the former.

  Attributes:
    params: to start from: those of the stand-in, and of the network what leaves.
    during: the module while λ falls.
    after: the module once λ is 0; what is dropped is still there, empty.
    blend: what λ does to the parameters.
    removed: blocks whose attention leaves without a map.
    mapped: blocks whose attention becomes a map.
    narrowed: the neurons that stay, of the blocks that lose some.
    dropped: blocks that the stand-in lacks.
  """

  params: Params
  during: ViT
  after: ViT
  blend: blend.Blend
  removed: tuple[int, ...]
  mapped: tuple[int, ...]
  narrowed: Mapping[int, np.ndarray]
  dropped: tuple[int, ...]

  def phases(self, steps: int, total: int) -> tuple[Phase, Phase]:
    """While λ falls, over `steps` steps, and from then on, up to `total`."""
    return (
      Phase(self.during, until=steps, blend=self.blend),
      Phase(
        self.after,
        until=total,
        removed=self.removed,
        linear=self.mapped,
        narrowed=self.narrowed,
      ),
    )

  def dilution(self, steps: int) -> Dilution:
    """λ by step, the same in all parts."""
    return Dilution(tuple(range(self.during.depth)), steps)


def plan_towards(model: Model, stand_in: Model) -> Plan:
  """Compares a network with its stand-in; see `dilute`.

  Raises:
    ModelError: they are the same, or not made from each other.
  """
  pairing = paired.pair(stand_in, model)
  places = {origin: j for j, origin in enumerate(pairing.origins)}
  dropped = tuple(i for i in range(model.depth) if i not in places)
  final = tuple(
    stand_in.attention_modes[places[i]] if i in places else 'absent'
    for i in range(model.depth)
  )
  ends = _ends(model.attention_modes, final)
  layers = tuple(sorted(itertools.chain(*ends.values())))
  mapped, doubled = ends['linear'], ends['identity']
  narrowed = {
    pairing.origins[j]: _staying(model, stand_in, pairing.origins[j], j)
    for j in pairing.narrowed
  }
  narrowed |= {i: np.zeros(0, int) for i in dropped if model.mlp_dims[i]}
  params = _start(model, stand_in, places, narrowed)
  changes = blend.Blend(
    blend.differences(model.params, params),
    narrowed,
    leaving=ends['absent'],
  )
  if not (layers or narrowed or changes.differences):
    raise ModelError(
      'dilute: the two models are the same network; nothing would change'
    )
  inputs = [
    stand_in.module.inputs_of(places[i])
    if i in places
    else model.module.inputs_of(i)
    for i in range(model.depth)
  ]
  module = model.module.clone(
    compensation=True,
    dilution_path='to_linear' if mapped else 'attention',
    linear_inputs=map_inputs.check_all_inputs(inputs, model.depth),
    drop_path_rates=(0.0,) * model.depth,
  )
  widths = [
    stand_in.mlp_dims[places[i]] if i in places else 0
    for i in range(model.depth)
  ]
  return Plan(
    params=params,
    during=module.clone(
      attention_modes=diluted_modes(mapped + doubled, model.attention_modes)
    ),
    after=with_mlp_dims(module.clone(attention_modes=final), widths),
    blend=changes,
    removed=tuple(i for i in layers if i not in mapped),
    mapped=mapped,
    narrowed=narrowed,
    dropped=dropped,
  )


def _ends(
  old: Sequence[AttentionMode], new: Sequence[AttentionMode]
) -> dict[str, tuple[int, ...]]:
  """The blocks whose attention becomes `linear`, `identity` or `absent`."""
  layers = [i for i, mode in enumerate(old) if mode != new[i]]
  for index in layers:
    if old[index] != 'full':
      raise ModelError(
        f'dilute: block {index} is {old[index]!r} in the first network and gone '
        'in the second; λ leads from attention only'
      )
  found = {
    end: tuple(i for i in layers if new[i] == end)
    for end in ('linear', 'identity', 'absent')
  }
  if found['linear'] and found['identity']:
    raise ModelError(
      f'dilute: attention of block {found["linear"][0]} would become a map and '
      f'of block {found["identity"][0]} the identity; dilute in two calls, or '
      'leave it out in mode absent'
    )
  return found


def _staying(
  model: Model, stand_in: Model, index: int, place: int
) -> np.ndarray:
  """Which neurons of block `index` the stand-in has, in its order."""
  if not stand_in.mlp_dims[place]:
    return np.zeros(0, int)
  ours, theirs = (
    surgery.neurons_of(each.params[block_name(i)]['mlp'])
    for each, i in ((model, index), (stand_in, place))
  )
  left: dict[bytes, list[int]] = {}
  for neuron, weights in enumerate(ours):
    left.setdefault(weights.tobytes(), []).append(neuron)
  found = []
  for weights in theirs:
    if not left.get(weights.tobytes()):
      raise ModelError(
        f'dilute: block {place} has a neuron that is none of the first '
        "network's; make the smaller one by narrow, without training it"
      )
    found.append(left[weights.tobytes()].pop(0))
  return np.asarray(found)


def _start(
  model: Model,
  stand_in: Model,
  places: Mapping[int, int],
  narrowed: Mapping[int, np.ndarray],
) -> Params:
  """The stand-in's parameters, and the network's where it has more."""
  blocks = {block_name(index) for index in range(model.depth)}
  params = {n: x for n, x in stand_in.params.items() if n not in blocks}
  for index in range(model.depth):
    name = block_name(index)
    old = model.params.get(name, {})
    new: Params = {}
    if index in places:
      new = dict(stand_in.params.get(block_name(places[index]), {}))
    if index in narrowed and 'mlp' in new:
      new['mlp'] = _widened(old['mlp'], new['mlp'], narrowed[index])
    if 'attn' in new:
      # Beside attention that is diluted, its map.
      new['attn'] = old['attn'] | new['attn']
    if block := old | new:
      params[name] = block
  return params


def _widened(old: Params, new: Params, neurons: np.ndarray) -> Params:
  """An MLP with all neurons, of which some write what they do in `new`."""
  kernel = np.array(old['fc2']['kernel'])
  kernel[neurons] = new['fc2']['kernel']
  return old | {'fc2': new['fc2'] | {'kernel': kernel}}


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
    dilution=plan.dilution(options.steps),
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
