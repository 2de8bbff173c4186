"""`Variant`: one row of the tables of architectures, and the usual sizes."""

import dataclasses
from typing import Any

from lambda_vit_jax.core.preprocessing import (
  IMAGENET_MEAN,
  IMAGENET_STD,
  Preprocessing,
)


def hidden_width(embed_dim: int, mlp_ratio: float, alignment: int = 1) -> int:
  """Width of an MLP's hidden layer, rounded up to a multiple of `alignment`."""
  width = int(embed_dim * mlp_ratio)
  return width + -width % alignment


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
  absolute_positions: bool = True
  class_token: bool = True
  qkv_bias: bool = True
  key_bias: bool = True
  fused_qkv: bool = True
  rotary: str = ''
  relative_bias: bool = False
  mlp_kind: str = 'plain'
  mlp_norm: bool = False
  mlp_alignment: int = 1
  pre_norm: bool = False
  norm_before_pool: bool = True
  # Recipe of stochastic depth: `linear` from 0, or `constant` over depth.
  drop_path_shape: str = 'linear'
  mean: tuple[float, ...] = IMAGENET_MEAN
  std: tuple[float, ...] = IMAGENET_STD
  crop_ratio: float = 0.875
  interpolation: str = 'bicubic'
  weights: str = ''
  # timm's class: `vit`, `eva` or `beit`, which name some things differently.
  timm_class: str = 'vit'
  # If timm has no name for it: the name that makes it with other arguments.
  timm_name: str = ''

  @property
  def hidden_dim(self) -> int:
    """Width of an MLP's hidden layer."""
    return hidden_width(self.embed_dim, self.mlp_ratio, self.mlp_alignment)

  @property
  def in_chans(self) -> int:
    """Input channels."""
    return len(self.mean)

  def preprocessing(self, image_size: tuple[int, int]) -> Preprocessing:
    """The evaluation transform at a given size."""
    return Preprocessing(
      image_size, self.mean, self.std, self.crop_ratio, self.interpolation
    )


Fields = dict[str, Any]

SIZES: dict[str, Fields] = {
  'tiny': {'embed_dim': 192, 'depth': 12, 'num_heads': 3},
  'small': {'embed_dim': 384, 'depth': 12, 'num_heads': 6},
  'medium': {'embed_dim': 512, 'depth': 12, 'num_heads': 8},
  'base': {'embed_dim': 768, 'depth': 12, 'num_heads': 12},
  'large': {'embed_dim': 1024, 'depth': 24, 'num_heads': 16},
  'huge': {'embed_dim': 1280, 'depth': 32, 'num_heads': 16},
  'so400m': {
    'embed_dim': 1152,
    'depth': 27,
    'num_heads': 16,
    'mlp_ratio': 3.7362,
  },
  'small_plus': {'embed_dim': 384, 'depth': 12, 'num_heads': 6},
  'huge_plus': {'embed_dim': 1280, 'depth': 32, 'num_heads': 20},
  'giant': {
    'embed_dim': 1408,
    'depth': 40,
    'num_heads': 16,
    'mlp_ratio': 48 / 11,
  },
  'gigantic': {
    'embed_dim': 1664,
    'depth': 48,
    'num_heads': 16,
    'mlp_ratio': 64 / 13,
  },
  'giantopt': {'embed_dim': 1536, 'depth': 40, 'num_heads': 16},
}


def timm_variant(
  name: str, size: str, patch: int, pixels: int, **fields: Any
) -> Variant:
  """A variant of timm's; `tag` names the weights that timm loads by default."""
  tag = fields.pop('tag', '')
  defaults: Fields = {'crop_ratio': 1.0 if pixels > 224 else 0.9}
  if tag:
    defaults['weights'] = f'hf-hub:timm/{name}.{tag}'
  return Variant(name, pixels, patch, **(SIZES[size] | defaults | fields))
