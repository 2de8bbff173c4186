"""The table of variants, by timm's names (their sizes are the papers')."""

import dataclasses

from lambda_vit_jax import preprocessing
from lambda_vit_jax.errors import ModelError, nearest
from lambda_vit_jax.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class Variant:
  """What a name stands for; every field can be overridden by a config.

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
  mean: tuple[float, ...] = preprocessing.IMAGENET_MEAN
  std: tuple[float, ...] = preprocessing.IMAGENET_STD
  crop_ratio: float = 0.875
  interpolation: str = 'bicubic'
  weights: str = ''
  # A name of timm's that makes this one with other arguments, where timm has
  # none for it.
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


_TINY = {'embed_dim': 192, 'depth': 12, 'num_heads': 3}
_SMALL = {'embed_dim': 384, 'depth': 12, 'num_heads': 6}
_BASE = {'embed_dim': 768, 'depth': 12, 'num_heads': 12}
_MINI = {'embed_dim': 48, 'depth': 12, 'num_heads': 3}


def _deit(size: str, **fields) -> Variant:
  return Variant(
    f'deit_{size}_patch16_224',
    image_size=224,
    patch_size=16,
    weights=f'hf-hub:timm/deit_{size}_patch16_224.fb_in1k',
    **fields,
  )


# Grey images of a few pixels: digits (8), the MNIST family (28).
_GREY = {'mean': (0.5,), 'std': (0.5,), 'crop_ratio': 1.0, 'num_classes': 10}
_STOCK = {'timm_name': 'deit_tiny_patch16_224'}

_ALL = (
  _deit('tiny', **_TINY),
  _deit('small', **_SMALL),
  _deit('base', **_BASE, drop_path_shape='constant'),
  Variant('vit_mini_patch2_8', 8, 2, **_MINI, **_GREY, **_STOCK),
  Variant('vit_mini_patch7_28', 28, 7, **_MINI, **_GREY, **_STOCK),
  Variant('vit_mini_patch4_28', 28, 4, **_MINI, **_GREY, **_STOCK),
  Variant('vit_mini_patch4_32', 32, 4, **_TINY, crop_ratio=1.0, **_STOCK),
)

VARIANTS: dict[str, Variant] = {variant.name: variant for variant in _ALL}


def get_variant(name: str) -> Variant:
  """The variant of that name; timm's tag (`.fb_in1k`) may follow.

  Raises:
    ModelError: no such variant; the nearest names are offered.
  """
  base = str(name).split('.')[0]
  if base not in VARIANTS:
    raise ModelError(
      f'unknown model variant {name!r}{nearest(base, VARIANTS)} '
      '(`lambda-vit models` lists all)'
    )
  return VARIANTS[base]
