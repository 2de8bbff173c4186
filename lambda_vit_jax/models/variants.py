"""Table of known architectures, by timm's names."""

import dataclasses
from typing import Any

from lambda_vit_jax.core.errors import ModelError, nearest
from lambda_vit_jax.core.preprocessing import (
  CLIP_MEAN,
  CLIP_STD,
  IMAGENET_MEAN,
  IMAGENET_STD,
  INCEPTION_MEAN,
  INCEPTION_STD,
  Preprocessing,
)
from lambda_vit_jax.models.pretrained_tags import TAGS


@dataclasses.dataclass(frozen=True)
class Variant:
  """An architecture and its preprocessing; a config can override each field.

  See `ViT` for the architecture fields and `Preprocessing` for `mean` to
  `interpolation`.
  """

  name: str
  image_size: int
  patch_size: int
  embed_dim: int
  depth: int
  num_heads: int
  mlp_ratio: float = 4.0
  num_classes: int = 1000
  norm_eps: float = 1e-6
  activation: str = 'gelu'
  layer_scale: float | None = None
  pooling: str = 'token'
  distilled: bool = False
  num_registers: int = 0
  position_on_class: bool = True
  pre_norm: bool = False
  norm_before_pool: bool = True
  # Recipe of stochastic depth: `linear` from 0, or `constant` over depth.
  drop_path_shape: str = 'linear'
  mean: tuple[float, ...] = IMAGENET_MEAN
  std: tuple[float, ...] = IMAGENET_STD
  crop_ratio: float = 0.875
  interpolation: str = 'bicubic'
  weights: str = ''
  # If timm has no name for it: the name that makes it with other arguments.
  timm_name: str = ''

  @property
  def in_chans(self) -> int:
    """Input channels."""
    return len(self.mean)

  def preprocessing(self, image_size: tuple[int, int]) -> Preprocessing:
    """The evaluation transform at a given size."""
    return Preprocessing(
      image_size, self.mean, self.std, self.crop_ratio, self.interpolation
    )


_Fields = dict[str, Any]
_SIZES: dict[str, _Fields] = {
  'tiny': {'embed_dim': 192, 'depth': 12, 'num_heads': 3},
  'small': {'embed_dim': 384, 'depth': 12, 'num_heads': 6},
  'medium': {'embed_dim': 512, 'depth': 12, 'num_heads': 8},
  'base': {'embed_dim': 768, 'depth': 12, 'num_heads': 12},
  'large': {'embed_dim': 1024, 'depth': 24, 'num_heads': 16},
  'huge': {'embed_dim': 1280, 'depth': 32, 'num_heads': 16},
}
_MINI: _Fields = {'embed_dim': 48, 'depth': 12, 'num_heads': 3}
# Compiles in seconds: for tests and smoke runs.
_NANO: _Fields = {'embed_dim': 24, 'depth': 3, 'num_heads': 2}

_INCEPTION: _Fields = {'mean': INCEPTION_MEAN, 'std': INCEPTION_STD}
_IMAGENET: _Fields = {'mean': IMAGENET_MEAN, 'std': IMAGENET_STD}
_CLIP: _Fields = {'mean': CLIP_MEAN, 'std': CLIP_STD}
# Grey images of a few pixels: digits (8), the MNIST family (28).
_GREY: _Fields = {
  'mean': (0.5,),
  'std': (0.5,),
  'crop_ratio': 1.0,
  'num_classes': 10,
}
_STOCK: _Fields = {'timm_name': 'vit_tiny_patch16_224'}


def _timm(
  name: str, size: str, patch: int, pixels: int, **fields: Any
) -> Variant:
  """A variant of timm's; `tag` names the weights that timm loads by default."""
  tag = fields.pop('tag', '')
  defaults: _Fields = {'crop_ratio': 1.0 if pixels > 224 else 0.9}
  if tag:
    defaults['weights'] = f'hf-hub:timm/{name}.{tag}'
  return Variant(name, pixels, patch, **(_SIZES[size] | defaults | fields))


def _vit(
  size: str, patch: int, pixels: int, tag: str, **fields: Any
) -> Variant:
  """The original ViT and AugReg: Inception's mean and deviation."""
  name = f'vit_{size}_patch{patch}_{pixels}'
  return _timm(name, size, patch, pixels, tag=tag, **(_INCEPTION | fields))


def _mae(size: str) -> Variant:
  """A masked autoencoder's encoder: no head."""
  name = f'vit_{size}_patch16_224'
  variant = _timm(name, size, 16, 224, tag='mae', num_classes=0)
  return dataclasses.replace(variant, name=f'{name}.mae')


def _deit(size: str, pixels: int = 224, **fields: Any) -> Variant:
  """DeiT; only for Base is stochastic depth constant over the blocks."""
  distilled = '_distilled' if fields.get('distilled') else ''
  name = f'deit_{size}{distilled}_patch16_{pixels}'
  shape = 'constant' if size == 'base' else 'linear'
  return _timm(
    name, size, 16, pixels, tag='fb_in1k', drop_path_shape=shape, **fields
  )


def _deit3(size: str, patch: int = 16, pixels: int = 224) -> Variant:
  """DeiT III: LayerScale, and positions only for the patches."""
  name = f'deit3_{size}_patch{patch}_{pixels}'
  fields: _Fields = {'layer_scale': 1e-6, 'position_on_class': False}
  fields['drop_path_shape'] = 'constant'
  return _timm(name, size, patch, pixels, tag='fb_in1k', **fields)


def _dinov2(size: str, num_registers: int = 0) -> Variant:
  """DINOv2: LayerScale and no head; with registers, no class position."""
  registers = f'_reg{num_registers}' if num_registers else ''
  return _timm(
    f'vit_{size}_patch14{registers}_dinov2',
    size,
    14,
    518,
    tag='lvd142m',
    num_classes=0,
    layer_scale=1e-5,
    num_registers=num_registers,
    position_on_class=not num_registers,
  )


def _clip(name: str, **fields: Any) -> Variant:
  """CLIP's image tower: a norm before the blocks, no patch bias, eps 1e-5."""
  return _timm(
    name, 'base', 16, 224, norm_eps=1e-5, pre_norm=True, **(_CLIP | fields)
  )


_FT = 'augreg_in21k_ft_in1k'
_FT2 = 'augreg2_in21k_ft_in1k'
_ORIGINAL = 'orig_in21k'

_ALL = (
  _deit('tiny'),
  _deit('small'),
  _deit('base'),
  _deit('base', 384),
  _deit('tiny', distilled=True),
  _deit('small', distilled=True),
  _deit('base', distilled=True),
  _deit('base', 384, distilled=True),
  _deit3('small'),
  _deit3('small', pixels=384),
  _deit3('medium'),
  _deit3('base'),
  _deit3('base', pixels=384),
  _deit3('large'),
  _deit3('large', pixels=384),
  _deit3('huge', patch=14),
  _vit('tiny', 16, 224, _FT),
  _vit('tiny', 16, 384, _FT),
  _vit('small', 8, 224, 'dino', num_classes=0, **_IMAGENET),
  _vit('small', 16, 224, _FT),
  _vit('small', 16, 384, _FT),
  _vit('small', 32, 224, _FT),
  _vit('small', 32, 384, _FT),
  _vit('base', 8, 224, _FT2),
  _vit('base', 16, 224, _FT2),
  _vit('base', 16, 384, _FT),
  _vit('base', 32, 224, _FT),
  _vit('base', 32, 384, _FT),
  _vit('large', 14, 224, ''),
  _vit('large', 16, 224, _FT),
  _vit('large', 16, 384, _FT),
  _vit('large', 32, 224, _ORIGINAL, num_classes=0),
  _vit('large', 32, 384, f'{_ORIGINAL}_ft_in1k'),
  _mae('base'),
  _mae('large'),
  _dinov2('small'),
  _dinov2('base'),
  _dinov2('large'),
  _dinov2('small', num_registers=4),
  _dinov2('base', num_registers=4),
  _dinov2('large', num_registers=4),
  _clip(
    'vit_base_patch16_clip_224',
    tag='laion2b_ft_in12k_in1k',
    crop_ratio=0.95,
  ),
  _clip(
    'vit_base_patch16_clip_quickgelu_224',
    activation='quick_gelu',
    num_classes=512,
    crop_ratio=1.0,
    weights='hf-hub:timm/vit_base_patch16_clip_224.metaclip_2pt5b',
  ),
  Variant('vit_nano_patch2_8', 8, 2, **_NANO, **_GREY, **_STOCK),
  Variant('vit_mini_patch2_8', 8, 2, **_MINI, **_GREY, **_STOCK),
  Variant('vit_mini_patch7_28', 28, 7, **_MINI, **_GREY, **_STOCK),
  Variant('vit_mini_patch4_28', 28, 4, **_MINI, **_GREY, **_STOCK),
  Variant(
    'vit_mini_patch4_32', 32, 4, **_SIZES['tiny'], crop_ratio=1.0, **_STOCK
  ),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}


def get_variant(name: str) -> Variant:
  """The variant of that name, with or without a tag of timm's (`.fb_in1k`).

  A tag gives the variant the preprocessing and the number of classes of those
  weights; its name remains that of the architecture.

  Raises:
    ModelError: no such variant, or no such tag; the message names the nearest.
  """
  if name in VARIANTS:
    return VARIANTS[name]
  base, _, tag = str(name).partition('.')
  if base not in VARIANTS:
    raise ModelError(
      f'unknown model variant {name!r}{nearest(base, VARIANTS)} '
      '(`lambda-vit models` lists all)'
    )
  known = tags(base)
  if tag and tag not in known:
    raise ModelError(
      f'model variant {name!r}: unknown tag {tag!r}{nearest(tag, known)}, '
      'so the preprocessing of its weights is not known; leave the tag out '
      f'for that of {VARIANTS[base].weights or base}'
    )
  return dataclasses.replace(VARIANTS[base], **known.get(tag, {}))


def tags(name: str) -> dict[str, dict[str, Any]]:
  """Known tags of a variant's weights, with the fields that each changes."""
  own = VARIANTS[name].weights.partition('.')[2]
  return ({own: {}} if own else {}) | TAGS.get(name, {})
