"""Tables of the families after the first ViTs: SigLIP, DINOv3, EVA-02, CLIP, BEiT."""

from typing import Any

from lambda_vit_jax.core.preprocessing import (
  CLIP_MEAN,
  CLIP_STD,
  IMAGENET_MEAN,
  IMAGENET_STD,
  INCEPTION_MEAN,
  INCEPTION_STD,
)
from lambda_vit_jax.models.architecture import Fields, Variant, timm_variant

# The hidden width of its gated MLPs is a multiple of it.
DINOV3_ALIGNMENT = 8

_BEIT = 'in22k_ft_in22k_in1k'
_IMAGENET: Fields = {'mean': IMAGENET_MEAN, 'std': IMAGENET_STD}
_FT12K = 'laion2b_ft_in12k_in1k'
_TANH: Fields = {'activation': 'gelu_tanh'}


def _siglip(
  size: str,
  patch: int,
  pixels: int,
  *,
  gap: bool = False,
  tag: str = 'v2_webli',
  **fields: str | float,
) -> Variant:
  """SigLIP and SigLIP 2: no class token; attention pooling, or a mean (`gap`).

  The mean is of patches after the norm. Those with tanh's GELU were released
  with SigLIP 2 or as multilingual ones.
  """
  name = f'vit_{size}_patch{patch}_siglip{"_gap" * gap}_{pixels}'
  own: Fields = {
    'mean': INCEPTION_MEAN,
    'std': INCEPTION_STD,
    'num_classes': 0,
    'class_token': False,
    'pooling': 'avg' if gap else 'map',
    'crop_ratio': 0.9,
  }
  return timm_variant(name, size, patch, pixels, tag=tag, **(own | fields))


_SIGLIP_ROWS: tuple[tuple[str, int, int, Fields], ...] = (
  ('base', 16, 224, {}),
  ('base', 16, 256, {}),
  ('base', 16, 384, {}),
  ('base', 16, 512, {}),
  ('base', 32, 256, _TANH),
  ('large', 16, 256, {}),
  ('large', 16, 384, {}),
  ('large', 16, 512, _TANH),
  ('so400m', 14, 224, {}),
  ('so400m', 14, 378, {}),
  ('so400m', 16, 256, _TANH),
  ('so400m', 16, 384, _TANH),
  ('so400m', 16, 512, _TANH),
  ('giantopt', 16, 256, _TANH),
  ('giantopt', 16, 384, _TANH),
)


def _dinov3(
  size: str, *, qkv_bias: bool = False, tag: str = 'lvd1689m'
) -> Variant:
  """DINOv3: rotary positions, registers, and the mean of the normed patches.

  Those with `qkvb` in the name have a bias of queries and values.
  """
  fields: Fields = {
    'num_classes': 0,
    'norm_eps': 1e-5,
    'layer_scale': 1e-5,
    'num_registers': 4,
    'pooling': 'avg',
    'absolute_positions': False,
    'rotary': 'dinov3',
    'qkv_bias': qkv_bias,
    'key_bias': False,
    'timm_class': 'eva',
  }
  if size.endswith('_plus'):
    fields |= {'mlp_kind': 'swiglu', 'mlp_alignment': DINOV3_ALIGNMENT}
  name = f'vit_{size}_patch16_dinov3{"_qkvb" * qkv_bias}'
  return timm_variant(name, size, 16, 256, tag=tag, **fields)


def _eva02(
  size: str, pixels: int, tag: str, num_classes: int = 1000
) -> Variant:
  """EVA-02: absolute and rotary positions, SwiGLU; for larger sizes a norm in it."""
  larger = size in ('base', 'large')
  return timm_variant(
    f'eva02_{size}_patch14_{pixels}',
    size,
    14,
    pixels,
    tag=tag,
    num_classes=num_classes,
    mlp_ratio=8 / 3,
    pooling='avg',
    norm_before_pool=False,
    timm_class='eva',
    rotary='eva02',
    key_bias=False,
    fused_qkv=not larger,
    mlp_kind='swiglu' if larger else 'swiglu_packed',
    mlp_norm=larger,
    mean=CLIP_MEAN,
    std=CLIP_STD,
  )


def _beit(
  name: str, pixels: int, tag: str, layer_scale: float = 1e-5, **fields: Any
) -> Variant:
  """BEiT and BEiT v2: relative positions only, and the mean of the patches."""
  size = name.rpartition('_')[2]
  own: Fields = {
    'mean': INCEPTION_MEAN,
    'std': INCEPTION_STD,
    'layer_scale': layer_scale,
    'pooling': 'avg',
    'norm_before_pool': False,
    'timm_class': 'beit',
    'absolute_positions': False,
    'relative_bias': True,
    'key_bias': False,
  }
  return timm_variant(
    f'{name}_patch16_{pixels}', size, 16, pixels, tag=tag, **(own | fields)
  )


def _clip(
  size: str, patch: int, pixels: int, tag: str, num_classes: int, **fields: Any
) -> Variant:
  """CLIP's image tower: a norm before the blocks, no patch bias, eps 1e-5."""
  quick = fields.pop('quick', False)
  own: Fields = {
    'num_classes': num_classes,
    'norm_eps': 1e-5,
    'pre_norm': True,
    'mean': CLIP_MEAN,
    'std': CLIP_STD,
    'crop_ratio': 1.0,
  }
  stem = f'vit_{size}_patch{patch}_clip'
  if quick:
    # The weights are those of the other name.
    own |= {
      'activation': 'quick_gelu',
      'weights': f'hf-hub:timm/{stem}_{pixels}.{tag}',
    }
    return timm_variant(
      f'{stem}_quickgelu_{pixels}', size, patch, pixels, **(own | fields)
    )
  name = f'{stem}_{pixels}'
  return timm_variant(name, size, patch, pixels, tag=tag, **(own | fields))


FAMILIES: tuple[Variant, ...] = (
  *(
    _siglip(size, patch, pixels, gap=gap, **fields)
    for gap in (False, True)
    for size, patch, pixels, fields in _SIGLIP_ROWS
  ),
  # Image towers of PaliGemma.
  _siglip('so400m', 14, 448, gap=True, tag='pali_mix', crop_ratio=1.0),
  _siglip('so400m', 14, 896, gap=True, tag='pali_pt', crop_ratio=1.0),
  *(
    _dinov3(size, qkv_bias=qkv_bias)
    for qkv_bias in (False, True)
    for size in ('small', 'small_plus', 'base', 'large', 'huge_plus')
  ),
  _dinov3('tiny', qkv_bias=True, tag='eupe_lvd1689m'),
  _eva02('tiny', 224, 'mim_in22k', 0),
  _eva02('tiny', 336, 'mim_in22k_ft_in1k'),
  _eva02('small', 224, 'mim_in22k', 0),
  _eva02('small', 336, 'mim_in22k_ft_in1k'),
  _eva02('base', 224, 'mim_in22k', 0),
  _eva02('base', 448, 'mim_in22k_ft_in1k'),
  _eva02('large', 224, 'mim_in22k', 0),
  _eva02('large', 448, 'mim_in22k_ft_in1k'),
  _beit('beit_base', 224, _BEIT, 0.1),
  _beit('beit_base', 384, _BEIT, 0.1),
  _beit('beit_large', 224, _BEIT),
  _beit('beit_large', 384, _BEIT),
  _beit('beit_large', 512, _BEIT),
  _beit('beitv2_base', 224, 'in1k_ft_in22k_in1k', **_IMAGENET),
  _beit(
    'beitv2_large', 224, 'in1k_ft_in22k_in1k', crop_ratio=0.95, **_IMAGENET
  ),
  _clip('base', 16, 224, _FT12K, 1000, crop_ratio=0.95),
  _clip('base', 16, 384, '', 1000),
  _clip('base', 32, 224, _FT12K, 1000, crop_ratio=0.9),
  _clip('base', 32, 256, 'datacompxl', 512),
  _clip('base', 32, 384, _FT12K, 1000),
  _clip('base', 32, 448, _FT12K, 1000),
  _clip('large', 14, 224, _FT12K, 1000, mean=INCEPTION_MEAN, std=INCEPTION_STD),
  _clip('large', 14, 336, 'openai', 768),
  _clip('huge', 14, 224, _FT12K, 1000),
  _clip('huge', 14, 336, '', 1000),
  _clip('huge', 14, 378, 'dfn5b', 1024),
  _clip('giant', 14, 224, 'laion2b', 1024),
  _clip('gigantic', 14, 224, 'laion2b', 1280),
  _clip('base', 16, 224, 'metaclip_2pt5b', 512, quick=True),
  _clip('base', 32, 224, 'laion400m_e32', 512, quick=True, crop_ratio=0.9),
  _clip('large', 14, 224, 'dfn2b', 768, quick=True),
  _clip('large', 14, 336, 'openai', 768, quick=True),
  _clip('huge', 14, 224, 'dfn5b', 1024, quick=True),
  _clip('huge', 14, 378, 'dfn5b', 1024, quick=True),
  _clip('gigantic', 14, 224, 'metaclip_2pt5b', 1280, quick=True),
)
"""Variants of these families."""
