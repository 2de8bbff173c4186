"""The Vision Transformer: patch and class tokens, blocks, readout.

The blocks are in `models.block`. Submodules have timm's names, and none of
them is numbered by Flax, so that removing one never renames another.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lambda_vit_jax.core.typing import Array, AttentionMode
from lambda_vit_jax.models import (
  decoders,
  map_inputs,
  merge_schedule,
  token_merging,
)
from lambda_vit_jax.models.architecture import hidden_width
from lambda_vit_jax.models.attention import AttentionKernel
from lambda_vit_jax.models.attention_pool import AttentionPool
from lambda_vit_jax.models.block import EncoderBlock
from lambda_vit_jax.models.layers import (
  Dense,
  LayerNorm,
  PatchEmbed,
  fold_key,
  parameter,
  small_init,
)
from lambda_vit_jax.models.modes import (
  block_name,
  computes_map,
  doublings,
  mixes_tokens,
)
from lambda_vit_jax.models.resampling import resize
from lambda_vit_jax.models.shortcuts import StreamInfo

# Larger than any block index: their keys are folded from the same key.
_DROPOUT = 1 << 16


class ViT(nn.Module):
  """A pre-norm Vision Transformer with a per-block `attention_mode`.

  Attributes:
    image_size: (height, width), divisible by `patch_size`.
    num_classes: 0 for no head; the call then returns pooled features.
    attention_modes: one mode per block.
    norm_eps: one epsilon per block, then that of the final norm.
    drop_path_rates: one rate per block.
    pooling: `token` reads the class token, `avg` the mean of the patches, `map`
      attends to the patches from a learnt query (`AttentionPool`).
    distilled: a second leading token with a head of its own; the two heads'
      logits are averaged.
    num_registers: register tokens after the class token.
    class_token, absolute_positions: whether there are such parameters.
    mlp_dims: hidden width of the MLP per block, 0 for none; empty for that of
      `mlp_ratio`, rounded up to a multiple of `mlp_alignment`, in all blocks.
    qkv_bias to mlp_norm: see `EncoderBlock`.
    position_on_class: whether the position embedding has slots for the
      leading tokens or only for patches.
    pre_norm: a norm before the first block, and no patch bias (CLIP).
    pre_norm_eps: the epsilon of all norms that folding does not change.
    norm_before_pool: the final norm acts on all tokens (`norm`), else on the
      pooled vector (`fc_norm`).
    linear_inputs: inputs of blocks in mode `linear`, of
      `map_inputs.LINEAR_INPUTS`, or one tuple of them per block; `token` is
      always among them.
    dilution_path: of `DILUTION_PATHS`, for blocks in mode `diluted`.
    merge: patch tokens that each block should merge away, empty for none; see
      `merge_counts` for the actual numbers.
    quantization: `none`, or how products with matrices of 8-bit integers are
      computed, `weights` or `dynamic` (`lambda_vit_jax.models.quantization`).
    segmentation: the decoder to a class per pixel, instead of the head; None for
      classification.
  """

  image_size: tuple[int, int]
  patch_size: int
  num_classes: int
  embed_dim: int
  depth: int
  num_heads: int
  attention_modes: tuple[AttentionMode, ...]
  norm_eps: tuple[float, ...]
  drop_path_rates: tuple[float, ...]
  in_chans: int = 3
  mlp_ratio: float = 4.0
  mlp_dims: tuple[int, ...] = ()
  compensation: bool = True
  activation: str = 'gelu'
  layer_scale: float | None = None
  qkv_bias: bool = True
  pooling: str = 'token'
  distilled: bool = False
  num_registers: int = 0
  class_token: bool = True
  absolute_positions: bool = True
  key_bias: bool = True
  fused_qkv: bool = True
  rotary: str = ''
  relative_bias: bool = False
  mlp_kind: str = 'plain'
  mlp_norm: bool = False
  mlp_alignment: int = 1
  position_on_class: bool = True
  pre_norm: bool = False
  pre_norm_eps: float = 1e-6
  norm_before_pool: bool = True
  linear_inputs: map_inputs.LinearInputs = ('token',)
  dilution_path: str = 'attention'
  merge: tuple[int, ...] = ()
  quantization: str = 'none'
  segmentation: decoders.Decoder | None = None
  remat: bool = False
  attention_kernel: AttentionKernel = 'auto'
  dtype: Any = jnp.float32

  @property
  def num_prefix_tokens(self) -> int:
    """Leading tokens before the patches: class, distillation, registers."""
    return int(self.class_token) + int(self.distilled) + self.num_registers

  @property
  def grid_size(self) -> tuple[int, int]:
    """Patches along height and width."""
    height, width = self.image_size
    return height // self.patch_size, width // self.patch_size

  @property
  def num_tokens(self) -> int:
    """Tokens of one image, the leading ones included."""
    rows, columns = self.grid_size
    return rows * columns + self.num_prefix_tokens

  @property
  def read_tokens(self) -> int | None:
    """Leading tokens that the readout reads, None for all."""
    if self.segmentation is not None:
      return None
    return 1 + int(self.distilled) if self.pooling == 'token' else None

  @property
  def last_mixing_block(self) -> int:
    """Index of the last block that mixes tokens, -1 for none.

    From it on only the tokens that the readout reads need computing.
    """
    mixing = (
      index
      for index, mode in enumerate(self.attention_modes)
      if mixes_tokens(mode, self.inputs_of(index))
    )
    return max(mixing, default=-1)

  @property
  def hidden_dims(self) -> tuple[int, ...]:
    """Hidden width of the MLP of each block, 0 where there is none."""
    width = hidden_width(self.embed_dim, self.mlp_ratio, self.mlp_alignment)
    return self.mlp_dims or (width,) * self.depth

  def inputs_of(self, block_index: int) -> tuple[str, ...]:
    """Inputs of the map of one block, should it be in mode `linear`."""
    return map_inputs.inputs_of_block(self.linear_inputs, block_index)

  @property
  def computes_maps(self) -> bool:
    """Whether any block computes the map of mode `linear`."""
    return any(
      computes_map(mode, self.dilution_path) for mode in self.attention_modes
    )

  @property
  def merge_counts(self) -> tuple[int, ...]:
    """Patch tokens that each block merges away (`merge_schedule`).

    Raises:
      ModelError: maps with inputs that merged tokens do not have.
    """
    if any(self.merge) and self.computes_maps:
      map_inputs.check_unmerged(map_inputs.union(self.linear_inputs))
    patches = self.num_tokens - self.num_prefix_tokens
    return merge_schedule.merge_counts(
      self.merge, self.attention_modes, patches
    )

  def block_fields(self, block_index: int) -> dict[str, Any]:
    """The fields of one `EncoderBlock`."""
    own = {
      'attention_mode': self.attention_modes[block_index],
      'norm_eps': self.norm_eps[block_index],
      'mlp_dim': self.hidden_dims[block_index],
      'drop_path_rate': self.drop_path_rates[block_index],
      'merge': self.merge_counts[block_index],
      'linear_inputs': self.inputs_of(block_index),
    }
    # The others have the same names here; Flax adds two.
    shared = {*EncoderBlock.__dataclass_fields__} - {*own, 'parent', 'name'}
    return own | {name: getattr(self, name) for name in shared}

  def setup(self) -> None:
    settings = self.dtype, self.quantization
    self.patch_embed = PatchEmbed(
      self.patch_size, self.embed_dim, not self.pre_norm, *settings
    )
    if self.class_token:
      self.cls_token = self._tokens('cls_token', 1)
    if self.distilled:
      self.dist_token = self._tokens('dist_token', 1)
    if self.num_registers:
      self.reg_token = self._tokens('reg_token', self.num_registers)
    unplaced = 0 if self.position_on_class else self.num_prefix_tokens
    if self.absolute_positions:
      self.pos_embed = self._tokens('pos_embed', self.num_tokens - unplaced)
    if self.pre_norm:
      # Before all blocks: folding does not change its epsilon.
      self.norm_pre = LayerNorm(self.pre_norm_eps, self.dtype)
    make_block = nn.remat(EncoderBlock) if self.remat else EncoderBlock
    for block_index in range(self.depth):
      # Registers the submodule under that name.
      block = make_block(**self.block_fields(block_index))
      setattr(self, block_name(block_index), block)
    norm = LayerNorm(self.norm_eps[-1], self.dtype)
    if self.norm_before_pool:
      self.norm = norm
    else:
      self.fc_norm = norm
    if self.pooling == 'map':
      self.attn_pool = AttentionPool(
        self.num_heads,
        self.mlp_ratio,
        self.activation,
        self.pre_norm_eps,
        *settings,
      )
    if self.segmentation is not None:
      self.decoder = decoders.make_decoder(
        self.segmentation, self.num_classes, self.dtype
      )
    elif self.num_classes:
      self.head = self._head()
      if self.distilled:
        self.head_dist = self._head()

  def _tokens(self, name: str, count: int) -> Array:
    return parameter(self, name, small_init, (1, count, self.embed_dim))

  def _head(self) -> Dense:
    return Dense(self.num_classes, self.dtype, self.quantization, small_init)

  def embed(self, images: Array) -> Array:
    """Images `[batch, height, width, channels]` to the first stream."""
    patches = self.patch_embed(images)
    prefix = [self.cls_token] if self.class_token else []
    if self.distilled:
      prefix.append(self.dist_token)
    if self.num_registers:
      prefix.append(self.reg_token)
    prefix = [
      # `shape[0]`, not `len`: an exported program has a symbolic batch.
      jnp.broadcast_to(t, (images.shape[0], *t.shape[1:])).astype(self.dtype)
      for t in prefix
    ]
    if self.absolute_positions and not self.position_on_class:
      patches = patches + self.pos_embed.astype(self.dtype)
    x = jnp.concatenate([*prefix, patches], axis=1)
    if self.absolute_positions and self.position_on_class:
      x = x + self.pos_embed.astype(self.dtype)
    return self.norm_pre(x) if self.pre_norm else x

  def readout(
    self, x: Array, halvings: int = 0, sizes: Array | None = None
  ) -> tuple[Array, dict[str, Array]]:
    """The last stream to logits `[batch, num_classes]` float32.

    Returns the pooled features `[batch, embed]` instead where the model has
    no head, and `features` (pooled, after the final norm; the mean of both
    leading tokens where there are two) among the intermediates. `x` may contain
    only the `read_tokens` leading tokens; it is `2^-halvings` of the stream.
    Pooling over the patches weights each token by `sizes`.
    """
    taps = {}
    if self.norm_before_pool:
      taps['tokens'] = x = self.norm(x, halvings)
    if self.pooling == 'token':
      pooled = x[:, 0]
    else:
      leading = self.num_prefix_tokens
      patches = x[:, leading:]
      weights = None if sizes is None else sizes[:, leading:]
      if self.pooling == 'map':
        pooled = self.attn_pool(patches, weights)
      else:
        pooled = token_merging.weighted_mean(patches, weights)
    if not self.norm_before_pool:
      pooled = self.fc_norm(pooled, halvings)
    taps['features'] = pooled
    if self.distilled and self.pooling == 'token':
      taps['features'] = 0.5 * (pooled + x[:, 1])
    if not self.num_classes:
      return taps['features'].astype(jnp.float32), taps
    logits = self.head(pooled)
    if self.distilled:
      logits = 0.5 * (logits + self.head_dist(x[:, 1]))
    return logits.astype(jnp.float32), taps

  def grid(self, tokens: Array, owners: Array | None = None) -> Array:
    """The patches among `tokens`: `[batch, rows, columns, embed]`.

    Where tokens have merged, each is repeated at the places of all patches
    that it stands for, as `owners` (`token_merging.follow`) records.
    """
    patches = token_merging.spread(tokens[:, self.num_prefix_tokens :], owners)
    return patches.reshape(patches.shape[0], *self.grid_size, patches.shape[-1])

  def segment(
    self, x: Array, taps: Mapping[str, Any], halved: bool, key: Array | None
  ) -> tuple[Array, dict[str, Array]]:
    """The last stream, and the blocks that the decoder reads, to pixel logits.

    Args:
      x: `[batch, tokens, embed]`.
      taps: of all blocks.
      halved: whether the factors of identity blocks were left out.
      key: of dropout, None in evaluation.

    Returns:
      Logits `[batch, height, width, num_classes]` float32; and `tokens` after
      the final norm, its patches as `features`, and the grids that are read.
    """
    decoder = self.segmentation
    assert decoder is not None
    counts = doublings(self.attention_modes) if halved else (0,) * self.depth
    blocks = [taps[block_name(index)] for index in range(self.depth)]
    grids, owners = decoders.read_grids(decoder, blocks, counts, self.grid)
    norm = self.norm if self.norm_before_pool else self.fc_norm
    # Also for decoders that do not read it: selection does.
    tokens = norm(x, counts[-1] if counts else 0)
    features = self.grid(tokens, owners)
    inputs = [features] if decoder.kind == 'linear' else list(grids.values())
    logits = self.decoder(inputs, fold_key(key, _DROPOUT)).astype(jnp.float32)
    logits = resize(logits, self.image_size)
    return logits, grids | {'tokens': tokens, 'features': features}

  def __call__(
    self,
    images: Array,
    *,
    dilution_factor: Array | None = None,
    drop_path_key: Array | None = None,
    capture: bool = True,
  ) -> tuple[Array, Mapping[str, Any]]:
    """One forward pass.

    Args:
      images: `[batch, height, width, channels]` float32, normalised.
      dilution_factor: λ per block, `[depth]`; for blocks in mode `diluted`.
      drop_path_key: typed key for stochastic depth, None in evaluation.
      capture: whether all intermediates are returned. With False, `features`
        is the only one, and the shortcuts of `models.shortcuts` are taken: the
        same logits with fewer operations and less memory.

    Returns:
      Logits `[batch, num_classes]` float32 (the pooled features where there
      is no head; per pixel, `[batch, height, width, num_classes]`, where it
      segments), and the named intermediates: `embedding`, `block00` … (see
      `EncoderBlock`), `tokens` and `features` after the final norm.
    """
    x = self.embed(images)
    taps: dict[str, Any] = {'embedding': x}
    counts = doublings(self.attention_modes)
    sizes = None
    for index in range(self.depth):
      narrow = not capture and index >= self.last_mixing_block
      x, block_taps = getattr(self, block_name(index))(
        x,
        None if dilution_factor is None else dilution_factor[index],
        fold_key(drop_path_key, index),
        StreamInfo(
          sizes,
          self.read_tokens if narrow else None,
          None if capture else counts[index],
        ),
      )
      sizes = block_taps.get('sizes')
      taps[block_name(index)] = block_taps
    if self.segmentation is not None:
      logits, readout = self.segment(x, taps, not capture, drop_path_key)
    else:
      halvings = counts[-1] if counts and not capture else 0
      logits, readout = self.readout(x, halvings, sizes)
    if capture:
      return logits, taps | readout
    return logits, {'features': readout['features']}
