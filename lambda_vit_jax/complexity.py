"""Multiply-accumulates of a ViT, by the formula of METHOD, section 1."""

from collections.abc import Sequence

from lambda_vit_jax.typing import AttentionMode


def count_macs(
  *,
  modes: Sequence[AttentionMode],
  tokens: int,
  patches: int,
  patch_inputs: int,
  embed_dim: int,
  mlp_ratio: float,
  num_classes: int,
  read_tokens: int | None = None,
  linear_inputs: Sequence[str] = ('token',),
) -> int:
  """Multiply-accumulates of one image (products only, no norm, no softmax).

  Args:
    modes: one attention mode per block; `diluted` counts as `full`.
    tokens: tokens per image, the class token included.
    patches: patches per image.
    patch_inputs: numbers in one patch, `patch_size² · channels`.
    embed_dim: the width D.
    mlp_ratio: hidden width of the MLP over D.
    num_classes: outputs of all heads together.
    read_tokens: None for the published convention, in which every block
      works on every token. Otherwise what is really executed when only that
      many leading tokens are read: from the last block that mixes tokens on,
      only they have queries, projections and MLPs.
    linear_inputs: what blocks in mode `linear` map.
  """
  total = patches * patch_inputs * embed_dim + num_classes * embed_dim
  mixing_modes = {'full', 'diluted'}
  if 'mean' in linear_inputs:
    mixing_modes.add('linear')
  mixing = [i for i, mode in enumerate(modes) if mode in mixing_modes]
  last = mixing[-1] if mixing else -1
  for index, mode in enumerate(modes):
    rows = tokens if read_tokens is None or index < last else read_tokens
    square = embed_dim * embed_dim
    if mode in ('full', 'diluted'):
      total += 2 * tokens * square + 2 * rows * square
      total += 2 * rows * tokens * embed_dim
    elif mode == 'linear':
      total += rows * square
      if 'mean' in linear_inputs:
        # Once an image and map; the class token's map may be the only one.
        own = 'class_map' in linear_inputs
        total += (own + (rows > own)) * square
    total += int(2 * rows * mlp_ratio * square)
  return total
