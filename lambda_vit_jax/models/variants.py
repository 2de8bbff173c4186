"""Table of known architectures, by timm's names."""

import dataclasses
import fnmatch
from typing import Any

from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import ModelError, nearest
from lambda_vit_jax.core.preprocessing import (
  IMAGENET_MEAN,
  IMAGENET_STD,
  INCEPTION_MEAN,
  INCEPTION_STD,
)
from lambda_vit_jax.models.architecture import (
  SIZES,
  Fields,
  Variant,
  timm_variant,
)
from lambda_vit_jax.models.families import FAMILIES
from lambda_vit_jax.models.pretrained_tags import TAGS

_MINI: Fields = {'embed_dim': 48, 'depth': 12, 'num_heads': 3}
# Compiles in seconds: for tests and smoke runs.
_NANO: Fields = {'embed_dim': 24, 'depth': 3, 'num_heads': 2}

_INCEPTION: Fields = {'mean': INCEPTION_MEAN, 'std': INCEPTION_STD}
_IMAGENET: Fields = {'mean': IMAGENET_MEAN, 'std': IMAGENET_STD}
# Grey images of a few pixels: digits (8), the MNIST family (28).
_GREY: Fields = {
  'mean': (0.5,),
  'std': (0.5,),
  'crop_ratio': 1.0,
  'num_classes': 10,
}
_STOCK: Fields = {'timm_name': 'vit_tiny_patch16_224'}


def _vit(
  size: str, patch: int, pixels: int, tag: str, **fields: Any
) -> Variant:
  """The original ViT and AugReg: Inception's mean and deviation."""
  name = f'vit_{size}_patch{patch}_{pixels}'
  return timm_variant(
    name, size, patch, pixels, tag=tag, **(_INCEPTION | fields)
  )


def _mae(size: str) -> Variant:
  """A masked autoencoder's encoder: no head."""
  name = f'vit_{size}_patch16_224'
  variant = timm_variant(name, size, 16, 224, tag='mae', num_classes=0)
  return dataclasses.replace(variant, name=f'{name}.mae')


def _deit(size: str, pixels: int = 224, **fields: Any) -> Variant:
  """DeiT; only for Base is stochastic depth constant over the blocks."""
  distilled = '_distilled' if fields.get('distilled') else ''
  name = f'deit_{size}{distilled}_patch16_{pixels}'
  shape = 'constant' if size == 'base' else 'linear'
  return timm_variant(
    name, size, 16, pixels, tag='fb_in1k', drop_path_shape=shape, **fields
  )


def _deit3(size: str, patch: int = 16, pixels: int = 224) -> Variant:
  """DeiT III: LayerScale, and positions only for the patches."""
  name = f'deit3_{size}_patch{patch}_{pixels}'
  fields: Fields = {'layer_scale': 1e-6, 'position_on_class': False}
  fields['drop_path_shape'] = 'constant'
  return timm_variant(name, size, patch, pixels, tag='fb_in1k', **fields)


def _dinov2(size: str, num_registers: int = 0) -> Variant:
  """DINOv2: LayerScale and no head; with registers, no class position."""
  registers = f'_reg{num_registers}' if num_registers else ''
  return timm_variant(
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
  *FAMILIES,
  Variant('vit_nano_patch2_8', 8, 2, **_NANO, **_GREY, **_STOCK),
  Variant('vit_mini_patch2_8', 8, 2, **_MINI, **_GREY, **_STOCK),
  Variant('vit_mini_patch7_28', 28, 7, **_MINI, **_GREY, **_STOCK),
  Variant('vit_mini_patch4_28', 28, 4, **_MINI, **_GREY, **_STOCK),
  Variant(
    'vit_mini_patch4_32', 32, 4, **SIZES['tiny'], crop_ratio=1.0, **_STOCK
  ),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}


@check_arguments
def list_models(pattern: str = '') -> tuple[str, ...]:
  """Names of the variants, for `lv.load_pretrained` and `lv.create_model`.

  Args:
    pattern: as in a shell, or a part of the name: `dinov2`, `deit_*`; all by
      default.

  Returns:
    In alphabetical order; none where no name fits.
  """
  wanted = pattern if set(pattern) & {*'*?['} else f'*{pattern}*'
  return tuple(sorted(fnmatch.filter(VARIANTS, wanted)))


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
