"""Run a forward pass in pieces: embedding, single blocks, readout.

A search over many versions of one network runs its blocks one at a time. Blocks
with the same static fields are equal (and hash equal) as modules, so that one
compilation serves all of them, with their parameters as arguments. All functions
are traceable and none is jitted.
"""

from typing import Any

import jax.numpy as jnp

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import Array, AttentionMode, Params
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.layers import ACTIVATIONS, normalize
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.shortcuts import StreamInfo
from lambda_vit_jax.models.surgery import without_attention
from lambda_vit_jax.models.vit import ViT


def stem_of(module: ViT) -> ViT:
  """The module without its blocks: embedding and readout.

  Raises:
    ModelError: blocks merge tokens, so that they return more than a stream, or
      a decoder reads more than the last one.
  """
  if module.segmentation is not None:
    raise ModelError(
      'the model segments; searches, profiles and fits look at its backbone: '
      'give them backbone(model)'
    )
  if module.merge:
    raise ModelError(
      'the model merges tokens; searches, profiles and fits look at the '
      'network without: give them merge_tokens(model, 0)'
    )
  return module.clone(
    depth=0,
    attention_modes=(),
    mlp_dims=(),
    norm_eps=module.norm_eps[-1:],
    drop_path_rates=(),
  )


def stem_params(params: Params, depth: int) -> Params:
  """The parameters of `stem_of(module)`."""
  blocks = {block_name(index) for index in range(depth)}
  return {name: leaf for name, leaf in params.items() if name not in blocks}


def block_of(
  module: ViT, block_index: int, mode: AttentionMode
) -> EncoderBlock:
  """One block in evaluation, in `mode` instead of its own."""
  fields = module.block_fields(block_index) | {'attention_mode': mode}
  # Without effect in evaluation, and set alike so that blocks are equal.
  fields |= {'drop_path_rate': 0.0, 'compensation': True}
  if mode not in ('linear', 'diluted'):
    fields |= {'linear_inputs': ('token',)}
  return EncoderBlock(**fields)


def block_params(params: Params, block_index: int) -> Params:
  """The parameters of one block; none where both of its halves are gone."""
  found: Params = params.get(block_name(block_index), {})
  return found


def mlp_params(params: Params, block_index: int) -> Params:
  """The parameters of one block without its attention half."""
  return without_attention(block_params(params, block_index))


def embed(stem: ViT, params: Params, images: Array) -> Array:
  """Images `[batch, height, width, channels]` to the first stream."""
  embedded: Any = stem.apply({'params': params}, images, method='embed')
  return embedded


def run_block(
  block: EncoderBlock,
  params: Params,
  x: Array,
  read_tokens: int | None = None,
  sizes: Array | None = None,
) -> tuple[Array, dict[str, Array]]:
  """The stream after a block, and its intermediates (see `EncoderBlock`)."""
  info = StreamInfo(sizes=sizes, read_tokens=read_tokens)
  result: Any = block.apply({'params': params}, x, info=info)
  return result


def hidden_layer(block: EncoderBlock, params: Params, x: Array) -> Array:
  """The input of `fc2`, `[batch, tokens, hidden]`, from the MLP half's input.

  The block has an MLP.
  """
  norm = params['norm2']
  normal = normalize(x, block.norm_eps) * norm['scale'] + norm['bias']
  if block.mlp_kind != 'plain':
    layer = block.mlp_layer(parent=None)
    return _sown(layer, params['mlp'], normal, 'hidden')
  first = params['mlp']['fc1']
  hidden = normal @ first['kernel'] + first['bias']
  return ACTIVATIONS[block.activation](hidden)


def _sown(layer: Any, params: Params, x: Array, collection: str) -> Array:
  """What a layer offers under `collection` (Flax's `sow`)."""
  _, found = layer.apply({'params': params}, x, mutable=[collection])
  (values,) = found[collection]['offered']
  return values


def head_outputs(block: EncoderBlock, params: Params, x: Array) -> Array:
  """What the heads give, before the projection, `[batch, tokens, embed]`.

  Args:
    block: in mode `full`.
    params: of the block.
    x: the stream before it, `[batch, tokens, embed]`.
  """
  norm = params['norm1']
  normal = normalize(x, block.norm_eps) * norm['scale'] + norm['bias']
  layer = block.attention_layer(parent=None)
  return _sown(layer, params['attn'], normal, 'heads')


def value_projection(attention: Params, embed_dim: int) -> tuple[Array, Array]:
  """Kernel `[embed, embed]` and bias `[embed]` of an attention layer's values."""
  zeros = jnp.zeros(embed_dim)
  if 'v_proj' in attention:
    value = attention['v_proj']
    return value['kernel'], value.get('bias', zeros)
  fused = attention['qkv']
  bias = fused.get('v_bias', zeros)
  if 'bias' in fused:
    bias = fused['bias'][2 * embed_dim :]
  return fused['kernel'][:, 2 * embed_dim :], bias


def readout(
  stem: ViT, params: Params, x: Array, sizes: Array | None = None
) -> tuple[Array, dict[str, Array]]:
  """The last stream to logits, and `features` (see `ViT.readout`)."""
  result: Any = stem.apply({'params': params}, x, sizes=sizes, method='readout')
  return result
