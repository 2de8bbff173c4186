"""Run a trial's last blocks on only the tokens that the readout uses."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.analysis import moments
from lambda_vit_jax.analysis.images import Placement
from lambda_vit_jax.analysis.moments import Moments
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.modes import MODES
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import compilation

Target = Literal[
  'logits', 'features', 'loss', 'correct', 'divergence', 'feature_error'
]


@dataclasses.dataclass(frozen=True)
class Tail:
  """The static part of the end of a network.

  Attributes:
    block: with its attention (mode `full`) or affine map (mode `linear`).
    mlp: the same block in mode `absent`.
    stem: the module that reads out.
    target: the output to measure.
    placement: devices of the micro-batch.
  """

  block: EncoderBlock
  mlp: EncoderBlock
  stem: ViT
  target: Target
  placement: Placement


class TailSwitches(NamedTuple):
  """Scalars that differ between the calls of one program.

  Attributes:
    residual_scale: r of a block without attention.
    use_attention: whether a block of mode `full` keeps its attention.
    use_stream: whether the block reads the stream of all tokens.
    is_last: whether the network ends here; otherwise no moments are added.
  """

  residual_scale: Array | np.float32
  use_attention: Array | np.bool_
  use_stream: Array | np.bool_
  is_last: Array | np.bool_


@compilation.jit(
  exact=True, static_argnames=('tail',), donate_argnames=('state',)
)
def run_tail(
  tail: Tail,
  params: tuple[Params, Params, Params],
  switches: TailSwitches,
  streams: tuple[Array, Array],
  batch: dict[str, Array],
  state: Moments,
) -> tuple[Array, Moments]:
  """One block on the read tokens, and the moments of the readout after it.

  Args:
    tail: static.
    params: of `tail.block`, `tail.mlp` and `tail.stem`.
    switches: see `TailSwitches`.
    streams: of all tokens, `[batch, tokens, embed]`, and of the read tokens.
    batch: `label` and `mask` of the images.
    state: moments per shard so far; donated.

  Returns:
    The read tokens after the block, and the state.
  """
  block_params, mlp_params, stem_params = params
  full, narrow = streams
  read_tokens = narrow.shape[1]
  linear = not MODES[tail.block.attention_mode].has_attention

  def with_attention() -> Array:
    return pieces.run_block(tail.block, block_params, full, read_tokens)[0]

  def without() -> Array:
    x: Array = jnp.where(switches.use_stream, full[:, :read_tokens], narrow)
    if linear:
      return pieces.run_block(tail.block, block_params, x)[0]
    x = switches.residual_scale.astype(x.dtype) * x
    return pieces.run_block(tail.mlp, mlp_params, x)[0]

  if linear:
    x = with_attention() if tail.block.mixes_tokens else without()
  else:
    x = jax.lax.cond(switches.use_attention, with_attention, without)
  logits, taps = pieces.readout(tail.stem, stem_params, x)
  values = target_values(tail.target, logits, taps, batch['label'])
  # Small, and replicated: the shards, and so the result, do not depend on the
  # number of devices.
  everywhere = tail.placement.replicated
  values, mask = jax.lax.with_sharding_constraint(
    (values, batch['mask']), everywhere
  )
  shards = state.count.shape[0]
  added = jax.vmap(moments.moments_of)(
    _by_shard(values, shards), _by_shard(mask & switches.is_last, shards)
  )
  state = jax.lax.with_sharding_constraint(
    moments.merge(state, added), everywhere
  )
  return jax.lax.with_sharding_constraint(x, tail.placement.batch), state


def _by_shard(rows: Array, shards: int) -> Array:
  """`[batch, ...]` to `[shards, batch / shards, ...]`; image i to i % shards.

  The shards of a padded micro-batch are about equally large.
  """
  return jnp.swapaxes(rows.reshape(-1, shards, *rows.shape[1:]), 0, 1)


def target_values(
  target: Target, logits: Array, taps: Any, labels: Array
) -> Array:
  """`[batch, channels]` float32 of which moments are taken.

  Args:
    target: `divergence` and `feature_error` compare with another network.
    logits: `[batch, num_classes]`.
    taps: of the readout.
    labels: class indices `[batch]`; for the two comparisons the other network's
      logits or features `[batch, channels]`.

  Returns:
    For `loss` and the comparisons one channel, per image, in nats or squared
    units of the features; for `correct` 1 where the label is the top class.
  """
  if target == 'logits':
    return logits
  if target == 'features':
    return taps['features'].astype(jnp.float32)
  if target == 'feature_error':
    gap = taps['features'].astype(jnp.float32) - labels
    return (gap * gap).mean(axis=-1, keepdims=True)
  if target == 'divergence':
    wanted, found = (jax.nn.log_softmax(rows) for rows in (labels, logits))
    divergence = jnp.exp(wanted) * (wanted - found)
    return divergence.sum(axis=-1, keepdims=True)
  if target == 'correct':
    right = logits.argmax(axis=-1) == labels
    return right[:, None].astype(jnp.float32)
  true = jnp.take_along_axis(logits, labels[:, None], axis=-1)
  return jax.nn.logsumexp(logits, axis=-1, keepdims=True) - true
