"""Names that other programs give to the arrays of a ViT.

In each table the key is timm's name, see `layouts.renamed`. Facts are from the
programs' own modules, and tests/parity compares each layout with them. `@` is a
prefix that depends on which class was saved.
"""

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.checkpoints.layouts import (
  CLASS_HALF,
  CLASS_WITH_POSITION,
  GRID,
  KEY_VALUE_BIAS,
  KEY_VALUE_ROWS,
  MASKED_QUERY_BIAS,
  MASKED_VALUE_BIAS,
  POSITIONS_AFTER_CLASS,
  QUERY_BIAS,
  QUERY_ROWS,
  VECTOR,
  ZERO_PER_COLUMN,
  ZERO_PER_ROW,
  Names,
)

TIMM_BLOCK = {
  f'blocks.#.{layer}': f'blocks.#.{layer}'
  for layer in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2')
}
TIMM_NAMES: Names = {
  **{x: x for x in ('cls_token', 'dist_token', 'pos_embed', 'norm_pre')},
  **{x: x for x in ('patch_embed.proj', 'norm', 'fc_norm')},
  **{x: x for x in ('head', 'head_dist')},
  **TIMM_BLOCK,
}
DEIT3: Names = TIMM_NAMES | {
  f'blocks.#.ls{half}.gamma': f'blocks.#.gamma_{half}' for half in (1, 2)
}

META: Names = {
  'cls_token': 'cls_token',
  'pos_embed': 'pos_embed',
  'patch_embed.proj': 'patch_embed.proj',
  'norm': 'norm',
  'blocks.#.ls1.gamma': 'blocks.#.ls1.gamma',
  'blocks.#.ls2.gamma': 'blocks.#.ls2.gamma',
  **TIMM_BLOCK,
}
META_REGISTERS: Names = META | {
  'cls_token': ('{cls_token,pos_embed}', CLASS_WITH_POSITION),
  'pos_embed': ('pos_embed', POSITIONS_AFTER_CLASS),
  'reg_token': 'register_tokens',
}

HF_EMBEDDINGS: Names = {
  'cls_token': '@embeddings.cls_token',
  'pos_embed': '@embeddings.position_embeddings',
  'patch_embed.proj': '@embeddings.patch_embeddings.projection',
  'norm': '@layernorm',
}
HF_ATTENTION: Names = {
  'blocks.#.attn.qkv': (
    '@encoder.layer.#.attention.attention.{query,key,value}'
  ),
  'blocks.#.attn.proj': '@encoder.layer.#.attention.output.dense',
}
HF_VIT: Names = {
  **HF_EMBEDDINGS,
  **HF_ATTENTION,
  'blocks.#.norm1': '@encoder.layer.#.layernorm_before',
  'blocks.#.norm2': '@encoder.layer.#.layernorm_after',
  'blocks.#.mlp.fc1': '@encoder.layer.#.intermediate.dense',
  'blocks.#.mlp.fc2': '@encoder.layer.#.output.dense',
  'head': 'classifier',
}
# Of the modules of transformers 5; its files still have the names above.
HF5_VIT: Names = HF_VIT | {
  'blocks.#.norm1': '@layers.#.layernorm_before',
  'blocks.#.norm2': '@layers.#.layernorm_after',
  'blocks.#.attn.qkv': '@layers.#.attention.{q_proj,k_proj,v_proj}',
  'blocks.#.attn.proj': '@layers.#.attention.o_proj',
  'blocks.#.mlp.fc1': '@layers.#.mlp.fc1',
  'blocks.#.mlp.fc2': '@layers.#.mlp.fc2',
}
HF_DEIT: Names = {
  'dist_token': '@embeddings.distillation_token',
  'head': 'cls_classifier',
  'head_dist': 'distillation_classifier',
}
HF_DINOV2: Names = {
  **HF_EMBEDDINGS,
  **HF_ATTENTION,
  **{
    f'blocks.#.{layer}': f'@encoder.layer.#.{layer}'
    for layer in ('norm1', 'norm2', 'mlp.fc1', 'mlp.fc2')
  },
  'blocks.#.ls1.gamma': '@encoder.layer.#.layer_scale1.lambda1',
  'blocks.#.ls2.gamma': '@encoder.layer.#.layer_scale2.lambda1',
  'head.weight': ('classifier.weight', CLASS_HALF),
  'head.bias': 'classifier.bias',
}
HF5_DINOV2: Names = HF_DINOV2 | {
  'blocks.#.attn.qkv': '@encoder.layer.#.attention.{q_proj,k_proj,v_proj}',
  'blocks.#.attn.proj': '@encoder.layer.#.attention.o_proj',
}
HF_REGISTERS: Names = {
  'cls_token': (
    '@embeddings.{cls_token,position_embeddings}',
    CLASS_WITH_POSITION,
  ),
  'pos_embed': ('@embeddings.position_embeddings', POSITIONS_AFTER_CLASS),
  'reg_token': '@embeddings.register_tokens',
}
HF_TOWER: Names = {
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
HF_CLIP: Names = HF_TOWER | {
  'cls_token': ('@embeddings.class_embedding', VECTOR),
  'norm_pre': '@pre_layrnorm',
  'head.weight': 'visual_projection.weight',
  'head.bias': ('visual_projection.weight', ZERO_PER_ROW),
}

HF_SIGLIP: Names = HF_TOWER | {
  'attn_pool.latent': '@head.probe',
  'attn_pool.q.weight': ('@head.attention.in_proj_weight', QUERY_ROWS),
  'attn_pool.q.bias': ('@head.attention.in_proj_bias', QUERY_BIAS),
  'attn_pool.kv.weight': ('@head.attention.in_proj_weight', KEY_VALUE_ROWS),
  'attn_pool.kv.bias': ('@head.attention.in_proj_bias', KEY_VALUE_BIAS),
  'attn_pool.proj': '@head.attention.out_proj',
  'attn_pool.norm': '@head.layernorm',
  'attn_pool.mlp.fc1': '@head.mlp.fc1',
  'attn_pool.mlp.fc2': '@head.mlp.fc2',
}
HF_DINOV3: Names = {
  'cls_token': 'embeddings.cls_token',
  'reg_token': 'embeddings.register_tokens',
  'patch_embed.proj': 'embeddings.patch_embeddings',
  'norm': 'norm',
  **{
    f'blocks.#.{ours}': f'@layer.#.{theirs}'
    for ours, theirs in {
      'norm1': 'norm1',
      'norm2': 'norm2',
      'ls1.gamma': 'layer_scale1.lambda1',
      'ls2.gamma': 'layer_scale2.lambda1',
      'attn.qkv.weight': 'attention.{q_proj,k_proj,v_proj}.weight',
      'attn.q_bias': 'attention.q_proj.bias',
      'attn.v_bias': 'attention.v_proj.bias',
      'attn.proj': 'attention.o_proj',
      'mlp.fc1': 'mlp.up_proj',
      'mlp.fc2': 'mlp.down_proj',
    }.items()
  },
}
HF_GATED_DINOV3: Names = {
  ours.replace('mlp.fc1', 'mlp.fc1_x'): theirs
  for ours, theirs in HF_DINOV3.items()
} | {'blocks.#.mlp.fc1_g': '@layer.#.mlp.gate_proj'}
META_DINOV3: Names = META | {
  'reg_token': 'storage_tokens',
  'blocks.#.attn.qkv.weight': 'blocks.#.attn.qkv.weight',
  'blocks.#.attn.q_bias': ('blocks.#.attn.qkv.bias', MASKED_QUERY_BIAS),
  'blocks.#.attn.v_bias': ('blocks.#.attn.qkv.bias', MASKED_VALUE_BIAS),
}
META_DINOV3.pop('pos_embed')
META_DINOV3.pop('blocks.#.attn.qkv')
META_GATED_DINOV3: Names = {
  ours: theirs for ours, theirs in META_DINOV3.items() if '.mlp.' not in ours
} | {
  'blocks.#.mlp.fc1_g': 'blocks.#.mlp.w1',
  'blocks.#.mlp.fc1_x': 'blocks.#.mlp.w2',
  'blocks.#.mlp.fc2': 'blocks.#.mlp.w3',
}

TORCHVISION: Names = {
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
OLD_TORCHVISION: Names = TORCHVISION | {
  'blocks.#.mlp.fc1': 'encoder.layers.encoder_layer_#.mlp.linear_1',
  'blocks.#.mlp.fc2': 'encoder.layers.encoder_layer_#.mlp.linear_2',
}

OPEN_CLIP_TIMM: Names = {
  str(source): f'visual.trunk.{source}' for source, _, _ in convert.TIMM
}
OPEN_CLIP: Names = {
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
