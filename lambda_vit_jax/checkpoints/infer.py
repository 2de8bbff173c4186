"""Recognise the variant of a model from the shapes of its arrays."""

import functools
from collections.abc import Mapping

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.variants import VARIANTS, Variant


def num_prefix(variant: Variant) -> int:
  """Entries of the position embedding before the first patch."""
  if not variant.position_on_class:
    return 0
  return 1 + int(variant.distilled) + variant.num_registers


def candidates(
  shapes: Mapping[str, convert.Shape], rules: convert.Rules = convert.TIMM
) -> tuple[str, ...]:
  """Variants that the arrays fit, preferably at their own image size."""
  shape = functools.partial(convert.parameter_shape, shapes, rules=rules)
  kernel = shape('patch_embed/kernel')
  positions = shape('pos_embed')
  mlp = shape('block00/mlp/fc1/kernel')
  if kernel is None or positions is None or mlp is None:
    return ()
  depth = 0
  while shape(f'{block_name(depth)}/norm2/scale'):
    depth += 1
  registers = shape('reg_token')
  facts = {
    'patch_size': kernel[0],
    'in_chans': kernel[2],
    'embed_dim': kernel[3],
    'depth': depth,
    'mlp_ratio': mlp[1] / mlp[0],
    'distilled': shape('dist_token') is not None,
    'num_registers': registers[1] if registers else 0,
    'pre_norm': shape('norm_pre/scale') is not None,
  }
  fitting = [
    variant
    for variant in VARIANTS.values()
    # A tag (`.mae`) names weights, not another shape.
    if '.' not in variant.name
    and all(getattr(variant, name) == value for name, value in facts.items())
    and (variant.layer_scale is None) == (shape('block00/ls2/gamma') is None)
  ]
  exact = [
    variant
    for variant in fitting
    if positions[1] - num_prefix(variant)
    == (variant.image_size // variant.patch_size) ** 2
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
    '(a stage: --config.model.variant, predict: --variant)'
  )
