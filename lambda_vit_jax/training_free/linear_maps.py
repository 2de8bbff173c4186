"""Attention replaced by least-squares affine maps, without training (METHOD 6).

`linear_fitter` carries the images through the network and fits on the way;
here is what can be asked for, and what is refused. Labels are not used.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import ImageSet, read_images
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import modes as modes_lib
from lambda_vit_jax.models import surgery
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import (
  least_squares,
  mlp_refit,
  norm_recentring,
)
from lambda_vit_jax.training_free.map_fitter import BlockFit, MapFitter, Plan
from lambda_vit_jax.training_free.mlp_refit import MlpFit


def linearize(
  model: Model,
  batches: Iterable[Array | Mapping[str, Array]],
  layers: Iterable[int],
  *,
  sequential: bool = True,
  ridge: float | str = 'auto',
  rank: int | None = None,
  inputs: Sequence[str] = ('token',),
  recentre: bool = False,
  refit: bool = False,
  dense: Model | None = None,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> Model:
  """`model` with the attention of `layers` replaced by affine maps.

  Args:
    model: finished (no block `diluted` or `skip`); left as it is.
    batches: an iterable of normalised NHWC arrays or of dicts with `image`
      (and `mask`), without labels; 512 images are enough for most networks.
    layers: blocks in mode `full`.
    sequential: each map is fitted on the network as modified so far; else
      all on the network as it is, in one pass.
    ridge: see `linear.solve`; `auto` takes for each block what predicts
      held-out images best (`linear.choose_ridge`).
    rank: the largest rank of a map, None for no limit.
    inputs: `token`, and perhaps `mean` (the mean over the image's tokens is
      a further input) and `class_map` (the class token has a map of its own).
    recentre: correct the norms behind the maps (`recentring.recentre`), which
      keeps a second stream of the images.
    refit: let the MLPs behind make up for what the maps leave
      (`refitting.refit`); the same.
    dense: the network that `recentre` and `refit` correct towards, where
      `model` is one of fewer blocks; `model` itself by default.
    memory_gib: working memory per device, beside the images' streams (images
      × tokens × embed numbers), which are kept on the devices.
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    A model whose `layers` are in mode `linear`.

  Raises:
    ModelError: layers that have no attention, or that would leave none.
    DataError: no image, images of another shape, fewer samples (images ×
      tokens) than inputs of the map, or too few images for `recentre` or
      `refit`.
    UsageError: an impossible ridge or rank.
  """
  return fit_linear(
    model,
    batches,
    layers,
    sequential=sequential,
    ridge=ridge,
    rank=rank,
    inputs=inputs,
    recentre=recentre,
    refit=refit,
    dense=dense,
    memory_gib=memory_gib,
    mesh=mesh,
  )[0]


def fit_linear(
  model: Model,
  batches: Iterable[Array | Mapping[str, Array]],
  layers: Iterable[int],
  *,
  sequential: bool = True,
  ridge: float | str = 'auto',
  rank: int | None = None,
  inputs: Sequence[str] = ('token',),
  recentre: bool = False,
  refit: bool = False,
  maps: bool = True,
  dense: Model | None = None,
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
  on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Model, tuple[BlockFit, ...], tuple[MlpFit, ...]]:
  """`linearize`, how well each block was replaced, and what MLPs make up for.

  Args:
    model: see `linearize`, as all that follow.
    batches: images.
    layers: blocks.
    sequential: block after block.
    ridge: of the least squares.
    rank: of the maps.
    inputs: of the maps.
    recentre: norms.
    refit: MLPs.
    maps: without, the attentions are left out, and `inputs`, `ridge` and
      `rank` are not used.
    dense: what is corrected towards.
    memory_gib: working memory.
    mesh: devices.
    on_progress: called with blocks done and blocks in all, by the fit of the
      maps and then by that of the MLPs.
  """
  layers = _check_layers(model, layers)
  dense = model if dense is None else dense
  plan = _plan(model, inputs, ridge, rank)
  images = read_images(batches, model, mesh)
  if refit:
    mlp_refit.check_images(images)
  fits: tuple[BlockFit, ...] = ()
  mlps: tuple[MlpFit, ...] = ()
  if maps:
    found, fits = _fit(
      model, images, layers, plan, sequential, memory_gib, on_progress
    )
  else:
    found = prune(model, layers, 'absent')
  if recentre:
    found = norm_recentring.recentre_on(found, dense, images, memory_gib)
  if refit:
    found, mlps = mlp_refit.refit_on(
      found, dense, images, memory_gib, on_progress
    )
  return found, fits, mlps


def _plan(
  model: Model, inputs: Sequence[str], ridge: float | str, rank: int | None
) -> Plan:
  number = least_squares.check_ridge(ridge)
  if rank is not None and rank < 1:
    raise UsageError(f'rank={rank}: give at least 1, or none for no limit')
  return Plan(_check_inputs(model, inputs), number, rank)


def _fit(
  model: Model,
  images: ImageSet,
  layers: tuple[int, ...],
  plan: Plan,
  sequential: bool,
  memory_gib: float | None,
  on_progress: Callable[[int, int], None] | None,
) -> tuple[Model, tuple[BlockFit, ...]]:
  """Maps in place of the attentions, and how well they do."""
  _check_samples(model, images.total, plan)
  fitter = MapFitter(model, images, layers, plan, memory_gib)
  fitted = fitter.run(layers if sequential else (), on_progress)
  modes = modes_lib.modes_without(layers, model.attention_modes, 'linear')
  params = surgery.prune_tree(model.params, layers)
  for index, leaves in fitted.items():
    params[block_name(index)] |= {'attn': leaves}
  module = model.module.clone(attention_modes=modes, linear_inputs=plan.inputs)
  return model.replace(module=module, params=params), tuple(fitter.fits)


def fit_trials(
  model: Model,
  images: ImageSet,
  removed: Sequence[int],
  candidates: Sequence[int],
  memory_gib: float | None = None,
) -> tuple[dict[int, Params], int]:
  """Maps for the trials of one round of a search, in one pass.

  Those of `removed` are what `linearize` fits in sequence. Those of the
  candidates are fitted on that network, all at once: each as if it were the
  only one to follow.

  Args:
    model: see `linearize`; the maps have its `linear_inputs`.
    images: see `images.read_images`.
    removed: blocks in mode `full` that were chosen already.
    candidates: further ones, which may be all that are left.
    memory_gib: working memory, see `linearize`.

  Returns:
    Per block the parameters of its `attn` in mode `linear`, and the number of
    blocks that ran, per image.

  Raises:
    ModelError: layers that have no attention, or a quantised model.
    DataError: fewer samples (images × tokens) than inputs of the map.
  """
  layers = (*removed, *candidates)
  _check_modes(model, layers)
  plan = Plan(model.module.linear_inputs, None, None)
  _check_samples(model, images.total, plan)
  fitter = MapFitter(model, images, layers, plan, memory_gib)
  maps = fitter.run(removed)
  last = max(layers, default=-1)
  again = sum(layer < last for layer in removed)
  return maps, last + 1 + again


def _check_layers(model: Model, layers: Iterable[int]) -> tuple[int, ...]:
  layers = modes_lib.check_layers(layers, model.depth)
  _check_modes(model, layers)
  modes_lib.check_layers({*layers, *model.removed_layers}, model.depth)
  return layers


def _check_modes(model: Model, layers: Collection[int]) -> None:
  if model.module.quantization != 'none':
    raise ModelError(
      'the model is quantised; fit its maps first, or dequantize(model)'
    )
  for index, mode in enumerate(model.attention_modes):
    if mode in ('diluted', 'skip'):
      raise ModelError(
        f'block {index} is in mode {mode!r}; a fit starts from full, '
        'identity, absent or linear blocks'
      )
    if index in layers and mode != 'full':
      raise ModelError(
        f'block {index} has no attention to replace: it is {mode!r} already'
      )


def _check_inputs(model: Model, inputs: Iterable[str]) -> tuple[str, ...]:
  inputs = modes_lib.check_linear_inputs(inputs)
  older = model.module.linear_inputs
  if 'linear' in model.attention_modes and inputs != older:
    raise ModelError(
      f'the model has affine maps of {list(older)} already, and new ones would '
      f'be of {list(inputs)}; use the same inputs'
    )
  return inputs


def _check_samples(model: Model, images: int, plan: Plan) -> None:
  """Refuses a fit that has as many unknowns as equations."""
  tokens, inputs = model.module.num_tokens, model.module.embed_dim
  inputs *= 1 + ('mean' in plan.inputs)
  if images * tokens <= inputs:
    raise DataError(
      f'{images} images of {tokens} tokens are {images * tokens} samples, too '
      f'few for an affine map of {inputs} inputs; give at least '
      f'{inputs // tokens + 1} images, better 512'
    )
