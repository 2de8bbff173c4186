"""timm's names of what only some families have, and ours.

SigLIP's attention pooling; projections and biases of EVA-02 and BEiT; SwiGLU.
`#` is the block index, see `convert`.
"""

ARRAYS = (
  (
    'blocks.#.attn.relative_position_bias_table',
    'block#/attn/relative_position_bias_table',
  ),
  ('attn_pool.latent', 'attn_pool/latent'),
  ('blocks.#.attn.q_bias', 'block#/attn/qkv/q_bias'),
  ('blocks.#.attn.v_bias', 'block#/attn/qkv/v_bias'),
)
"""Single arrays."""

NORMS = (
  ('attn_pool.norm', 'attn_pool/norm'),
  ('blocks.#.mlp.norm', 'block#/mlp/norm'),
)
"""Layers with a scale and a bias."""

MATRICES = (
  ('attn_pool.q', 'attn_pool/q'),
  ('attn_pool.kv', 'attn_pool/kv'),
  ('attn_pool.proj', 'attn_pool/proj'),
  ('attn_pool.mlp.fc1', 'attn_pool/mlp/fc1'),
  ('attn_pool.mlp.fc2', 'attn_pool/mlp/fc2'),
  ('blocks.#.attn.q_proj', 'block#/attn/q_proj'),
  ('blocks.#.attn.k_proj', 'block#/attn/k_proj'),
  ('blocks.#.attn.v_proj', 'block#/attn/v_proj'),
  ('blocks.#.mlp.fc1_g', 'block#/mlp/fc1_g'),
  ('blocks.#.mlp.fc1_x', 'block#/mlp/fc1_x'),
)
"""Layers with a matrix and perhaps a bias."""
