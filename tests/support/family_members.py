"""A tiny model of every family, for timm and for us.

A member is an architecture of timm with fewer and smaller blocks, so that the
family's own code runs. Its weights are a function of their names and shapes, so
golden files hold only results.
"""

import dataclasses
import zlib
from collections.abc import Mapping

import numpy as np

from lambda_vit_jax.checkpoints import convert, google_names
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.variants import Variant, get_variant
from tests.support.trees import numbered

_DEPTH = 2
_WIDTH = 24
_HEADS = 3


@dataclasses.dataclass(frozen=True)
class Member:
  """The tiny model of one family.

  Attributes:
    family: a variant of the family; also the name of timm's architecture.
    patch_size: pixels of a patch.
    image_sizes: its own size, then another one to resize to.
    num_classes: of its head, 0 for no head.
    pooling: `avg` for the mean of the patches, and then `fc_norm`; else the
      family's own.
  """

  family: str
  patch_size: int = 4
  image_sizes: tuple[int, int] = (16, 24)
  num_classes: int = 5
  pooling: str = ''

  @property
  def name(self) -> str:
    """Name of the variant."""
    pooled = f'_{self.pooling}' if self.pooling else ''
    return f'tiny_{self.family.split(".")[0]}{pooled}'

  @property
  def variant(self) -> Variant:
    """Our variant."""
    if not self.pooling:
      return self.registered
    return dataclasses.replace(
      self.registered, pooling=self.pooling, norm_before_pool=False
    )

  @property
  def registered(self) -> Variant:
    """The same with the family's own pooling."""
    return dataclasses.replace(
      get_variant(self.family),
      name=self.name,
      image_size=self.image_sizes[0],
      patch_size=self.patch_size,
      embed_dim=_WIDTH,
      depth=_DEPTH,
      num_heads=_HEADS,
      num_classes=self.num_classes,
      timm_name=self.family.split('.')[0],
    )

  @property
  def timm_arguments(self) -> dict:
    """Arguments of `timm.create_model`."""
    pooling = {'global_pool': self.pooling} if self.pooling else {}
    return pooling | {
      'model_name': self.family.split('.')[0],
      'img_size': self.image_sizes[0],
      'patch_size': self.patch_size,
      'embed_dim': _WIDTH,
      'depth': _DEPTH,
      'num_heads': _HEADS,
      'num_classes': self.num_classes,
    }


MEMBERS = (
  Member('vit_tiny_patch16_224'),
  Member('vit_small_patch8_224', patch_size=8, num_classes=0),
  Member('vit_small_patch32_224', patch_size=8, image_sizes=(32, 16)),
  Member('vit_base_patch16_224.mae', num_classes=0),
  Member('vit_large_patch14_224', patch_size=7, image_sizes=(28, 14)),
  Member('deit_tiny_patch16_224'),
  Member('deit_small_distilled_patch16_224'),
  Member('deit3_small_patch16_224'),
  Member('vit_small_patch14_dinov2', patch_size=7, image_sizes=(21, 28)),
  Member('vit_small_patch14_reg4_dinov2', patch_size=7, image_sizes=(21, 28)),
  # A masked autoencoder after fine-tuning.
  Member('vit_base_patch16_224.mae', pooling='avg'),
  Member(
    'vit_small_patch14_reg4_dinov2',
    patch_size=7,
    image_sizes=(21, 28),
    pooling='avg',
  ),
  Member('vit_base_patch16_clip_224'),
  Member('vit_base_patch16_clip_quickgelu_224'),
  Member('vit_base_patch16_siglip_224', patch_size=8),
  Member('vit_base_patch32_siglip_gap_256', patch_size=8),
  Member('vit_so400m_patch16_siglip_256', patch_size=8, num_classes=0),
  Member('vit_small_patch16_dinov3', patch_size=8, num_classes=0),
  Member('vit_small_plus_patch16_dinov3_qkvb', patch_size=8),
  Member('eva02_tiny_patch14_224', patch_size=8),
  Member('eva02_base_patch14_224', patch_size=8),
  Member('beit_base_patch16_224'),
  Member('beitv2_base_patch16_224', patch_size=8, image_sizes=(24, 16)),
)
"""At least one of every family, each with two image sizes."""


def synthetic_arrays(
  shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
  """Float32 weights by timm's names, the same on every machine.

  Norm scales are around 1 and LayerScale is around 1/2, so that each of them
  affects the logits; projections preserve the variance.
  """
  arrays = {}
  for name, shape in shapes.items():
    # RandomState's stream never changes (NEP 19).
    normal = np.random.RandomState(zlib.crc32(name.encode())).normal(size=shape)
    if len(shape) in (2, 4):
      array = normal / np.sqrt(np.prod(shape[1:]))
    elif 'gamma' in name:
      array = 0.5 + 0.1 * normal
    elif name.endswith('weight'):
      array = 1.0 + 0.1 * normal
    else:
      array = (0.1 if name.endswith('bias') else 0.5) * normal
    arrays[name] = array.astype(np.float32)
  return arrays


def synthetic_images(image_size: int) -> np.ndarray:
  """One normalised NHWC image `[1, size, size, 3]`, float32."""
  rng = np.random.RandomState(image_size)
  return rng.normal(size=(1, image_size, image_size, 3)).astype(np.float32)


def google_arrays(member, heads):
  """Google's form of a tiny ViT, made by its own layout rules."""
  params = numbered(abstract_params(make_module(member.variant)))
  arrays = convert.encode(params, google_names.GOOGLE)
  for name, array in list(arrays.items()):
    width = params['cls_token'].shape[-1]
    if '/query/' in name or '/key/' in name or '/value/' in name:
      lead = array.shape[:1] if name.endswith('kernel') else ()
      arrays[name] = array.reshape(*lead, heads, width // heads)
    if name.endswith('out/kernel'):
      arrays[name] = array.reshape(heads, width // heads, width)
  return params, arrays
