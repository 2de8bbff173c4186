"""The layouts of weight files that we read: names, and what goes with them.

In each table the key is timm's name; see `layouts.renamed`. Facts are from the
programs' own modules, and tests/parity compares each layout with them.
"""

from typing import Any

from lambda_vit_jax.checkpoints import convert, google_names
from lambda_vit_jax.checkpoints.layouts import (
  CLASS_WITH_POSITION,
  GRID,
  POSITIONS_AFTER_CLASS,
  VECTOR,
  ZERO_PER_COLUMN,
  ZERO_PER_ROW,
  Layout,
  Names,
  renamed,
)
from lambda_vit_jax.core.preprocessing import IMAGENET_MEAN, IMAGENET_STD

_TIMM_BLOCK = {
  f'blocks.#.{layer}': f'blocks.#.{layer}'
  for layer in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
}
_TIMM_NAMES: Names = {
  **{x: x for x in ('cls_token', 'dist_token', 'pos_embed', 'norm_pre')},
  **{x: x for x in ('patch_embed.proj', 'norm', 'fc_norm')},
  **{x: x for x in ('head', 'head_dist')},
  **_TIMM_BLOCK,
}
_DEIT3: Names = _TIMM_NAMES | {
  f'blocks.#.ls{half}.gamma': f'blocks.#.gamma_{half}' for half in (1, 2)
}

_META: Names = {
  'cls_token': 'cls_token',
  'pos_embed': 'pos_embed',
  'patch_embed.proj': 'patch_embed.proj',
  'norm': 'norm',
  'blocks.#.ls1.gamma': 'blocks.#.ls1.gamma',
  'blocks.#.ls2.gamma': 'blocks.#.ls2.gamma',
  **_TIMM_BLOCK,
}
_META_REGISTERS: Names = _META | {
  'cls_token': ('{cls_token,pos_embed}', CLASS_WITH_POSITION),
  'pos_embed': ('pos_embed', POSITIONS_AFTER_CLASS),
  'reg_token': 'register_tokens',
}

_HF_EMBEDDINGS: Names = {
  'cls_token': '@embeddings.cls_token',
  'pos_embed': '@embeddings.position_embeddings',
  'patch_embed.proj': '@embeddings.patch_embeddings.projection',
  'norm': '@layernorm',
}
_HF_ATTENTION: Names = {
  'blocks.#.attn.qkv': (
    '@encoder.layer.#.attention.attention.{query,key,value}'
  ),
  'blocks.#.attn.proj': '@encoder.layer.#.attention.output.dense',
}
_HF_VIT: Names = {
  **_HF_EMBEDDINGS,
  **_HF_ATTENTION,
  'blocks.#.norm1': '@encoder.layer.#.layernorm_before',
  'blocks.#.norm2': '@encoder.layer.#.layernorm_after',
  'blocks.#.mlp.fc1': '@encoder.layer.#.intermediate.dense',
  'blocks.#.mlp.fc2': '@encoder.layer.#.output.dense',
  'head': 'classifier',
}
# Of the modules of transformers 5; its files still have the names above.
_HF5_VIT: Names = _HF_VIT | {
  'blocks.#.norm1': '@layers.#.layernorm_before',
  'blocks.#.norm2': '@layers.#.layernorm_after',
  'blocks.#.attn.qkv': '@layers.#.attention.{q_proj,k_proj,v_proj}',
  'blocks.#.attn.proj': '@layers.#.attention.o_proj',
  'blocks.#.mlp.fc1': '@layers.#.mlp.fc1',
  'blocks.#.mlp.fc2': '@layers.#.mlp.fc2',
}
_HF_DEIT: Names = {
  'dist_token': '@embeddings.distillation_token',
  'head': 'cls_classifier',
  'head_dist': 'distillation_classifier',
}
_HF_DINOV2: Names = {
  **_HF_EMBEDDINGS,
  **_HF_ATTENTION,
  **{
    f'blocks.#.{layer}': f'@encoder.layer.#.{layer}'
    for layer in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2')
  },
  'blocks.#.ls1.gamma': '@encoder.layer.#.layer_scale1.lambda1',
  'blocks.#.ls2.gamma': '@encoder.layer.#.layer_scale2.lambda1',
}
_HF5_DINOV2: Names = _HF_DINOV2 | {
  'blocks.#.attn.qkv': '@encoder.layer.#.attention.{q_proj,k_proj,v_proj}',
  'blocks.#.attn.proj': '@encoder.layer.#.attention.o_proj',
}
_HF_REGISTERS: Names = {
  'cls_token': (
    '@embeddings.{cls_token,position_embeddings}',
    CLASS_WITH_POSITION,
  ),
  'pos_embed': ('@embeddings.position_embeddings', POSITIONS_AFTER_CLASS),
  'reg_token': '@embeddings.register_tokens',
}
_HF_TOWER: Names = {
  'pos_embed': ('@embeddings.position_embedding.weight', GRID),
  'patch_embed.proj': '@embeddings.patch_embedding',
  'norm': '@post_layernorm',
  'blocks.#.norm1': '@encoder.layers.#.layer_norm1',
  'blocks.#.norm2': '@encoder.layers.#.layer_norm2',
  'blocks.#.attn.qkv': '@encoder.layers.#.self_attn.{q_proj,k_proj,v_proj}',
  'blocks.#.attn.proj': '@encoder.layers.#.self_attn.out_proj',
  'blocks.#.mlp.fc1': '@encoder.layers.#.mlp.fc1',
  'blocks.#.mlp.fc2': '@encoder.layers.#.mlp.fc2',
}
_HF_CLIP: Names = _HF_TOWER | {
  'cls_token': ('@embeddings.class_embedding', VECTOR),
  'norm_pre': '@pre_layrnorm',
  'head.weight': 'visual_projection.weight',
  'head.bias': ('visual_projection.weight', ZERO_PER_ROW),
}

_TORCHVISION: Names = {
  'cls_token': 'class_token',
  'pos_embed': 'encoder.pos_embedding',
  'patch_embed.proj': 'conv_proj',
  'norm': 'encoder.ln',
  'head': 'heads.head',
  **{
    f'blocks.#.{ours}': f'encoder.layers.encoder_layer_#.{theirs}'
    for ours, theirs in {
      'norm1': 'ln_1',
      'norm2': 'ln_2',
      'attn.qkv.weight': 'self_attention.in_proj_weight',
      'attn.qkv.bias': 'self_attention.in_proj_bias',
      'attn.proj': 'self_attention.out_proj',
      'mlp.fc1': 'mlp.0',
      'mlp.fc2': 'mlp.3',
    }.items()
  },
}
_OLD_TORCHVISION: Names = _TORCHVISION | {
  'blocks.#.mlp.fc1': 'encoder.layers.encoder_layer_#.mlp.linear_1',
  'blocks.#.mlp.fc2': 'encoder.layers.encoder_layer_#.mlp.linear_2',
}

_OPEN_CLIP_TIMM: Names = {
  str(source): f'visual.trunk.{source}' for source, _, _ in convert.TIMM
}
_OPEN_CLIP: Names = {
  'cls_token': ('@class_embedding', VECTOR),
  'pos_embed': ('@positional_embedding', GRID),
  'patch_embed.proj': '@conv1',
  'norm_pre': '@ln_pre',
  'norm': '@ln_post',
  # [embed, classes], the other way round than timm's.
  'head.weight': ('@proj', convert.SAME),
  'head.bias': ('@proj', ZERO_PER_COLUMN),
  **{
    f'blocks.#.{ours}': f'@transformer.resblocks.#.{theirs}'
    for ours, theirs in {
      'norm1': 'ln_1',
      'norm2': 'ln_2',
      'attn.qkv.weight': 'attn.in_proj_weight',
      'attn.qkv.bias': 'attn.in_proj_bias',
      'attn.proj': 'attn.out_proj',
      'mlp.fc1': 'mlp.c_fc',
      'mlp.fc2': 'mlp.c_proj',
    }.items()
  },
}

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
  *_each("DeiT III's", _DEIT3, config='timm'),
  EVA,
  *_each("Meta's DINOv2", _META, ignored=('mask_token',)),
  *_each(
    "Meta's DINOv2 with registers", _META_REGISTERS, ignored=('mask_token',)
  ),
  *_each("timm's tower in OpenCLIP", _OPEN_CLIP_TIMM, ignored=_TEXT_TOWER),
  *(
    layout
    for names in (_HF_VIT, _HF5_VIT)
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
        names | _HF_DEIT,
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
    for names in (_HF_DINOV2, _HF5_DINOV2)
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
        names | _HF_REGISTERS,
        ('', 'dinov2_with_registers.'),
        ignored=_MASK,
        config='transformers',
        stock='vit_base_patch14_reg4_dinov2',
      ),
    )
  ),
  *_each(
    "transformers' CLIP",
    _HF_CLIP,
    ('', 'vision_model.'),
    ignored=_TEXT_TOWER,
    implied={'activation': 'quick_gelu'},
    config='transformers',
    stock='vit_base_patch16_clip_224',
  ),
  *_each('torchvision', _TORCHVISION, fields=_TORCHVISION_IMAGES),
  *_each('torchvision', _OLD_TORCHVISION, fields=_TORCHVISION_IMAGES),
  *_each(
    'OpenCLIP',
    _OPEN_CLIP,
    ('', 'visual.'),
    ignored=_OPEN_CLIP_TEXT,
    config='OpenCLIP',
    stock='vit_base_patch16_clip_224',
  ),
  GOOGLE,
  Layout('big_vision', google_names.BIG_VISION),
)
"""All layouts; of two that explain as many names of a file, the first is it."""


def stock_layout(timm_class: str) -> Layout:
  """The layout of a class of timm's, see `Variant`."""
  return TIMM if timm_class == 'vit' else EVA
