"""Tags of timm's weights (`.dino`), with what each differs in from its variant.

timm trained one architecture several times, and the weights of each tag expect
their own mean and deviation. tests/parity compares the table with timm's.
"""

from typing import Any

from lambda_vit_jax.core.preprocessing import (
  CLIP_MEAN,
  CLIP_STD,
  IMAGENET_MEAN,
  IMAGENET_STD,
)

Fields = dict[str, Any]

_SAME: Fields = {}
_21K: Fields = {'num_classes': 21843}
_NO_HEAD: Fields = {'num_classes': 0}
_SELF_SUPERVISED: Fields = {
  'mean': IMAGENET_MEAN,
  'std': IMAGENET_STD,
  'num_classes': 0,
}
_BAMBOO: Fields = {
  'mean': CLIP_MEAN,
  'std': CLIP_STD,
  'crop_ratio': 1.0,
  'num_classes': 115217,
}
_WHOLE: Fields = {'crop_ratio': 1.0}
_DEIT3: dict[str, Fields] = {'fb_in22k_ft_in1k': _WHOLE}
_CLIP: Fields = {'crop_ratio': 1.0, 'num_classes': 512}
_CLIP_12K: Fields = {'crop_ratio': 0.9, 'num_classes': 11821}

TAGS: dict[str, dict[str, Fields]] = {
  'deit3_small_patch16_224': _DEIT3,
  'deit3_small_patch16_384': _DEIT3,
  'deit3_medium_patch16_224': _DEIT3,
  'deit3_base_patch16_224': _DEIT3,
  'deit3_base_patch16_384': _DEIT3,
  'deit3_large_patch16_224': _DEIT3,
  'deit3_large_patch16_384': _DEIT3,
  'deit3_huge_patch14_224': _DEIT3,
  'vit_tiny_patch16_224': {'augreg_in21k': _21K},
  'vit_small_patch16_224': {
    'augreg_in1k': _SAME,
    'augreg_in21k': _21K,
    'dino': _SELF_SUPERVISED,
  },
  'vit_small_patch16_384': {'augreg_in1k': _SAME},
  'vit_small_patch32_224': {'augreg_in21k': _21K},
  'vit_base_patch8_224': {
    'augreg_in21k_ft_in1k': _SAME,
    'augreg_in21k': _21K,
    'dino': _SELF_SUPERVISED,
  },
  'vit_base_patch16_224': {
    'augreg_in21k_ft_in1k': _SAME,
    'orig_in21k_ft_in1k': _SAME,
    'augreg_in1k': _SAME,
    'orig_in21k': _NO_HEAD,
    'augreg_in21k': _21K,
    'sam_in1k': _SAME,
    'bamboo': _BAMBOO,
    'dino': _SELF_SUPERVISED,
  },
  'vit_base_patch16_384': {'orig_in21k_ft_in1k': _SAME, 'augreg_in1k': _SAME},
  'vit_base_patch32_224': {
    'augreg_in1k': _SAME,
    'orig_in21k': _NO_HEAD,
    'augreg_in21k': _21K,
    'sam_in1k': _SAME,
  },
  'vit_base_patch32_384': {'augreg_in1k': _SAME},
  'vit_large_patch16_224': {'orig_in21k': _NO_HEAD, 'augreg_in21k': _21K},
  'vit_base_patch16_clip_224': {
    'openai_ft_in12k_in1k': _SAME,
    'laion2b_ft_in1k': _WHOLE,
    'openai_ft_in1k': {'crop_ratio': 0.9},
    'laion2b_ft_in12k': _CLIP_12K,
    'openai_ft_in12k': _CLIP_12K,
    'laion2b': _CLIP,
    'laion400m_e32': _CLIP,
    'datacompxl': _CLIP,
    'dfn2b': _CLIP,
    'metaclip_2pt5b': _CLIP,
    'metaclip_400m': _CLIP,
    'openai': {'crop_ratio': 0.9, 'num_classes': 512},
  },
  'vit_base_patch16_clip_quickgelu_224': {
    'metaclip_400m': _SAME,
    'openai': {'crop_ratio': 0.9},
  },
}
"""Per variant the tags besides that of its own `weights`."""
