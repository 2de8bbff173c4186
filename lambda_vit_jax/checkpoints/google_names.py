"""Names of Flax's networks: Google's vision_transformer and big_vision."""

from collections.abc import Callable

import numpy as np

from lambda_vit_jax.checkpoints.convert import (
  SAME,
  Rules,
  Shape,
  Transform,
)


def _three(array: np.ndarray, shape: Callable[[int], Shape]) -> tuple:
  """Splits a fused array into q, k and v, with an axis for one head."""
  parts = np.split(array, 3, axis=-1)
  return tuple(part.reshape(shape(part.shape[-1])) for part in parts)


# [embed, heads, head_dim] each for query, key, value <-> [embed, 3·embed].
QKV_KERNEL = Transform(
  lambda *qkv: np.concatenate([x.reshape(len(x), -1) for x in qkv], axis=1),
  lambda x: _three(x, lambda width: (len(x), 1, width)),
)
# [heads, head_dim] each <-> [3·embed].
QKV_BIAS = Transform(
  lambda *qkv: np.concatenate([x.reshape(-1) for x in qkv]),
  lambda x: _three(x, lambda width: (1, width)),
)
# [heads, head_dim, embed] <-> [embed, embed].
OUT_KERNEL = Transform(
  lambda x: x.reshape(-1, x.shape[-1]), lambda x: (x[None],)
)

_GOOGLE_BLOCK = 'Transformer/encoderblock_#'
_GOOGLE_MIXER = f'{_GOOGLE_BLOCK}/MultiHeadDotProductAttention_1'
_GOOGLE_MLP = f'{_GOOGLE_BLOCK}/MlpBlock_3'


def _google_qkv(leaf: str) -> tuple[str, ...]:
  return tuple(f'{_GOOGLE_MIXER}/{p}/{leaf}' for p in ('query', 'key', 'value'))


GOOGLE: Rules = (
  ('cls', 'cls_token', SAME),
  ('Transformer/posembed_input/pos_embedding', 'pos_embed', SAME),
  ('embedding/kernel', 'patch_embed/kernel', SAME),
  ('embedding/bias', 'patch_embed/bias', SAME),
  (f'{_GOOGLE_BLOCK}/LayerNorm_0/scale', 'block#/norm1/scale', SAME),
  (f'{_GOOGLE_BLOCK}/LayerNorm_0/bias', 'block#/norm1/bias', SAME),
  (_google_qkv('kernel'), 'block#/attn/qkv/kernel', QKV_KERNEL),
  (_google_qkv('bias'), 'block#/attn/qkv/bias', QKV_BIAS),
  (f'{_GOOGLE_MIXER}/out/kernel', 'block#/attn/proj/kernel', OUT_KERNEL),
  (f'{_GOOGLE_MIXER}/out/bias', 'block#/attn/proj/bias', SAME),
  (f'{_GOOGLE_BLOCK}/LayerNorm_2/scale', 'block#/norm2/scale', SAME),
  (f'{_GOOGLE_BLOCK}/LayerNorm_2/bias', 'block#/norm2/bias', SAME),
  (f'{_GOOGLE_MLP}/Dense_0/kernel', 'block#/mlp/fc1/kernel', SAME),
  (f'{_GOOGLE_MLP}/Dense_0/bias', 'block#/mlp/fc1/bias', SAME),
  (f'{_GOOGLE_MLP}/Dense_1/kernel', 'block#/mlp/fc2/kernel', SAME),
  (f'{_GOOGLE_MLP}/Dense_1/bias', 'block#/mlp/fc2/bias', SAME),
  ('Transformer/encoder_norm/scale', 'norm/scale', SAME),
  ('Transformer/encoder_norm/bias', 'norm/bias', SAME),
  ('head/kernel', 'head/kernel', SAME),
  ('head/bias', 'head/bias', SAME),
)
"""Names of Google's `.npz` files (AugReg, vision_transformer)."""


# big_vision's modules are numbered from 0, each kind by itself.
_NUMBERS = {
  'Transformer/posembed_input/pos_embedding': 'pos_embedding',
  'MultiHeadDotProductAttention_1': 'MultiHeadDotProductAttention_0',
  'LayerNorm_2': 'LayerNorm_1',
  'MlpBlock_3': 'MlpBlock_0',
}


def _big_vision(rules: Rules) -> Rules:
  """Google's rules with big_vision's numbers."""

  def name(source: str) -> str:
    for old, new in _NUMBERS.items():
      source = source.replace(old, new)
    return source

  return tuple(
    (
      name(sources) if isinstance(sources, str) else tuple(map(name, sources)),
      target,
      transform,
    )
    for sources, target, transform in rules
  )


BIG_VISION = _big_vision(GOOGLE)
"""Names of big_vision's `.npz` files."""

# Two arrays side by side: [embed, heads, head_dim] each <-> [embed, 2·embed].
_PAIR_KERNEL = Transform(
  lambda *pair: np.concatenate([x.reshape(len(x), -1) for x in pair], axis=1),
  lambda x: tuple(part[:, None] for part in np.split(x, 2, axis=1)),
)
_PAIR_BIAS = Transform(
  lambda *pair: np.concatenate([x.reshape(-1) for x in pair]),
  lambda x: tuple(part[None] for part in np.split(x, 2)),
)
_ONE_KERNEL = Transform(
  lambda x: x.reshape(len(x), -1), lambda x: (x[:, None],)
)
_ONE_BIAS = Transform(lambda x: x.reshape(-1), lambda x: (x[None],))
_POOL = 'MAPHead_0'
_POOL_MIXER = f'{_POOL}/MultiHeadDotProductAttention_0'


def _pair(leaf: str) -> tuple[str, ...]:
  return tuple(f'{_POOL_MIXER}/{part}/{leaf}' for part in ('key', 'value'))


_POOL_RULES: Rules = (
  (f'{_POOL}/probe', 'attn_pool/latent', SAME),
  (f'{_POOL_MIXER}/query/kernel', 'attn_pool/q/kernel', _ONE_KERNEL),
  (f'{_POOL_MIXER}/query/bias', 'attn_pool/q/bias', _ONE_BIAS),
  (_pair('kernel'), 'attn_pool/kv/kernel', _PAIR_KERNEL),
  (_pair('bias'), 'attn_pool/kv/bias', _PAIR_BIAS),
  (f'{_POOL_MIXER}/out/kernel', 'attn_pool/proj/kernel', OUT_KERNEL),
  (f'{_POOL_MIXER}/out/bias', 'attn_pool/proj/bias', SAME),
  (f'{_POOL}/LayerNorm_0/scale', 'attn_pool/norm/scale', SAME),
  (f'{_POOL}/LayerNorm_0/bias', 'attn_pool/norm/bias', SAME),
  *(
    (
      f'{_POOL}/MlpBlock_0/Dense_{index}/{leaf}',
      f'attn_pool/mlp/fc{index + 1}/{leaf}',
      SAME,
    )
    for index in (0, 1)
    for leaf in ('kernel', 'bias')
  ),
)


def _below(prefix: str, rules: Rules) -> Rules:
  """The rules with a prefix before each name."""
  return tuple(
    (
      prefix + sources
      if isinstance(sources, str)
      else tuple(prefix + name for name in sources),
      target,
      transform,
    )
    for sources, target, transform in rules
  )


SIGLIP = _below(
  'img/',
  (*(rule for rule in BIG_VISION if rule[1] != 'cls_token'), *_POOL_RULES),
)
"""Names of the image tower in big_vision's files of SigLIP."""
