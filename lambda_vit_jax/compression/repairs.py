"""The closed form that makes up for each part, fitted on the network as it is.

  attention  an affine map to the dense stream (`linear_maps`), then a refit of
             the block's MLP (`mlp_refit`); without maps the refit alone
  map        a refit of the block's MLP
  neurons    the neurons that stay predict those that go (`neurons`)
  mlp        a refit of the next block's MLP
  block      a refit of the MLP before it, or of the next one where there is none
  tokens     nothing

Every fit aims at the dense network's stream, so that it makes up for what earlier
steps left as well. It is a function of the network before the block and of the
images: the same again when a search is resumed.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence

import jax

from lambda_vit_jax.compression import parts
from lambda_vit_jax.compression.parts import Part
from lambda_vit_jax.compression.streams import Streams
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces, surgery
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.surgery import without_attention
from lambda_vit_jax.training_free import (
  cross_validation,
  least_squares,
  map_fitter,
  mlp_refit,
  neurons,
  token_mixing,
)
from lambda_vit_jax.training_free.least_squares import CrossMoments
from lambda_vit_jax.training_free.map_fitter import MapOptions

# Of a fit of an MLP, for each of its neurons: more hardly change it.
_SAMPLES = 20


@dataclasses.dataclass(frozen=True)
class Repair:
  """What makes up for a part.

  Attributes:
    part: what goes.
    params: new parameters of blocks, by their index in the variant.
    inputs: of the map that takes the place of an attention layer, or none.
  """

  part: Part
  params: Mapping[int, Params]
  inputs: tuple[str, ...] = ()

  @property
  def first(self) -> int:
    """The first block that changes, by its index in the variant."""
    return min((self.part.block, *self.params))

  @property
  def last(self) -> int:
    """The last one; the repair does not depend on any after it."""
    return max((self.part.block, *self.params))

  def apply(self, model: Model) -> Model:
    """The network without the part."""
    return parts.without(model, self.part, self.inputs, self.params)


@dataclasses.dataclass(frozen=True)
class RepairOptions:
  """How parts are made up for.

  Attributes:
    maps: options of the maps that take the place of attention; None for
      nothing in its place.
    refit: whether MLPs are refitted. Without maps and without this, parts are
      left out and nothing makes up for them.
    ridge: penalty of every fit; None to choose each.
  """

  maps: MapOptions | None
  refit: bool
  ridge: float | None


class Repairer:
  """Fits the repair of each part of a network, towards the dense one."""

  def __init__(self, streams: Streams, dense: Streams, options: RepairOptions):
    """Keeps the streams of both networks on the images to fit on.

    Args:
      streams: of the network that is compressed.
      dense: of the dense one, in micro-batches of the same size.
      options: of all repairs.
    """
    self._streams, self._dense = streams, dense
    self._options = options

  def __call__(self, part: Part) -> Repair:
    """The repair of one of `parts.parts_left`.

    Raises:
      ModelError: activations that are not finite; names the block.
    """
    repair = self._stand_in(part)
    if self._options.refit and part.kind not in ('neurons', 'tokens'):
      repair = self._refitted(repair)
    placed = self._streams.placement.replicate(dict(repair.params))
    return dataclasses.replace(repair, params=placed)

  def _stand_in(self, part: Part) -> Repair:
    """What takes the part's own place."""
    if part.kind == 'attention' and self._options.maps is not None:
      return self._map(part, self._options.maps)
    if part.kind == 'neurons':
      return self._neurons(part)
    return Repair(part, {})

  def _map(self, part: Part, options: MapOptions) -> Repair:
    """An affine map in the place of an attention layer."""
    here, there = self._streams, self._dense
    position = parts.position_of(here.model, part.block)
    dense = parts.position_of(there.model, part.block)
    params = here.model.params[block_name(position)]
    sources: Params = {}
    if 'mixing' in options.inputs:
      sources = token_mixing.fit_mixing(
        position,
        there.block(dense),
        token_mixing.values_of(params),
        zip(
          here.before(position), there.before(dense), here.masks, strict=True
        ),
        here.placement,
      )
    fit, fitted = map_fitter.fit_map(
      position,
      here.model.module,
      options,
      zip(here.before(position), there.between(dense), here.masks, strict=True),
      sources,
      here.placement,
      choose=cross_validation.quick_ridge,
    )
    block = without_attention(params) | {'attn': fitted}
    return Repair(part, {part.block: block}, fit.inputs)

  def _refitted(self, repair: Repair) -> Repair:
    """A repair with a refit of the MLP that makes up for the part as well."""
    here = self._streams
    block = parts.mender(here.model, repair.part)
    if block is None:
      return repair
    model = repair.apply(here.model)
    position = parts.position_of(model, block)
    # Up to there, both networks have the same blocks at the same positions.
    first = parts.position_of(here.model, min(repair.first, block))
    between = here.between(position, model, first)
    new = self._corrected(model, position, between)
    return dataclasses.replace(repair, params={**repair.params, block: new})

  def settled(self, position: int) -> Params:
    """A block of the network as it is, with its MLP refitted; on the devices."""
    here = self._streams
    between = here.between(position)
    new = self._corrected(here.model, position, between)
    placed: Params = here.placement.replicate(new)
    return placed

  def _corrected(
    self, model: Model, position: int, between: Iterable[Array]
  ) -> Params:
    """A block whose MLP brings the stream nearer to the dense one."""
    folds = self._hidden(model, position, between)
    ridge = self._ridge(folds)
    correction = least_squares.solve(least_squares.merged(folds), ridge)
    params = model.params[block_name(position)]
    return mlp_refit.corrected(params, correction)

  def _neurons(self, part: Part) -> Repair:
    """Fewer neurons, of which those that stay make up for the others."""
    model = self._streams.model
    position = parts.position_of(model, part.block)
    params = model.params[block_name(position)]
    folds = self._hidden(model, position, self._streams.between(position))
    whole = least_squares.merged(folds)
    kernel = neurons.output_weights(params).kernel
    width = parts.narrower(model, part)
    kept = neurons.removal_order(whole, kernel, least=width).kept(width)
    if not self._options.refit:
      narrowed = params | {'mlp': surgery.take_neurons(params['mlp'], kept)}
      return Repair(part, {part.block: narrowed})
    ridge = self._ridge(
      [neurons.without_neurons(fold, kernel, kept) for fold in folds]
    )
    new = neurons.repaired(params, whole, kept, ridge)
    return Repair(part, {part.block: new})

  def _ridge(self, folds: Sequence[CrossMoments]) -> float:
    """The ridge of an MLP's fit, given or chosen."""
    if self._options.ridge is not None:
      return self._options.ridge
    return cross_validation.quick_ridge(folds)

  def _hidden(
    self, model: Model, position: int, between: Iterable[Array]
  ) -> list[CrossMoments]:
    """Moments of a block's hidden layer, and of what the stream then lacks.

    Args:
      model: the network.
      position: of the block.
      between: its streams before the MLP, one per micro-batch.
    """
    here = self._streams
    module = model.module
    narrow = position >= module.last_mixing_block
    block = pieces.block_of(module, position, 'absent')
    params = here.placement.replicate(pieces.mlp_params(model.params, position))
    wanted = self._dense.before(self._target(model, position))
    # If no attention follows, no other tokens are computed.
    stop = module.read_tokens if narrow else None
    wanted_samples = _SAMPLES * model.mlp_dims[position]
    images = -(-wanted_samples // (stop or module.num_tokens))
    enough = -(-images // len(here.masks[0]))
    moments = cross_validation.FoldMoments()
    streams = zip(between, wanted, here.masks, strict=True)
    for place, each in enumerate(itertools.islice(streams, enough)):
      sums = mlp_refit.hidden_sums(
        block, params, *each, stop=stop, placement=here.placement
      )
      moments.add(place, jax.device_get(sums))
    folds = moments.folds
    for fold in folds:
      least_squares.require_finite(f'block {position}', fold.in_out, fold.in_in)
    return folds

  def _target(self, model: Model, position: int) -> int:
    """The dense block before which the stream after a block should be."""
    later = model.block_origins[position + 1 :]
    dense = self._dense.model
    return parts.position_of(dense, later[0]) if later else dense.depth
