"""Fit the affine maps of several blocks in one pass over the network.

The streams of all images go from block to block: the embedding and every block
run once, whatever the number of chosen blocks. At a chosen block one pass
collects sums of products (see `least_squares`), and the map is their closed
form. When fitting in sequence, later maps are fitted on the network as modified
so far; the dense network's streams then go along, as what the maps aim at.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lambda_vit_jax.analysis import memory
from lambda_vit_jax.analysis.blocks import BlockRunner
from lambda_vit_jax.analysis.images import ImageSet, Placement
from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import map_inputs, pieces
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free import (
  input_choice,
  least_squares,
  paired,
  token_mixing,
)
from lambda_vit_jax.training_free.cross_validation import (
  ChooseRidge,
  FoldMoments,
  choose_ridge,
  fold_sums,
)
from lambda_vit_jax.training_free.least_squares import AffineMap, CrossMoments
from lambda_vit_jax.training_free.map_design import (
  design,
  num_columns,
  to_parameters,
)
from lambda_vit_jax.training_free.stream_pair import Halves, StreamPair

TARGETS = ('stream', 'attention')
"""What a map is fitted to, given the modified network's stream x.

  stream     x* - x, where x* is the dense stream after the block's attention
  attention  what the block's own attention adds to x
"""


def check_target(target: str) -> str:
  """Returns a name of `TARGETS`; else a `UsageError`."""
  if target not in TARGETS:
    raise UsageError(
      f'linearize.target={target!r} is not known; use {" or ".join(TARGETS)}'
    )
  return target


@dataclasses.dataclass(frozen=True)
class BlockFit:
  """How well one block's attention was replaced.

  Attributes:
    block_index: the block.
    ridge: share of the inputs' mean variance.
    residual: share of the target's variance that the map does not explain, on
      the images that it was fitted on.
    samples: images × tokens.
    inputs: of the map.
  """

  block_index: int
  ridge: float
  residual: float
  samples: int
  inputs: tuple[str, ...] = ('token',)


@dataclasses.dataclass(frozen=True)
class MapOptions:
  """What the maps are of and how they are fitted, checked.

  Attributes:
    inputs: of `map_inputs.LINEAR_INPUTS`; with a budget, those to choose from.
    target: of `TARGETS`.
    ridge: penalty, or None to choose it per block.
    rank: the largest rank of a map, None for no limit.
    budget: of `input_choice`, None for maps of all `inputs`.
  """

  inputs: tuple[str, ...]
  target: str = 'stream'
  ridge: float | None = None
  rank: int | None = None
  budget: float | None = None


@compilation.jit(
  exact=True, static_argnames=('module', 'epsilon', 'options', 'placement')
)
def map_sums(
  x: Array,
  wanted: Array,
  mask: Array,
  sources: Params,
  *,
  module: ViT,
  epsilon: float,
  options: MapOptions,
  placement: Placement,
) -> list[least_squares.Sums]:
  """Sums of products for the map that takes stream x to `wanted`.

  Args:
    x: before the block, `[batch, tokens, embed]`.
    wanted: what x plus the output of the map should be.
    mask: `[batch]`, False for padding.
    sources: parameters from which inputs are computed, see `design`.
    module: of the stream.
    epsilon: of the block's norms.
    options: of the fit.
    placement: of the streams.

  Returns:
    Per group of tokens `cross_validation.fold_sums`. With `class_map`, class
    tokens are the first group.
  """
  features = design(module, options.inputs, epsilon, sources, x)
  outputs = wanted - x
  weights = jnp.broadcast_to(mask[:, None], x.shape[:2])
  sums = [
    fold_sums(features[:, tokens], outputs[:, tokens], weights[:, tokens])
    for tokens in _groups(options.inputs)
  ]
  return jax.lax.with_sharding_constraint(sums, placement.replicated)


def check_samples(
  model: Model, images: ImageSet, options: MapOptions, held: int = 0
) -> None:
  """Refuses fewer samples (images × tokens) than inputs of a map.

  Args:
    model: whose tokens are counted.
    images: those to fit on.
    options: with the inputs.
    held: how many of those given were held back, a quarter, if any.

  Raises:
    DataError: says how many images are needed.
  """
  tokens = model.module.num_tokens
  width = num_columns(model.module, options.inputs)
  if images.total * tokens <= width:
    least = paired.least_given(width // tokens + 1, held)
    raise DataError(
      f'{images.total} images of {tokens} tokens are {images.total * tokens} '
      f'samples, too few for an affine map of {width} inputs; give at least '
      f'{least} images, better 512'
    )


def _groups(inputs: tuple[str, ...]) -> list[slice]:
  """The tokens of each group."""
  own = map_inputs.CLASS_MAP in inputs
  return [slice(1), slice(1, None)] if own else [slice(None)]


def fit_map(
  index: int,
  module: ViT,
  options: MapOptions,
  halves: Iterable[Halves],
  sources: Params,
  placement: Placement,
  *,
  choose: ChooseRidge = choose_ridge,
) -> tuple[BlockFit, Params]:
  """The map that takes a block's stream to a wanted one.

  Args:
    index: of the block.
    module: of the network.
    options: of the fit.
    halves: of each micro-batch, as of `StreamPair.halves`.
    sources: parameters from which inputs are computed, see `design`.
    placement: of the streams.
    choose: takes the moments of folds to a ridge, where none is given.

  Returns:
    How well it was fitted, and the parameters of `attn` in mode `linear`.

  Raises:
    ModelError: activations that are not finite; names the block.
  """
  groups = [FoldMoments() for _ in _groups(options.inputs)]
  placed = placement.replicate(sources)
  # The same for all blocks, so that they share a program.
  stem = pieces.stem_of(module)
  for position, streams in enumerate(halves):
    sums = map_sums(
      *streams,
      placed,
      module=stem,
      epsilon=module.norm_eps[index],
      options=options,
      placement=placement,
    )
    for group, values in zip(groups, jax.device_get(sums), strict=True):
      group.add(position, values)
  moments = [group.folds for group in groups]
  for fold in moments[-1]:
    least_squares.require_finite(f'block {index}', fold.in_out)
  inputs = options.inputs
  if options.budget is not None:
    inputs = input_choice.choose_inputs(
      module, options.inputs, options.budget, moments
    )
    moments = input_choice.restrict(module, options.inputs, inputs, moments)
  ridge, *maps = _solve_groups(options, moments, choose)
  fit = BlockFit(
    index,
    ridge,
    least_squares.residual_share(*maps),
    round(sum(whole.count for whole, _ in maps)),
    inputs,
  )
  # The class token's map comes first, where it has its own.
  *own, shared = (affine for _, affine in maps)
  fitted = to_parameters(module, inputs, shared, *own)
  return fit, (sources if 'mixing' in inputs else {}) | fitted


def _solve_groups(
  options: MapOptions,
  groups: Sequence[Sequence[CrossMoments]],
  choose: ChooseRidge,
) -> tuple[Any, ...]:
  """The ridge, and per group of tokens its moments and map."""
  *first, rest = groups
  whole = least_squares.merged(rest)
  ridge, shared = _solve(options, rest, choose)
  if not first:
    return ridge, (whole, shared)
  # The class token is one sample per image, too few for a map of its own:
  # its map is that of the others plus a correction, which is penalised.
  class_tokens = least_squares.merged(first[0])
  corrections = [fold.beyond(shared) for fold in first[0]]
  _, correction = _solve(options, corrections, choose)
  own = AffineMap(
    shared.kernel + correction.kernel, shared.bias + correction.bias
  )
  if options.rank is not None:
    own = least_squares.truncate(class_tokens, own, options.rank)
  return ridge, (class_tokens, own), (whole, shared)


def _solve(
  options: MapOptions, folds: Sequence[CrossMoments], choose: ChooseRidge
) -> tuple[float, AffineMap]:
  """The ridge, given or chosen, and the map of all folds."""
  ridge = options.ridge
  if ridge is None:
    ridge = choose(folds)
  whole = least_squares.merged(folds)
  return ridge, least_squares.solve(whole, ridge, options.rank)


class MapFitter:
  """Runs all images through the network, and fits a map per chosen block.

  Attributes:
    fits: how well each block was replaced, so far.
  """

  def __init__(
    self,
    model: Model,
    images: ImageSet,
    layers: Sequence[int],
    options: MapOptions,
    *,
    dense: Model | None = None,
    memory_gib: float | None = None,
  ):
    """Checks the number of samples; for the arguments, see `linearize`.

    Raises:
      DataError: fewer samples (images × tokens) than inputs of the map.
      ModelError: `dense` differs in more than modes, blocks and widths.
    """
    check_samples(model, images, options)
    self.fits: list[BlockFit] = []
    self._images = images
    self._layers = layers
    self._options = options
    self._runner = BlockRunner(model, images.placement)
    origins: tuple[int, ...] = ()
    reference = None
    if dense is not None and dense is not model:
      pairing = paired.pair(model, dense)
      if options.target == 'stream':
        paired.check_not_doubled(model, pairing, 'linearize')
        origins = pairing.origins
        reference = BlockRunner(dense, images.placement)
    self._streams = StreamPair(
      self._runner,
      images,
      memory.micro_batch_size(self._runner.module, images, memory_gib),
      own=options.target == 'attention',
      dense=reference,
      origins=origins,
    )

  def run(
    self,
    sequential: Collection[int],
    on_progress: Callable[[int, int], None] | None = None,
  ) -> dict[int, Params]:
    """Fits all layers; those in `sequential` on each other's maps.

    To be called once.

    Returns:
      Per layer the parameters of its `attn` in mode `linear`.
    """
    streams = self._streams
    found = {}
    # No later block is read.
    last = max(self._layers, default=-1)
    for index in range(last + 1):
      if index not in self._layers:
        streams.run(index)
      else:
        stays = index not in sequential
        fit, found[index] = fit_map(
          index,
          self._runner.module,
          self._options,
          streams.halves(index, stays),
          self._sources(index),
          self._images.placement,
        )
        self.fits.append(fit)
        if not stays and index < last:
          self._runner.use_maps({index: found[index]})
          streams.run_map(index)
      jax.block_until_ready(streams.here)
      if on_progress is not None:
        on_progress(index + 1, last + 1)
    return found

  def _sources(self, index: int) -> Params:
    """Parameters from which inputs are computed; a pass where there are any."""
    if 'mixing' not in self._options.inputs:
      return {}
    _, params = self._runner.block(index)
    return token_mixing.fit_mixing(
      index,
      self._streams.reference(index),
      token_mixing.values_of(params),
      self._streams.before(index),
      self._images.placement,
    )
