"""Recognise the variant of a model from the shapes of its arrays."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.checkpoints.layout_tables import LAYOUTS
from lambda_vit_jax.checkpoints.layouts import Layout, nearest_layout
from lambda_vit_jax.checkpoints.weight_file import WeightFile
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.models.relative_bias import TABLE
from lambda_vit_jax.models.variants import VARIANTS, Variant

# With these stated, a network needs no name of its own.
_SIZES = {'embed_dim', 'depth', 'num_heads', 'patch_size', 'image_size'}

_MOST_SHOWN = 3


def num_prefix(variant: Variant) -> int:
  """Entries of the position embedding before the first patch."""
  if not variant.position_on_class:
    return 0
  named = int(variant.class_token) + int(variant.distilled)
  return named + variant.num_registers


def num_patches(
  variant: Variant, shape: Callable[[str], convert.Shape | None]
) -> int | None:
  """Patches of the images of a file, from its positions; None for any number.

  Args:
    variant: what the file is of.
    shape: of a parameter, by its path.
  """
  positions = shape('pos_embed')
  if positions is not None and len(positions) == 3:
    return positions[1] - num_prefix(variant)
  table = shape(f'block00/attn/{TABLE}')
  if table is None:
    return None
  # Of a square grid; see `relative_bias.table_rows`.
  return ((math.isqrt(max(table[0] - 3, 1)) + 1) // 2) ** 2


def _attention_of(variant: Variant) -> set[str]:
  """Arrays by which attention layers of families differ."""
  found = {'qkv/kernel' if variant.fused_qkv else 'q_proj/kernel'}
  if variant.qkv_bias and not variant.fused_qkv:
    found.add('q_proj/bias')
  elif variant.qkv_bias:
    found.add('qkv/bias' if variant.key_bias else 'qkv/q_bias')
  return found | ({TABLE} if variant.relative_bias else set())


def candidates(
  shapes: Mapping[str, convert.Shape], rules: convert.Rules = convert.TIMM
) -> tuple[str, ...]:
  """Variants that the arrays fit, preferably at their own image size."""
  shape = functools.partial(convert.parameter_shape, shapes, rules=rules)
  kernel = shape('patch_embed/kernel')
  positions = shape('pos_embed')
  packed = shape('block00/mlp/fc1/kernel')
  mlp = packed or shape('block00/mlp/fc1_g/kernel')
  if kernel is None or mlp is None:
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
    'distilled': shape('dist_token') is not None,
    'num_registers': registers[1] if registers else 0,
    'class_token': shape('cls_token') is not None,
    'absolute_positions': positions is not None,
    'mlp_norm': shape('block00/mlp/norm/scale') is not None,
    'pre_norm': shape('norm_pre/scale') is not None,
  }
  # Of the first block that has such a layer: some may have lost theirs.
  names = ['qkv/kernel', 'qkv/bias', 'qkv/q_bias']
  names += ['q_proj/kernel', 'q_proj/bias', TABLE]
  attention = next(
    (
      {name for name in names if shape(f'{block_name(index)}/attn/{name}')}
      for index in range(depth)
      if shape(f'{block_name(index)}/attn/proj/kernel')
    ),
    None,
  )
  fitting = [
    variant
    for variant in VARIANTS.values()
    # A tag (`.mae`) names weights, not another shape.
    if '.' not in variant.name
    and all(getattr(variant, name) == value for name, value in facts.items())
    and mlp[1]
    == variant.hidden_dim * (1 + (variant.mlp_kind == 'swiglu_packed'))
    and attention in (None, _attention_of(variant))
    and (variant.pooling == 'map') == (shape('attn_pool/latent') is not None)
    and (variant.layer_scale is None) == (shape('block00/ls2/gamma') is None)
  ]
  exact = [
    variant
    for variant in fitting
    if num_patches(variant, shape)
    in (None, (variant.image_size // variant.patch_size) ** 2)
  ]
  return tuple(variant.name for variant in exact or fitting)


def infer_variant(
  file: WeightFile, stated: Mapping[str, Any] | None = None
) -> str:
  """Returns the only variant that the arrays fit.

  Args:
    file: an open file.
    stated: fields of `Variant` that are known from elsewhere.

  Raises:
    CheckpointError: no variant fits, or several, which it names.
  """
  stated = stated or {}
  names = _preferred(candidates(file.shapes, file.rules), file.layout, stated)
  if len(names) == 1:
    return names[0]
  if not names and file.layout.stock and set(stated) >= _SIZES:
    return file.layout.stock
  where = file.path
  if not names:
    raise _unlike(file)
  raise CheckpointError(
    f'{where}: its arrays fit {", ".join(names)}; say which with `variant` '
    '(a stage: --config.model.variant, predict: --variant)'
  )


def _preferred(
  names: tuple[str, ...], layout: Layout, stated: Mapping[str, Any]
) -> tuple[str, ...]:
  """Those of the layout's families that agree with what is stated, if any."""
  own = [name for name in names if name.startswith(layout.families)]
  agreeing = [
    name
    for name in own
    if all(
      getattr(VARIANTS[name], field) == stated[field]
      for field in ('activation', 'num_heads')
      if field in stated
    )
  ]
  chosen = tuple(agreeing or own or names)
  if {'mean', 'std', 'activation'} <= set(stated):
    # What is left are names of one function.
    return chosen[:1]
  return chosen


def _unlike(file: WeightFile) -> CheckpointError:
  """The error for a file that fits no variant; names the nearest layout."""
  layout, known = nearest_layout(file.shapes, LAYOUTS)
  unknown = [name for name in file.shapes if not layout.explains(name)]
  count = len(file.shapes)
  if known and not unknown:
    return CheckpointError(
      f'{file.path}: has the names of {layout.title}, but its {count} arrays '
      'fit no variant that we have (`lambda-vit models` lists them)'
    )
  if known > count // 2:
    shown = ', '.join(convert.grouped(unknown)[:_MOST_SHOWN])
    return CheckpointError(
      f'{file.path}: looks like {layout.title}, but has {shown}'
    )
  return CheckpointError(
    f'{file.path}: its {count} arrays fit no variant that we have (`lambda-vit '
    'models` lists them)'
  )
