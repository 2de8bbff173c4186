"""Recognise the variant of a model from the shapes of its arrays."""

from collections.abc import Mapping

import numpy as np

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.variants import VARIANTS, Variant


def parameter_shape(
  shapes: Mapping[str, convert.Shape], path: str, rules: convert.Rules
) -> convert.Shape | None:
  """The shape that a parameter of ours would have, None if it is missing."""
  found = convert.source_names(path, rules)
  if found is None or any(name not in shapes for name in found[0]):
    return None
  names, transform = found
  try:
    return transform.decode(
      *(np.broadcast_to(np.float32(0), shapes[name]) for name in names)
    ).shape
  except ValueError:
    return None


def num_positions(variant: Variant, grid: tuple[int, int]) -> int:
  """Length of the position embedding on a grid of patches."""
  return grid[0] * grid[1] + num_prefix(variant)


def num_prefix(variant: Variant) -> int:
  """Entries of the position embedding before the first patch."""
  if not variant.position_on_class:
    return 0
  return 1 + int(variant.distilled) + variant.num_registers


def candidates(
  shapes: Mapping[str, convert.Shape], rules: convert.Rules = convert.TIMM
) -> tuple[str, ...]:
  """Variants that the arrays fit, preferably at their own image size."""

  def shape(path: str) -> convert.Shape | None:
    return parameter_shape(shapes, path, rules)

  def has(path: str) -> bool:
    return shape(path) is not None

  kernel = shape('patch_embed/kernel')
  positions = shape('pos_embed')
  mlp = shape('block00/mlp/fc1/kernel')
  if kernel is None or positions is None or mlp is None:
    return ()
  depth = 0
  while has(f'{block_name(depth)}/norm2/scale'):
    depth += 1
  registers = shape('reg_token')
  facts = {
    'patch_size': kernel[0],
    'in_chans': kernel[2],
    'embed_dim': kernel[3],
    'depth': depth,
    'mlp_ratio': mlp[1] / mlp[0],
    'distilled': has('dist_token'),
    'num_registers': registers[1] if registers else 0,
    'pre_norm': has('norm_pre/scale'),
  }
  fitting = [
    variant
    for variant in VARIANTS.values()
    # A tag (`.mae`) names weights, not another shape.
    if '.' not in variant.name
    and all(getattr(variant, name) == value for name, value in facts.items())
    and (variant.layer_scale is not None) == has('block00/ls2/gamma')
  ]
  exact = [
    variant
    for variant in fitting
    if positions[1]
    == num_positions(variant, (variant.image_size // variant.patch_size,) * 2)
  ]
  return tuple(variant.name for variant in exact or fitting)


def infer_variant(
  shapes: Mapping[str, convert.Shape], rules: convert.Rules, where: str
) -> str:
  """Returns the only variant that the arrays fit.

  Raises:
    CheckpointError: no variant fits, or several, which it names.
  """
  names = candidates(shapes, rules)
  if len(names) == 1:
    return names[0]
  if not names:
    raise CheckpointError(
      f'{where}: its {len(shapes)} arrays fit no variant that we have '
      '(`lambda-vit models` lists them)'
    )
  raise CheckpointError(
    f'{where}: its arrays fit {", ".join(names)}; say which with `variant` '
    '(--config.model.variant)'
  )
