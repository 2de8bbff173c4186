"""The compiled functions of a search over variants, and their memory.

Four of them serve a search of any length (METHOD, section 4): `embed`,
`attend` and `pass_by` (a block with and without attention), and `finish`
(a block on the tokens that are read, and the moments of the readout).
"""

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.entropy import Moments
from lambda_vit_jax.analysis.images import AXIS, ImageSet, Placement
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation

Target = Literal['logits', 'features', 'loss']

GIB = 2**30

# A micro-batch of this many tokens stays in a CPU's cache and is long enough
# for its matrix products.
_CPU_TOKENS = 4096

# Shares of the device's memory that a search takes where no budget is given.
_CPU_SHARE = 0.25
_ACCELERATOR_SHARE = 0.7
_LARGEST_MICRO_BATCH = 1024


@dataclasses.dataclass(frozen=True)
class End:
  """Static description of the end of the network.

  Attributes:
    attend: the block with its attention (mode `full` or `linear`).
    plain: the same without.
    stem: the module that reads out.
    target: what moments are taken of.
    placement: devices of the micro-batch.
  """

  attend: EncoderBlock
  plain: EncoderBlock
  stem: ViT
  target: Target
  placement: Placement


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


@compilation.jit(static_argnames=('end',), donate_argnames=('state',))
def finish(
  end: End,
  attention: Params,
  mlp: Params,
  outer: Params,
  streams: tuple[Array, Array],
  batch: dict[str, Array],
  state: Moments,
  *,
  residual_scale: Array,
  use_attention: Array,
  use_stream: Array,
  is_last: Array,
) -> tuple[Array, Moments]:
  """One block on the read tokens, and the moments of the readout behind it.

  Args:
    end: static.
    attention: parameters of a block with its attention.
    mlp: parameters of the MLP half, of the block itself.
    outer: parameters of the stem.
    streams: the stream of all tokens `[batch, tokens, embed]`, and one of
      the read tokens alone.
    batch: `label` and `mask` of the images.
    state: moments per shard so far; donated.
    residual_scale: r of a block without attention.
    use_attention: whether the block has its attention here.
    use_stream: whether the block reads the stream of all tokens.
    is_last: whether the network ends here; otherwise no moments are added.

  Returns:
    The read tokens behind the block, and the state.
  """
  full, narrow = streams
  read_tokens = narrow.shape[1]

  def with_attention() -> Array:
    return pieces.run_block(end.attend, attention, full, read_tokens)[0]

  def without() -> Array:
    x: Array = jnp.where(use_stream, full[:, :read_tokens], narrow)
    if end.attend.attention_mode == 'linear':
      return pieces.run_block(end.attend, attention, x)[0]
    x = residual_scale.astype(x.dtype) * x
    return pieces.run_block(end.plain, mlp, x)[0]

  if end.attend.mixes_tokens and end.attend.attention_mode == 'linear':
    x = with_attention()
  elif end.attend.attention_mode == 'linear':
    x = without()
  else:
    x = jax.lax.cond(use_attention, with_attention, without)
  logits, taps = pieces.readout(end.stem, outer, x)
  values = target_values(end.target, logits, taps, batch['label'])
  # Small, and the same on every device: the shards, and so the values, do
  # not depend on how many devices there are.
  everywhere = end.placement.replicated
  values = jax.lax.with_sharding_constraint(values, everywhere)
  mask = jax.lax.with_sharding_constraint(batch['mask'], everywhere)
  shards = state.count.shape[0]
  added = jax.vmap(entropy.moments_of)(
    _by_shard(values, shards), _by_shard(mask & is_last, shards)
  )
  state = jax.tree.map(
    lambda leaf: jax.lax.with_sharding_constraint(leaf, everywhere),
    entropy.merge(state, added),
  )
  return _split(x, end.placement), state


def _split(tree: Any, placement: Placement) -> Any:
  return jax.tree.map(
    lambda leaf: jax.lax.with_sharding_constraint(leaf, placement.batch), tree
  )


def _by_shard(rows: Array, shards: int) -> Array:
  """`[batch, ...]` to `[shards, batch / shards, ...]`; image i to i % shards.

  So a padded micro-batch leaves the shards about equally large.
  """
  return jnp.swapaxes(rows.reshape(-1, shards, *rows.shape[1:]), 0, 1)


def target_values(
  target: Target, logits: Array, taps: Any, labels: Array
) -> Array:
  """`[batch, channels]` float32 of which moments are taken."""
  if target == 'logits':
    return logits
  if target == 'features':
    return taps['features'].astype(jnp.float32)
  right = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  return jax.nn.logsumexp(logits, axis=-1, keepdims=True) - right


def bytes_per_image(module: ViT) -> int:
  """An estimate of what one image of a micro-batch takes during a round.

  The streams of all variants (depth + 1, and the one being made), and the
  working arrays of one block: q, k, v and their transposed copies, scores in
  float32 and weights, and the hidden layer twice.
  """
  size = jnp.dtype(module.dtype).itemsize
  tokens, width = module.num_tokens, module.embed_dim
  height, columns = module.image_size
  stream = tokens * width * size
  attention = 8 * stream + module.num_heads * tokens**2 * (4 + size)
  mlp = 2 * stream + int(2 * module.mlp_ratio * stream)
  image = 2 * 4 * height * columns * module.in_chans
  return (module.depth + 2) * stream + max(attention, mlp) + image


def micro_batch_size(
  module: ViT, images: ImageSet, memory_gib: float | None
) -> int:
  """Images per call over all devices: a power of two times the devices.

  Raises:
    UsageError: the budget is not positive or does not hold one image.
  """
  devices = images.placement.mesh.size
  try:
    budget = default_gib() if memory_gib is None else float(memory_gib)
  except (TypeError, ValueError) as error:
    raise UsageError(
      f'select.memory_gib={memory_gib!r}: a number of GiB, or empty'
    ) from error
  each = bytes_per_image(module)
  fitting = int(budget * GIB / each) if budget > 0 else 0
  if not fitting:
    raise UsageError(
      f'select.memory_gib={memory_gib} does not hold one image: it takes '
      f'{each / GIB:.4f} GiB; raise the budget'
    )
  # No larger than the images need, nor than the device makes good use of.
  needed = -(-int(images.counts().max()) * jax.process_count() // devices)
  useful = _LARGEST_MICRO_BATCH
  if jax.default_backend() == 'cpu':
    useful = max(8, _CPU_TOKENS // module.num_tokens)
  limit = min(fitting, useful)
  power = 1 << (limit.bit_length() - 1)
  return devices * min(power, 1 << max(needed - 1, 0).bit_length())


def default_gib() -> float:
  """What a search takes of this process's memory where nobody says."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    free = stats['bytes_limit'] - stats.get('bytes_in_use', 0)
    return _ACCELERATOR_SHARE * free / GIB
  try:
    free = os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  except (AttributeError, OSError, ValueError):  # not on every system
    return 1.0
  return max(_CPU_SHARE * free / GIB, 0.25)


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
    lambda f, m: entropy.merge_over_axis(entropy.moments_of(f, m), AXIS),
    mesh=placement.mesh,
    in_specs=(split, split),
    out_specs=PartitionSpec(),
  )(features, mask)
