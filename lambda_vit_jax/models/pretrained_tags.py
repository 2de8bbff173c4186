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

_CLIP_COLOURS: Fields = {'mean': CLIP_MEAN, 'std': CLIP_STD}
_768: Fields = {'num_classes': 768}
_1024: Fields = {'num_classes': 1024}
_SATELLITE: Fields = {
  'mean': (0.43, 0.411, 0.296),
  'std': (0.213, 0.156, 0.143),
}
_QUICK_B32: dict[str, Fields] = {
  'metaclip_2pt5b': _WHOLE,
  'metaclip_400m': _WHOLE,
  'openai': _SAME,
}

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
  'vit_base_patch32_clip_224': {
    'laion2b_ft_in1k': _SAME,
    'openai_ft_in1k': _SAME,
    'datacompxl': _CLIP,
    'metaclip_2pt5b': _CLIP,
    'metaclip_400m': _CLIP,
    'laion2b': {'num_classes': 512},
    'laion400m_e32': {'num_classes': 512},
    'openai': {'num_classes': 512},
  },
  'vit_base_patch32_clip_quickgelu_224': _QUICK_B32,
  'vit_large_patch14_clip_224': {
    'laion2b': _768,
    'laion2b_ft_in1k': _SAME,
    'laion2b_ft_in12k': {'num_classes': 11821},
    'openai_ft_in1k': _CLIP_COLOURS,
    'openai_ft_in12k_in1k': _CLIP_COLOURS,
    'openai_ft_in12k': _CLIP_COLOURS | {'num_classes': 11821},
    'apple_mclip2_dfndr2b': _CLIP_COLOURS | _768,
    'datacompxl': _CLIP_COLOURS | _768,
    'dfn2b': _CLIP_COLOURS | _768,
    'dfn2b_s39b': _CLIP_COLOURS | _768,
    'laion400m_e32': _CLIP_COLOURS | _768,
    'metaclip_2pt5b': _CLIP_COLOURS | _768,
    'metaclip_400m': _CLIP_COLOURS | _768,
    'openai': _CLIP_COLOURS | _768,
  },
  'vit_huge_patch14_clip_224': {
    'laion2b_ft_in1k': _SAME,
    'laion2b_ft_in12k': {'num_classes': 11821},
    'dfn5b': _1024,
    'laion2b': _1024,
    'metaclip2_worldwide': _1024,
    'metaclip_2pt5b': _1024,
    'metaclip_altogether': _1024,
  },
  'beit_base_patch16_224': {'in22k_ft_in22k': {'num_classes': 21841}},
  'beit_large_patch16_224': {'in22k_ft_in22k': {'num_classes': 21841}},
  'beitv2_base_patch16_224': {
    'in1k_ft_in1k': _SAME,
    'in1k_ft_in22k': {'num_classes': 21841},
  },
  'beitv2_large_patch16_224': {
    'in1k_ft_in1k': _SAME,
    'in1k_ft_in22k': {'num_classes': 21841, 'crop_ratio': 0.9},
  },
  'vit_large_patch16_dinov3': {'sat493m': _SATELLITE},
  'vit_large_patch16_dinov3_qkvb': {'sat493m': _SATELLITE},
  'vit_so400m_patch14_siglip_gap_378': {'webli': _WHOLE},
  'vit_base_patch16_clip_quickgelu_224': {
    'metaclip_400m': _SAME,
    'openai': {'crop_ratio': 0.9},
  },
}
"""Per variant the tags besides that of its own `weights`."""

# Those that differ in nothing from the variant.
_OTHER_TAGS = {
  'vit_base_patch16_siglip_224': 'webli',
  'vit_base_patch16_siglip_256': 'webli webli_i18n',
  'vit_base_patch16_siglip_384': 'webli',
  'vit_base_patch16_siglip_512': 'webli',
  'vit_base_patch16_siglip_gap_224': 'webli',
  'vit_base_patch16_siglip_gap_256': 'webli webli_i18n',
  'vit_base_patch16_siglip_gap_384': 'webli',
  'vit_base_patch16_siglip_gap_512': 'webli',
  'vit_large_patch16_siglip_256': 'webli',
  'vit_large_patch16_siglip_384': 'webli',
  'vit_large_patch16_siglip_gap_256': 'webli',
  'vit_large_patch16_siglip_gap_384': 'webli',
  'vit_so400m_patch14_siglip_224': 'webli',
  'vit_so400m_patch14_siglip_378': 'webli',
  'vit_so400m_patch14_siglip_gap_224': (
    'webli pali_mix pali_pt pali2_3b_pt pali2_10b_pt'
  ),
  'vit_so400m_patch14_siglip_gap_448': (
    'pali_pt pali_ocrvqa pali_refcoco_seg pali2_3b_pt pali2_3b_docci '
    'pali2_10b_pt pali2_10b_docci'
  ),
  'vit_so400m_patch14_siglip_gap_896': (
    'pali_ocrvqa pali_refcoco_seg pali2_3b_pt pali2_10b_pt'
  ),
  'vit_large_patch14_clip_quickgelu_224': 'metaclip_2pt5b metaclip_400m openai',
  'vit_huge_patch14_clip_quickgelu_224': 'metaclip2_worldwide metaclip_2pt5b',
  'vit_gigantic_patch14_clip_224': 'metaclip2_worldwide metaclip_2pt5b',
  'vit_small_patch16_dinov3_qkvb': 'eupe_lvd1689m',
  'vit_base_patch16_dinov3_qkvb': 'eupe_lvd1689m',
  'eva02_large_patch14_224': 'mim_m38m',
  'eva02_large_patch14_448': 'mim_m38m_ft_in1k',
  'vit_so400m_patch16_siglip_256': 'webli_i18n',
  'vit_so400m_patch16_siglip_gap_256': 'webli_i18n',
}
TAGS |= {
  name: dict.fromkeys(known.split(), _SAME)
  for name, known in _OTHER_TAGS.items()
}
