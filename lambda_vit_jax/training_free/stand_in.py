"""Compare a network with its closed-form stand-in: what leaves, what changes.

`plan_towards` says how λ leads from the one to the other: which parameters train,
which program runs while λ falls, which after it, and what goes in between.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from lambda_vit_jax.core.errors import ModelError, UsageError
from lambda_vit_jax.core.typing import AttentionMode, Params
from lambda_vit_jax.models import edits, map_inputs, surgery
from lambda_vit_jax.models.build import with_mlp_dims
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training import blend
from lambda_vit_jax.training.dilution import Dilution, diluted_modes
from lambda_vit_jax.training.job import Phase
from lambda_vit_jax.training_free import paired


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """From a network to its stand-in, in the blocks of the former.

  Attributes:
    params: to start from: those of the stand-in, and of the network what leaves.
    during: the module while λ falls. Tokens merge in it as in the stand-in.
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

  @property
  def changing(self) -> frozenset[int]:
    """The blocks that λ changes."""
    differ = {
      index
      for index in range(self.during.depth)
      if block_name(index) in self.blend.differences
    }
    left = (*self.removed, *self.mapped, *self.narrowed, *self.dropped)
    return frozenset({*differ, *left})

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

  def dilution(
    self, steps: int, when: Mapping[int, tuple[float, float]] | None = None
  ) -> Dilution:
    """λ by step, in every block; for `when` see `dilute`.

    Raises:
      UsageError: `when` names a block that is missing or does not change.
    """
    blocks = range(self.during.depth)
    missing = sorted({*(when or {})} - {*blocks})
    if missing:
      raise UsageError(
        f'dilute: when names block {missing[0]}; blocks are 0 to {blocks[-1]}'
      )
    idle = sorted({*(when or {})} - self.changing)
    if idle:
      raise UsageError(
        f'dilute: when names block {idle[0]}, which is the same in both '
        f'networks; those that change are {sorted(self.changing)}'
      )
    if not when:
      return Dilution(tuple(blocks), steps)
    shares = [when.get(i, (0.0, 1.0)) for i in blocks]
    spans = [(round(a * steps), round(b * steps)) for a, b in shares]
    return Dilution(tuple(blocks), steps, spans=tuple(spans))


def plan_towards(model: Model, stand_in: Model) -> Plan:
  """Compares a network with its stand-in; see `dilute`.

  Raises:
    ModelError: they are the same, or not made from each other.
  """
  pairing = paired.pair(edits.merge_tokens(stand_in, 0), model)
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
  merge = _merging(stand_in, places, model.depth)
  if not (layers or narrowed or changes.differences or merge):
    raise ModelError(
      'dilute: the two models are the same network; nothing would change'
    )
  inputs = [
    stand_in.module.inputs_of(places[i])
    if i in places and model.attention_modes[i] != 'linear'
    else model.module.inputs_of(i)
    for i in range(model.depth)
  ]
  module = model.module.clone(
    compensation=True,
    dilution_path='to_linear' if mapped else 'attention',
    linear_inputs=map_inputs.check_all_inputs(inputs, model.depth),
    drop_path_rates=(0.0,) * model.depth,
    merge=merge,
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


def _merging(
  stand_in: Model, places: Mapping[int, int], depth: int
) -> tuple[int, ...]:
  """The tokens that merge in each block of the network; none is empty.

  They do from the first step on: a number of tokens has no λ.
  """
  if not any(stand_in.module.merge):
    return ()
  counts = stand_in.module.merge_counts
  return tuple(counts[places[i]] if i in places else 0 for i in range(depth))


def _ends(
  old: Sequence[AttentionMode], new: Sequence[AttentionMode]
) -> dict[str, tuple[int, ...]]:
  """The blocks whose attention becomes `linear`, `identity` or `absent`."""
  layers = [i for i, mode in enumerate(old) if mode != new[i]]
  for index in layers:
    if old[index] != 'full' and (old[index], new[index]) != (
      'linear',
      'absent',
    ):
      raise ModelError(
        f'dilute: block {index} is {old[index]!r} in the first network and '
        f'{new[index]!r} in the second; λ leads from attention, or from a map to '
        'nothing'
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
