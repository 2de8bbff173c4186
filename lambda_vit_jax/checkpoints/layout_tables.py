"""The layouts of weight files that we read: names, and what goes with them."""

from typing import Any

from lambda_vit_jax.checkpoints import convert, google_names, layout_names
from lambda_vit_jax.checkpoints.layouts import Layout, Names, renamed
from lambda_vit_jax.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD

_TEXT_TOWER = (
  r'text(_model)?\..*',
  r'text_projection(\..*)?',
  r'logit_(scale|bias)',
  r'.*position_ids',
)
_OPEN_CLIP_TEXT = (
  r'transformer\..*',
  r'token_embedding\..*',
  r'positional_embedding',
  r'ln_final\..*',
  r'attn_mask',
  *_TEXT_TOWER,
)
_POOLER = (
  r'(vit\.|deit\.)?pooler\..*',
  r'(vit\.|deit\.)?embeddings\.mask_token',
)
_MASK = (r'(dinov2(_with_registers)?\.)?embeddings\.mask_token',)
_VIT_NORM: dict[str, Any] = {'norm_eps': 1e-12}
_TORCHVISION_IMAGES: dict[str, Any] = {
  'mean': IMAGENET_MEAN,
  'std': IMAGENET_STD,
  'crop_ratio': 0.875,
  'interpolation': 'bilinear',
}


# These programs read the class token, where timm takes the patches' mean.
_CLASS_TOKEN: dict[str, Any] = {'pooling': 'token', 'norm_before_pool': True}
_META_LEFT = (
  'mask_token',
  r'rope_embed\.periods',
  r'blocks\.\d+\..*\.bias_mask',
)


def _each(
  title: str, names: Names, bases: tuple[str, ...] = ('',), **fields: Any
) -> tuple[Layout, ...]:
  """A layout for each of the prefixes that a part of its arrays can have."""
  return tuple(Layout(title, renamed(names, b), **fields) for b in bases)


TIMM = Layout('timm', convert.TIMM, config='timm')
EVA = Layout(
  "timm's EVA and BEiT",
  convert.TIMM_FLAT,
  (r'.*relative_position_index', 'mask_token'),
  config='timm',
)
GOOGLE = Layout("Google's vision_transformer", google_names.GOOGLE)

LAYOUTS: tuple[Layout, ...] = (
  TIMM,
  *_each("DeiT III's", layout_names.DEIT3, config='timm'),
  EVA,
  *_each("Meta's DINOv2", layout_names.META, ignored=('mask_token',)),
  *_each(
    "Meta's DINOv2 with registers",
    layout_names.META_REGISTERS,
    ignored=('mask_token',),
  ),
  *_each(
    "timm's tower in OpenCLIP", layout_names.OPEN_CLIP_TIMM, ignored=_TEXT_TOWER
  ),
  *(
    layout
    for names in (layout_names.HF_VIT, layout_names.HF5_VIT)
    for layout in (
      *_each(
        "transformers' ViT",
        names,
        ('', 'vit.'),
        ignored=_POOLER,
        families=('vit_',),
        fields=_VIT_NORM,
        config='transformers',
        stock='vit_base_patch16_224',
      ),
      *_each(
        "transformers' DeiT",
        names | layout_names.HF_DEIT,
        ('', 'deit.'),
        ignored=_POOLER,
        families=('deit_',),
        fields=_VIT_NORM,
        config='transformers',
        stock='deit_base_distilled_patch16_224',
      ),
    )
  ),
  *(
    layout
    for names in (layout_names.HF_DINOV2, layout_names.HF5_DINOV2)
    for layout in (
      *_each(
        "transformers' DINOv2",
        names,
        ('', 'dinov2.'),
        ignored=_MASK,
        config='transformers',
        stock='vit_base_patch14_dinov2',
      ),
      *_each(
        "transformers' DINOv2 with registers",
        names | layout_names.HF_REGISTERS,
        ('', 'dinov2_with_registers.'),
        ignored=_MASK,
        config='transformers',
        stock='vit_base_patch14_reg4_dinov2',
      ),
    )
  ),
  *_each(
    "transformers' SigLIP",
    layout_names.HF_SIGLIP,
    ('', 'vision_model.'),
    ignored=_TEXT_TOWER,
    fields={'activation': 'gelu_tanh'},
    config='transformers',
    stock='vit_base_patch16_siglip_224',
  ),
  *(
    layout
    for title, names, stock in (
      (
        "transformers' DINOv3",
        layout_names.HF_DINOV3,
        'vit_base_patch16_dinov3_qkvb',
      ),
      (
        "transformers' DINOv3 (SwiGLU)",
        layout_names.HF_GATED_DINOV3,
        'vit_small_plus_patch16_dinov3_qkvb',
      ),
    )
    for layout in _each(
      title,
      names,
      ('', 'model.'),
      ignored=_MASK,
      fields=_CLASS_TOKEN,
      config='transformers',
      stock=stock,
    )
  ),
  *_each(
    "Meta's DINOv3",
    layout_names.META_DINOV3,
    ignored=_META_LEFT,
    fields=_CLASS_TOKEN,
  ),
  *_each(
    "Meta's DINOv3 (SwiGLU)",
    layout_names.META_GATED_DINOV3,
    ignored=_META_LEFT,
    fields=_CLASS_TOKEN,
  ),
  *_each(
    "transformers' CLIP",
    layout_names.HF_CLIP,
    ('', 'vision_model.'),
    ignored=_TEXT_TOWER,
    implied={'activation': 'quick_gelu'},
    config='transformers',
    stock='vit_base_patch16_clip_224',
  ),
  *_each('torchvision', layout_names.TORCHVISION, fields=_TORCHVISION_IMAGES),
  *_each(
    'torchvision', layout_names.OLD_TORCHVISION, fields=_TORCHVISION_IMAGES
  ),
  *_each(
    'OpenCLIP',
    layout_names.OPEN_CLIP,
    ('', 'visual.'),
    ignored=_OPEN_CLIP_TEXT,
    config='OpenCLIP',
    stock='vit_base_patch16_clip_224',
  ),
  GOOGLE,
  Layout('big_vision', google_names.BIG_VISION),
  Layout(
    "big_vision's SigLIP",
    google_names.SIGLIP,
    ignored=(r'txt/.*', 't', 'b'),
  ),
)
"""All layouts; of two that explain as many names of a file, the first is it."""


def stock_layout(timm_class: str) -> Layout:
  """The layout of a class of timm's, see `Variant`."""
  return TIMM if timm_class == 'vit' else EVA
