"""Refit second MLP layers to the dense model's residual stream.

Both models run block by block on the same images. After each MLP, their
streams differ by a gap, and a ridge regression on the MLP's hidden layer h
predicts the gap. The prediction is added to the layer:

  (ΔW, Δb) = argmin Σ |gap - h·ΔW - Δb|² + ridge·|ΔW|²
  fc2 <- fc2 + (ΔW, Δb)

block after block, on the model as corrected so far, from the first change to
the end. Where whole blocks were dropped after the MLP, the gap is to the dense
stream after them. Labels are not used, and inference costs nothing more.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import (
  Batches,
  ImageSet,
  Placement,
  read_images,
)
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.runtime import compilation
from lambda_vit_jax.training_free import least_squares, paired
from lambda_vit_jax.training_free.cross_validation import (
  FoldMoments,
  choose_ridge,
  fold_sums,
)
from lambda_vit_jax.training_free.least_squares import AffineMap

# A LayerScale γ that is smaller, relative to the largest, counts as zero.
_CLOSED = 1e-6


@dataclasses.dataclass(frozen=True)
class MlpFit:
  """How much of the gap after a block its refitted MLP closes.

  Attributes:
    block_index: the block.
    ridge: share of the hidden layer's mean variance.
    residual: share of the gap's variance that remains, on the images that it
      was fitted on.
  """

  block_index: int
  ridge: float
  residual: float


@check_arguments
def refit(
  model: Model,
  dense: Model,
  batches: Batches,
  *,
  ridge: float | str = 'auto',
  memory_gib: float | None = None,
  mesh: Mesh | None = None,
) -> Model:
  """`model` with MLPs corrected for what it lacks.

  Args:
    model: finished, with blocks `absent` or `linear` (`prune(dense, layers,
      'absent')`, `linearize`), with fewer of them (`drop_blocks`) or with
      narrower MLPs (`narrow`), not folded; not changed.
    dense: the model before attention layers were replaced or left out, or
      blocks dropped.
    batches: an iterable of normalised NHWC arrays, or what else
      `images.read_images` takes; labels are not used. 512 images are enough
      for most networks.
    ridge: penalty, see `least_squares.solve`; `auto` takes for each block what
      predicts held-out images best, which takes four eigendecompositions of a
      hidden × hidden matrix a block; a number takes none.
    memory_gib: working memory per device, beside two streams of the images
      (images × tokens × embed numbers each), which are kept on the devices,
      and sums of products (four times hidden × (hidden + embed) numbers).
    mesh: devices that share the images; see `images.read_images`.

  Returns:
    `model` with another `mlp.fc2` in the first block after which the streams
    differ, and in all later blocks; float32 arrays on the host.

  Raises:
    ModelError: models that differ in more than modes, blocks and widths,
      changed blocks `identity` (they double the stream), or activations that
      are not finite.
    DataError: fewer than 32 images, or images of another shape.
    UsageError: an impossible ridge.
  """
  checked = least_squares.check_ridge(ridge)
  images = read_images(batches, model, mesh)
  return refit_on(model, dense, images, memory_gib, ridge=checked)[0]


def refit_on(
  model: Model,
  dense: Model,
  images: ImageSet,
  memory_gib: float | None = None,
  on_progress: Callable[[int, int], None] | None = None,
  ridge: float | None = None,
) -> tuple[Model, tuple[MlpFit, ...]]:
  """`refit` on images that were read, with a report on each MLP.

  `on_progress` is called with blocks done and blocks in all. With `ridge=None`
  it is chosen per block.
  """
  pairing = paired.pair(model, dense)
  paired.check_not_doubled(model, pairing, 'refit')
  check_images(images)
  first = pairing.first_short
  if first == model.depth:
    return model, ()
  module = model.module
  here, there = paired.at_block(model, dense, images, first, memory_gib)
  fits = []
  for index in range(first, model.depth):
    here.run_attention(index)
    if not module.hidden_dims[index]:
      # Without an MLP nothing can be corrected; the next one makes up for it.
      here.run_mlp(index)
      continue
    there.run_to(pairing.targets[index])
    moments = hidden_moments(here, index, there.streams)
    fit, correction = _solve(index, moments, ridge)
    fits.append(fit)
    name = block_name(index)
    here.update({name: corrected(here.params[name], correction)})
    here.run_mlp(index)
    if on_progress is not None:
      on_progress(index + 1, model.depth)
  return model.replace(params=here.params), tuple(fits)


def check_images(images: ImageSet, held: int = 0) -> None:
  """Refuses fewer images than `refit` needs, with a `DataError`."""
  paired.check_images(images, 'fit MLPs on', held)


def hidden_moments(
  here: paired.StreamedModel, index: int, wanted: Sequence[Array] | None
) -> FoldMoments:
  """Moments of a block's hidden layer, and of what the stream then lacks.

  Args:
    here: before the MLP of the block.
    index: the block, which has an MLP.
    wanted: the streams that should follow it, one per micro-batch; None for
      those that do, which lack nothing.
  """
  module = here.runner.module
  narrow = index >= module.last_mixing_block
  moments = FoldMoments()
  for position, mask in enumerate(here.masks):
    sums = hidden_sums(
      *here.runner.mlp(index),
      here.streams[position],
      None if wanted is None else wanted[position],
      mask,
      # If no attention follows, no other tokens are computed.
      stop=module.read_tokens if narrow else None,
      placement=here.runner.placement,
    )
    moments.add(position, jax.device_get(sums))
  return moments


@compilation.jit(exact=True, static_argnames=('block', 'stop', 'placement'))
def hidden_sums(
  block: EncoderBlock,
  params: Params,
  x: Array,
  target: Array | None,
  mask: Array,
  *,
  stop: int | None,
  placement: Placement,
) -> least_squares.Sums:
  """Sums of products of the hidden layer with the gap after the block.

  Of the first `stop` tokens; x is the stream between the halves of the block,
  `target` the dense stream after it, or None for no gap.
  """
  hidden = pieces.hidden_layer(block, params, x)[:, :stop]
  output, _ = pieces.run_block(block, params, x)
  gap = ((output if target is None else target) - output)[:, :stop]
  keep = jnp.broadcast_to(mask[:, None], gap.shape[:2])
  sums = fold_sums(hidden, gap, keep)
  return jax.lax.with_sharding_constraint(sums, placement.replicated)


def _solve(
  index: int, moments: FoldMoments, ridge: float | None
) -> tuple[MlpFit, AffineMap]:
  folds = moments.folds
  whole = least_squares.merged(folds)
  least_squares.require_finite(f'block {index}', whole.in_out, whole.in_in)
  if ridge is None:
    ridge = choose_ridge(folds)
  correction = least_squares.solve(whole, ridge)
  residual = least_squares.residual_share((whole, correction))
  return MlpFit(index, ridge, residual), correction


def corrected(params: Params, correction: AffineMap) -> Params:
  """The parameters of a block whose MLP adds the correction to the stream."""
  # LayerScale follows fc2: a channel whose γ is zero cannot be corrected.
  gamma = np.asarray(params.get('ls2', {}).get('gamma', 1.0), np.float64)
  open_ = abs(gamma) > _CLOSED * abs(gamma).max()
  share = np.where(open_, 1.0 / np.where(open_, gamma, 1.0), 0.0)
  old = params['mlp']['fc2']
  new = {
    'kernel': np.asarray(old['kernel']) + correction.kernel * share,
    'bias': np.asarray(old['bias']) + correction.bias * share,
  }
  single = {name: np.asarray(leaf, np.float32) for name, leaf in new.items()}
  return params | {'mlp': params['mlp'] | {'fc2': single}}
