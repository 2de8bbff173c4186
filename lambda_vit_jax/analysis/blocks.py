"""The compiled functions of a search over variants, and their memory.

Four of them serve a search of any length (METHOD, section 4): `embed`,
`attend` and `pass_by` (a block with and without attention), and `finish`
(a block on the tokens that are read, and the moments of the readout).
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import PartitionSpec

from lambda_vit_jax.analysis import moments
from lambda_vit_jax.analysis.images import AXIS, ImageSet, Placement
from lambda_vit_jax.analysis.memory import micro_batch_size
from lambda_vit_jax.analysis.moments import Moments
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation


@compilation.jit(static_argnames=('stem', 'placement'))
def embed(
  stem: ViT, params: Params, images: Array, placement: Placement
) -> tuple[Array, Array]:
  """The first stream, and its read tokens."""
  x = pieces.embed(stem, params, images)
  return _split((x, x[:, : stem.read_tokens]), placement)


@compilation.jit(static_argnames=('block', 'placement'))
def attend(
  block: EncoderBlock, params: Params, x: Array, placement: Placement
) -> Array:
  """A block on all tokens, in mode `full` or `linear`."""
  return _split(pieces.run_block(block, params, x)[0], placement)


@compilation.jit(static_argnames=('block', 'placement'))
def pass_by(
  block: EncoderBlock,
  params: Params,
  x: Array,
  residual_scale: Array,
  placement: Placement,
) -> Array:
  """The MLP half on `residual_scale · x`: skip, absent (1) or identity (2)."""
  x = residual_scale.astype(x.dtype) * x
  return _split(pieces.run_block(block, params, x)[0], placement)


def _split(tree: Any, placement: Placement) -> Any:
  return jax.tree.map(
    lambda leaf: jax.lax.with_sharding_constraint(leaf, placement.batch), tree
  )


def walk(
  model: Model,
  images: ImageSet,
  step: Callable[..., tuple[Array, Any]],
  memory_gib: float | None = None,
) -> Iterator[tuple[int, Any]]:
  """Runs all images through the blocks, and yields what `step` measures.

  Args:
    model: as it is; a block in mode `diluted` has no λ here and is refused.
    images: see `images.read_images`.
    step: jitted, takes (block, params, x, mask, placement) to the stream
      behind the block and any tree; block and placement are static.
    memory_gib: activations held at a time, per device.

  Yields:
    The block's index and the tree, per micro-batch and block.
  """
  module, place = model.module, images.placement
  params = place.replicate(model.params)
  stem = pieces.stem_of(module)
  outer = pieces.stem_params(params, module.depth)
  for batch in images.micro_batches(
    micro_batch_size(module, images, memory_gib)
  ):
    x, _ = embed(stem, outer, batch['image'], place)
    for index, mode in enumerate(module.attention_modes):
      block = pieces.block_of(module, index, mode)
      x, measured = step(
        block, pieces.block_params(params, index), x, batch['mask'], place
      )
      yield index, measured


def pooled_moments(
  features: Array, mask: Array, placement: Placement
) -> Moments:
  """Moments of `[batch, ..., channels]` split over the devices; traceable."""
  split = PartitionSpec(AXIS)
  return jax.shard_map(
    lambda f, m: moments.merge_over_axis(moments.moments_of(f, m), AXIS),
    mesh=placement.mesh,
    in_specs=(split, split),
    out_specs=PartitionSpec(),
  )(features, mask)
