"""A tiny model for each class of transformers that we write."""

import dataclasses

import jax
import numpy as np

from lambda_vit_jax.checkpoints.transformers_config import CLASSES as ALL
from lambda_vit_jax.checkpoints.transformers_config import HubClass
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import Variant, get_variant

_BY_TITLE = {
  entry.layout.removeprefix("transformers' "): entry for entry in ALL
}
_VARIANTS = {
  'vit': ('ViT', 'vit_base_patch16_224', 5),
  'vit-headless': ('ViT', 'vit_base_patch16_224', 0),
  'deit': ('DeiT', 'deit_base_distilled_patch16_224', 5),
  'dinov2': ('DINOv2', 'vit_base_patch14_dinov2', 0),
  'dinov2-head': ('DINOv2', 'vit_base_patch14_dinov2', 5),
  'registers': ('DINOv2 with registers', 'vit_base_patch14_reg4_dinov2', 0),
  'registers-head': (
    'DINOv2 with registers',
    'vit_base_patch14_reg4_dinov2',
    5,
  ),
  'siglip': ('SigLIP', 'vit_base_patch16_siglip_224', 0),
  'clip': ('CLIP', 'vit_base_patch16_clip_224', 0),
  'clip-head': ('CLIP', 'vit_base_patch16_clip_quickgelu_224', 5),
  'dinov3': ('DINOv3', 'vit_base_patch16_dinov3_qkvb', 0),
  'dinov3-gated': (
    'DINOv3 (SwiGLU)',
    'vit_small_plus_patch16_dinov3_qkvb',
    0,
  ),
}
CLASSES: dict[str, HubClass] = {
  case: _BY_TITLE[title] for case, (title, _, _) in _VARIANTS.items()
}


def member(case: str) -> Model:
  """A network of two blocks with numbers of order 1."""
  _, name, classes = _VARIANTS[case]
  spec = _small(get_variant(name))
  module = make_module(spec, num_classes=classes)
  if spec.rotary:
    module = module.clone(pooling='token', norm_before_pool=True)
  rng = np.random.default_rng(7)
  params = jax.tree.map(
    lambda x: np.float32(0.2 * rng.normal(size=x.shape)),
    abstract_params(module),
  )
  if case == 'clip-head':
    # Its projection has no bias.
    params['head']['bias'] = np.zeros_like(params['head']['bias'])
  return Model(
    module,
    params,
    name,
    spec.preprocessing(module.image_size),
    class_names=tuple('abcde'[:classes]),
  )


def _small(spec: Variant) -> Variant:
  return dataclasses.replace(
    spec, image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3
  )
