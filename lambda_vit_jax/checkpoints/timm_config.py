"""Read and write timm's `config.json`, as on the Hugging Face hub."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.core.errors import CheckpointError, LambdaVitError
from lambda_vit_jax.core.schema import (
  Bool,
  List,
  Nullable,
  Number,
  Object,
  Text,
)
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import Variant, get_variant

_ARGUMENTS = {
  'patch_size': 'patch_size',
  'embed_dim': 'embed_dim',
  'depth': 'depth',
  'num_heads': 'num_heads',
  'mlp_ratio': 'mlp_ratio',
  'init_values': 'layer_scale',
  'reg_tokens': 'num_registers',
  'pre_norm': 'pre_norm',
  'global_pool': 'pooling',
}
"""timm's constructor arguments, and the field of `Variant` that each sets."""

_POSITIVE = Number(0, 1e6, above=True)
_SIZE = Number(1, 1 << 16, whole=True)

_PREPROCESSING = Object(
  optional={
    'mean': List(Number(-1e6, 1e6), 1, 64),
    'std': List(_POSITIVE, 1, 64),
    'crop_pct': _POSITIVE,
    'interpolation': Text(100),
    'input_size': List(_SIZE, 3, 3),
    'tag': Nullable(Text(200)),
  },
  alike=('mean', 'std'),
)

SCHEMA = Object(
  optional={
    'architecture': Text(200),
    'global_pool': Text(100),
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
          'global_pool': Text(100),
          'no_embed_class': Bool(),
        }
      )
    ),
    'pretrained_cfg': Nullable(_PREPROCESSING),
  }
)
"""What timm and we write, as far as it is read."""

REMEDY = 'get the file again, or load the weights without it'

# Given elsewhere in the file, or by the arrays themselves.
_REDUNDANT = ('img_size', 'in_chans', 'num_classes', 'fc_norm')


def read_variant(config: Mapping[str, Any], where: str) -> Variant:
  """Returns the variant that a `config.json` describes, with preprocessing.

  Args:
    config: as `SCHEMA` says.
    where: the file, for messages.

  Raises:
    CheckpointError: another architecture, or an unsupported argument.
  """
  if 'architecture' not in config:
    raise CheckpointError(
      f'{where}: names no `architecture`; give the variant yourself'
    )
  arguments = dict(config.get('model_args') or {})
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
  if fields.get('pooling', 'token') not in ('token', 'avg'):
    raise CheckpointError(
      f'{where}: global_pool {fields["pooling"]!r} is not supported; known '
      'are token and avg'
    )
  try:
    pretrained = config.get('pretrained_cfg') or {}
    fields |= _read_preprocessing(pretrained)
    name, tag = config['architecture'], pretrained.get('tag')
    variant = get_variant(f'{name}.{tag}' if tag else name)
    return dataclasses.replace(variant, **fields)
  except LambdaVitError as error:
    raise CheckpointError(f'{where}: {error}') from None


def _read_preprocessing(pretrained: Mapping[str, Any]) -> dict[str, Any]:
  fields: dict[str, Any] = {}
  for ours in ('mean', 'std'):
    if ours in pretrained:
      fields[ours] = tuple(float(value) for value in pretrained[ours])
  if 'crop_pct' in pretrained:
    fields['crop_ratio'] = float(pretrained['crop_pct'])
  if pretrained.get('interpolation') in ('bicubic', 'bilinear'):
    fields['interpolation'] = pretrained['interpolation']
  if 'input_size' in pretrained:
    _, height, width = pretrained['input_size']
    if height == width:
      fields['image_size'] = int(height)
  return fields


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
  if module.position_on_class != stock.position_on_class:
    arguments['no_embed_class'] = not module.position_on_class
  if module.pooling == 'avg':
    arguments['fc_norm'] = not module.norm_before_pool
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
