"""Read and write timm's `config.json`, as on the Hugging Face hub."""

import math
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.preprocessing import LEAST_CROP
from lambda_vit_jax.core.schema import (
  Bool,
  Choice,
  List,
  Nullable,
  Number,
  Object,
  Text,
)
from lambda_vit_jax.models.architecture import hidden_width
from lambda_vit_jax.models.layers import ACTIVATIONS
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import VARIANTS, get_variant
from lambda_vit_jax.models.vit import ViT

_ARGUMENTS = {
  'patch_size': 'patch_size',
  'embed_dim': 'embed_dim',
  'depth': 'depth',
  'num_heads': 'num_heads',
  'mlp_ratio': 'mlp_ratio',
  'init_values': 'layer_scale',
  'reg_tokens': 'num_registers',
  'pre_norm': 'pre_norm',
  'class_token': 'class_token',
  'act_layer': 'activation',
  'global_pool': 'pooling',
}
"""timm's constructor arguments, and the field of `Variant` that each sets."""

_POSITIVE = Number(0, 1e6, above=True)
_SIZE = Number(1, 1 << 16, whole=True)
_POOLING = Choice(('token', 'avg', 'map'))

_PREPROCESSING = Object(
  optional={
    'mean': List(Number(-1e6, 1e6), 1, 64),
    'std': List(_POSITIVE, 1, 64),
    'crop_pct': Number(LEAST_CROP, 1),
    'interpolation': Choice(('bicubic', 'bilinear')),
    # Of the square and the border that timm knows besides we have neither.
    'crop_mode': Choice(('center',)),
    'input_size': List(_SIZE, 3, 3),
    'tag': Nullable(Text(200)),
  },
  alike=('mean', 'std'),
)

SCHEMA = Object(
  optional={
    'architecture': Text(200),
    'global_pool': _POOLING,
    'model_args': Nullable(
      Object(
        optional={
          'patch_size': _SIZE,
          'embed_dim': _SIZE,
          'depth': Number(1, 256, whole=True),
          'num_heads': _SIZE,
          'mlp_ratio': _POSITIVE,
          'init_values': Nullable(_POSITIVE),
          'reg_tokens': Number(0, 1 << 16, whole=True),
          'pre_norm': Bool(),
          'class_token': Bool(),
          'act_layer': Choice(tuple(ACTIVATIONS)),
          'global_pool': _POOLING,
          'fc_norm': Nullable(Bool()),
          'num_reg_tokens': Number(0, 1 << 16, whole=True),
          'use_fc_norm': Nullable(Bool()),
          'no_embed_class': Bool(),
        }
      )
    ),
    'pretrained_cfg': Nullable(_PREPROCESSING),
  }
)
"""What timm and we write, as far as it is read."""

REMEDY = 'get the file again, or load the weights without it'

_OTHER_CLASSES = {'reg_tokens': 'num_reg_tokens', 'fc_norm': 'use_fc_norm'}
"""What classes but `VisionTransformer` call some of these."""

# Given elsewhere in the file, or by the arrays themselves.
_REDUNDANT = ('img_size', 'in_chans', 'num_classes', 'fc_norm')

# Channels of a network of timm's, unless it is told otherwise.
_COLOURS = 3


def architecture(config: Mapping[str, Any]) -> str | None:
  """Returns the name of the architecture, with the tag of its weights if any.

  None where the JSON is another program's.
  """
  name: str | None = config.get('architecture')
  tag = (config.get('pretrained_cfg') or {}).get('tag')
  return f'{name}.{tag}' if name and tag else name


def read_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Returns the fields of `Variant` that a `config.json` sets.

  `pooling` and `norm_before_pool` are both there or both missing.

  Args:
    config: as `SCHEMA` says.
    where: the file, for messages.

  Raises:
    CheckpointError: an argument that we have no network for.
  """
  ours = {theirs: name for name, theirs in _OTHER_CLASSES.items()}
  arguments = {
    ours.get(name, name): value
    for name, value in (config.get('model_args') or {}).items()
  }
  if 'global_pool' in config:
    arguments.setdefault('global_pool', config['global_pool'])
  fields: dict[str, Any] = {}
  for name, value in arguments.items():
    if name == 'no_embed_class':
      fields['position_on_class'] = not value
    elif name in _ARGUMENTS:
      fields[_ARGUMENTS[name]] = value
    elif name not in _REDUNDANT:
      raise CheckpointError(f'{where}: model_args.{name} is not supported')
  if 'global_pool' in arguments or 'fc_norm' in arguments:
    stock = VARIANTS.get(str(config.get('architecture')))
    own = (
      ('token', True)
      if stock is None
      else (stock.pooling, stock.norm_before_pool)
    )
    pooling = fields.setdefault('pooling', own[0])
    behind = arguments.get('fc_norm')
    if behind is None:
      # timm moves the norm behind a mean unless the architecture is made
      # otherwise.
      behind = pooling == 'avg' if pooling != own[0] else not own[1]
    fields['norm_before_pool'] = not behind
  return fields | _read_preprocessing(config.get('pretrained_cfg') or {}, where)


def _read_preprocessing(
  pretrained: Mapping[str, Any], where: str
) -> dict[str, Any]:
  fields: dict[str, Any] = {}
  for ours in ('mean', 'std'):
    if ours in pretrained:
      fields[ours] = tuple(float(value) for value in pretrained[ours])
  if 'crop_pct' in pretrained:
    fields['crop_ratio'] = float(pretrained['crop_pct'])
  if 'interpolation' in pretrained:
    fields['interpolation'] = pretrained['interpolation']
  if 'input_size' in pretrained:
    channels, height, width = pretrained['input_size']
    for name in ('mean', 'std'):
      if len(fields.get(name, range(channels))) != channels:
        raise CheckpointError(
          f'{where}: `{name}` has {len(fields[name])} numbers for the '
          f'{channels} channels of `input_size`; {REMEDY}'
        )
    if height == width:
      # That of other shapes comes from the arrays.
      fields['image_size'] = int(height)
  return fields


def uniform_ratio(module: ViT) -> float | None:
  """The `mlp_ratio` with which all MLPs have the width that they have.

  None for the module's own widths, for widths that differ between blocks, and
  for one that no ratio gives: 0, or no multiple of the alignment.
  """
  widths = set(module.mlp_dims)
  if len(widths) != 1 or not min(widths):
    return None
  (width,) = widths
  ratio = width / module.embed_dim
  if int(module.embed_dim * ratio) < width:
    # The quotient was rounded down, and so is its product.
    ratio = math.nextafter(ratio, math.inf)
  made = hidden_width(module.embed_dim, ratio, module.mlp_alignment)
  return ratio if made == width else None


def write_config(model: Model) -> dict[str, Any]:
  """Returns the `config.json` with which timm builds a model's architecture.

  A variant that timm has no name for is written as a plain one with
  constructor arguments.
  """
  module, preprocessing = model.module, model.preprocessing
  variant = get_variant(model.variant)
  stock = get_variant(variant.timm_name or variant.name.split('.')[0])
  arguments: dict[str, Any] = {}
  for argument, name in _ARGUMENTS.items():
    value = getattr(module, name)
    if value != getattr(stock, name):
      arguments[argument] = value
  ratio = uniform_ratio(module)
  if ratio is not None:
    # In this class the ratio is that of both halves of a packed layer.
    packed = module.mlp_kind == 'swiglu_packed' and stock.timm_class == 'vit'
    arguments['mlp_ratio'] = ratio * (1 + packed)
  if module.position_on_class != stock.position_on_class:
    arguments['no_embed_class'] = not module.position_on_class
  if module.pooling == 'avg' or not module.norm_before_pool:
    arguments['fc_norm'] = not module.norm_before_pool
  if stock.timm_class != 'vit':
    arguments = {_OTHER_CLASSES.get(n, n): x for n, x in arguments.items()}
  if module.in_chans != _COLOURS:
    arguments['in_chans'] = module.in_chans
  if module.image_size != (stock.image_size, stock.image_size):
    arguments['img_size'] = list(module.image_size)
  # Of a segmentation model timm knows the backbone only.
  num_classes = module.num_classes if module.segmentation is None else 0
  return {
    'architecture': stock.name,
    'num_classes': num_classes,
    'num_features': module.embed_dim,
    'global_pool': module.pooling,
    'model_args': arguments,
    'pretrained_cfg': {
      'custom_load': False,
      'input_size': [module.in_chans, *module.image_size],
      'fixed_input_size': True,
      'interpolation': preprocessing.interpolation,
      'crop_pct': preprocessing.crop_ratio,
      'mean': list(preprocessing.mean),
      'std': list(preprocessing.std),
      'num_classes': num_classes,
      'first_conv': 'patch_embed.proj',
      'classifier': ['head', 'head_dist'] if module.distilled else 'head',
    },
  }
