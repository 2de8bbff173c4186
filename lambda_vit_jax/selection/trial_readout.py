"""The end of a trial network: the last block on the tokens that are read, and the moments of the readout."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lambda_vit_jax.analysis import moments
from lambda_vit_jax.analysis.blocks import _split
from lambda_vit_jax.analysis.images import Placement
from lambda_vit_jax.analysis.moments import Moments
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation

Target = Literal['logits', 'features', 'loss']


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
  added = jax.vmap(moments.moments_of)(
    _by_shard(values, shards), _by_shard(mask & is_last, shards)
  )
  state = jax.tree.map(
    lambda leaf: jax.lax.with_sharding_constraint(leaf, everywhere),
    moments.merge(state, added),
  )
  return _split(x, end.placement), state


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
