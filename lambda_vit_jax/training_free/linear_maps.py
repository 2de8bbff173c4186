"""Replace attention layers by least-squares affine maps: `linearize`.

The attention of a block becomes an affine map of n(x), LayerNorm without affine
parameters, and of further inputs: the ridge regression of what the stream lacks
(docs/training_free.md#affine-maps). This file has the public functions and their
checks; `map_fitter` runs the images through the network and `least_squares`
solves for the maps. Labels are not used.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Sequence

from jax.sharding import Mesh

from lambda_vit_jax.analysis.blocks import check_finished
from lambda_vit_jax.analysis.images import Batches, ImageSet, read_images
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.tables import Shown, Table
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models import map_inputs, modes, surgery
from lambda_vit_jax.models.edits import prune, with_modes
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.training_free import (
  input_choice,
  least_squares,
  mlp_refit,
  norm_recentring,
)
from lambda_vit_jax.training_free.map_fitter import (
  BlockFit,
  MapFitter,
  MapOptions,
  check_target,
)
from lambda_vit_jax.training_free.mlp_refit import MlpFit


@dataclasses.dataclass(frozen=True)
class LinearizeOptions:
  """What `fit_linear` fits; see `linearize`, whose keywords these are.

  With `maps=False`, attention is left out instead, and the five options of the
  maps are not used.
  """

  sequential: bool = True
  ridge: float | str = 'auto'
  rank: int | None = None
  inputs: str | Sequence[str] = ('token',)
  target: str = 'stream'
  recentre: bool = False
  refit: bool = False
  maps: bool = True


@dataclasses.dataclass(frozen=True, repr=False)
class LinearFit(Shown):
  """A network without the attention of some blocks, and how well it was fitted.

  Attributes:
    model: the modified network.
    blocks: one entry per affine map.
    mlps: one entry per MLP that was refitted.
  """

  model: Model
  blocks: tuple[BlockFit, ...] = ()
  mlps: tuple[MlpFit, ...] = ()

  def table(self) -> Table:
    """One row per map and per MLP."""
    rows = [
      (name, str(fit.block_index), f'{fit.residual:.1%}', f'{fit.ridge:g}')
      for name, fits in (('attention', self.blocks), ('MLP', self.mlps))
      for fit in fits
    ]
    removed = list(self.model.removed_layers)
    return Table(
      title=f'{self.model.variant} without the attention of blocks {removed}',
      header=('fit', 'block', 'variance left', 'ridge'),
      rows=rows,
    )


@check_arguments
def linearize(
  model: Model,
  batches: Batches,
  layers: modes.Layers,
  *,
  sequential: bool = True,
  ridge: float | str = 'auto',
  rank: int | None = None,
  inputs: str | Sequence[str] = ('token',),
  target: str = 'stream',
  recentre: bool = False,
  refit: bool = False,
  dense: Model | None = None,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> Model:
  """`model` with the attention of `layers` replaced by affine maps.

  Args:
    model: finished (no block `diluted` or `skip`); not changed.
    batches: an iterable of normalised NHWC arrays, or what else
      `images.read_images` takes; labels are not used. 512 images are enough
      for most networks.
    layers: blocks in mode `full`, or a `Selection`.
    sequential: each map is fitted on the network as modified so far; else all
      on the network as it is, in one pass.
    ridge: penalty of the maps and of `refit`, see `least_squares.solve`; `auto`
      takes for each block what predicts held-out images best.
    rank: the largest rank of a map, None for no limit.
    inputs: `token`, and perhaps `mean` (over the image's tokens), `class_map`
      (the class token has maps of its own), `neighbours` (the mean over 3 x 3
      patches), `positions` (an intercept for each) and `mixing` (values of the
      heads, mixed by fixed matrices over the tokens); their costs are in
      docs/training_free.md#affine-maps. `auto` chooses for each block what predicts
      held-out images best for its cost, which `auto:SHARE` bounds: 0 is that of
      `token` alone, 1 that of attention, 0.5 the default.
    target: `stream` fits a map to what brings the modified network's stream to
      the dense one, so that it also makes up for earlier maps; `attention` to
      what the block's own attention adds.
    recentre: correct the norms after the maps (see `recentre`), which keeps a
      second stream of the images.
    refit: correct the MLPs after the maps (see `refit`); the same.
    dense: the network that maps, `recentre` and `refit` correct towards, where
      `model` has lost attention layers or blocks; `model` itself by default.
    memory_gib: working memory per device, beside the images' streams (images
      × tokens × embed numbers, twice for the target `stream`), which are kept
      on the devices.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    A model whose `layers` are in mode `linear`.

  Raises:
    ModelError: layers that have no attention, or that would leave none; an
      unknown input, or one that the model lacks the grid or class token for.
    DataError: no image, images of another shape, fewer samples (images ×
      tokens) than inputs of the map, or too few images for `recentre` or
      `refit`.
    UsageError: an impossible ridge or rank, or another target.
  """
  options = LinearizeOptions(
    sequential, ridge, rank, inputs, target, recentre, refit
  )
  return fit_linear(
    model,
    batches,
    layers,
    options,
    dense=dense,
    memory_gib=memory_gib,
    mesh=mesh,
  ).model


def fit_linear(
  model: Model,
  batches: Batches,
  layers: modes.Layers,
  options: LinearizeOptions = LinearizeOptions(),
  *,
  dense: Model | None = None,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
  on_progress: Callable[[int, int], None] | None = None,
) -> LinearFit:
  """`linearize`, with a report of how well each part was fitted.

  `on_progress` is called with blocks done and blocks in all, by the fit of the
  maps and then by that of the MLPs. The rest is as for `linearize`.
  """
  layers = _check_layers(model, layers)
  dense = model if dense is None else dense
  how = dataclasses.replace(
    map_options(model, options.inputs),
    target=check_target(options.target),
    ridge=least_squares.check_ridge(options.ridge),
    rank=least_squares.check_rank(options.rank),
  )
  images = read_images(batches, model, mesh)
  if options.refit:
    mlp_refit.check_images(images)
  blocks: tuple[BlockFit, ...] = ()
  mlps: tuple[MlpFit, ...] = ()
  if options.maps:
    fitter = MapFitter(
      model, images, layers, how, dense=dense, memory_gib=memory_gib
    )
    maps = fitter.run(layers if options.sequential else (), on_progress)
    found = with_maps(model, maps)
    blocks = tuple(fitter.fits)
  else:
    found = prune(model, layers, 'absent')
  if options.recentre:
    found = norm_recentring.recentre_on(found, dense, images, memory_gib)
  if options.refit:
    found, mlps = mlp_refit.refit_on(
      found, dense, images, memory_gib, on_progress, how.ridge
    )
  return LinearFit(found, blocks, mlps)


def with_maps(model: Model, maps: dict[int, Params]) -> Model:
  """`model` with these maps instead of the attention of their blocks."""
  left = modes.modes_without(maps, model.attention_modes, 'linear')
  params = surgery.prune_tree(model.params, maps)
  for index, fitted in maps.items():
    name = modes.block_name(index)
    params[name] = params.get(name, {}) | {'attn': fitted}
  inputs = {
    index: map_inputs.inputs_of_map(fitted) for index, fitted in maps.items()
  }
  return model.replace(
    module=with_modes(model.module, left, inputs), params=params
  )


def fit_trials(
  model: Model,
  images: ImageSet,
  removed: Sequence[int],
  candidates: Sequence[int],
  memory_gib: float | None = None,
  inputs: str | Sequence[str] | None = None,
) -> tuple[dict[int, Params], int]:
  """Fits the maps for the trials of one round of a search, in one pass.

  The maps have `inputs`, by default the `linear_inputs` of the model. Those of `removed` are fitted
  in sequence, as by `linearize`, and those of the candidates on the resulting
  network, each independently of the others; they may be all that remain.

  Returns:
    Per block the parameters of its `attn` in mode `linear`, and the number of
    blocks that ran, per image.

  Raises:
    ModelError: layers that have no attention, or a quantised model.
    DataError: fewer samples (images × tokens) than inputs of the map.
  """
  layers = (*removed, *candidates)
  _check_modes(model, layers)
  if inputs is None:
    inputs = map_inputs.union(model.module.linear_inputs)
  options = map_options(model, inputs)
  fitter = MapFitter(model, images, layers, options, memory_gib=memory_gib)
  maps = fitter.run(removed)
  last = max(layers, default=-1)
  again = sum(layer < last for layer in removed)
  return maps, last + 1 + again


def _check_layers(model: Model, layers: modes.Layers) -> tuple[int, ...]:
  layers = modes.check_layers(modes.layer_indices(layers), model.depth)
  _check_modes(model, layers)
  modes.check_layers({*layers, *model.removed_layers}, model.depth)
  return layers


def _check_modes(model: Model, layers: Collection[int]) -> None:
  if model.module.quantization != 'none':
    raise ModelError(
      'the model is quantised; fit its maps first, or dequantize(model)'
    )
  check_finished(model, 'a fit')
  for index, mode in enumerate(model.attention_modes):
    if index in layers and not modes.MODES[mode].has_attention:
      raise ModelError(
        f'block {index} has no attention to replace: it is {mode!r} already'
      )


def map_options(model: Model, inputs: str | Iterable[str]) -> MapOptions:
  """The options of new maps for a model, with these inputs.

  Raises:
    ModelError: an unknown input, one that the model's grid is too small for, or
      `class_map` without a class token.
    UsageError: an impossible budget of `auto`.
  """
  budget = input_choice.auto_budget(inputs)
  if budget is not None:
    known = input_choice.candidates(model.module, budget)
    return MapOptions(known, budget=budget)
  inputs = map_inputs.check_linear_inputs(inputs)
  map_inputs.check_grid(inputs, model.module.grid_size)
  map_inputs.check_class(inputs, model.module.class_token)
  return MapOptions(inputs)
