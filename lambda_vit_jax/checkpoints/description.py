"""Describe a model in JSON, without its parameters, and rebuild it from that.

The description is in `model.json`, in a checkpoint's metadata and in the header
of our safetensors files. It is read as untrusted input: known keys only, types
and bounds checked, nothing evaluated or opened.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from lambda_vit_jax.core.errors import CheckpointError, LambdaVitError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.layers import ACTIVATIONS
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import DILUTION_PATHS
from lambda_vit_jax.models.quantization import QUANTIZATIONS
from lambda_vit_jax.models.variants import Variant, get_variant

# Bounds on every size and on the depth in a description.
_LARGEST = 1 << 16
_DEEPEST = 256


def _is_size(value: Any, least: int = 1) -> bool:
  return type(value) is int and least <= value <= _LARGEST


def _is_positive(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value) and value > 0


def _is_bool(value: Any) -> bool:
  return type(value) is bool


def _are_names(value: Any) -> bool:
  return isinstance(value, list) and all(isinstance(x, str) for x in value)


ARCHITECTURE: dict[str, Callable[[Any], bool]] = {
  'patch_size': _is_size,
  'embed_dim': _is_size,
  # Every block is traced: thousands of them would look like a hang.
  'depth': lambda value: _is_size(value) and value <= _DEEPEST,
  'num_heads': _is_size,
  'mlp_ratio': _is_positive,
  'activation': lambda value: value in tuple(ACTIVATIONS),
  'layer_scale': lambda value: value is None or _is_positive(value),
  'pooling': lambda value: value in ('token', 'avg'),
  'distilled': _is_bool,
  'num_registers': lambda value: _is_size(value, 0),
  'position_on_class': _is_bool,
  'pre_norm': _is_bool,
  'norm_before_pool': _is_bool,
}
"""Fields of `ViT` in a description, each with the check of its value."""


def describe(model: Model) -> dict[str, Any]:
  """Returns all that is needed to build `model` again, except parameters."""
  module = model.module
  return {
    'variant': model.variant,
    'image_size': list(module.image_size),
    'num_classes': module.num_classes,
    'architecture': {name: getattr(module, name) for name in ARCHITECTURE},
    'attention_modes': list(module.attention_modes),
    'removed_layers': list(model.removed_layers),
    'kept_blocks': list(model.kept_blocks),
    'norm_eps': list(module.norm_eps),
    'pre_norm_eps': module.pre_norm_eps,
    'compensation': module.compensation,
    'linear_inputs': list(module.linear_inputs),
    'dilution_path': module.dilution_path,
    'merge': list(module.merge),
    'quantization': module.quantization,
    'segmentation': (
      None if module.segmentation is None else module.segmentation.to_json()
    ),
    'preprocessing': model.preprocessing.to_json(),
    'class_names': list(model.class_names),
  }


def rebuild(fields: Any, where: str) -> Model:
  """Builds the model of a description, with shapes in place of parameters.

  Args:
    fields: the parsed JSON of `describe`. Entries that `architecture` lacks
      are those of the variant.
    where: the file, for messages.

  Raises:
    CheckpointError: anything that is not a valid description.
  """
  try:
    return _rebuild(fields)
  except CheckpointError as error:
    raise CheckpointError(f'{where}: {error}') from None
  except LambdaVitError as error:
    raise CheckpointError(
      f'{where}: {error}; the file is not one of ours, or of a newer version'
    ) from None
  except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
    raise CheckpointError(
      f'{where}: no valid model description ({type(e).__name__}: {e}); '
      'export the model again'
    ) from None


def _require(condition: bool, what: str) -> None:
  if not condition:
    raise CheckpointError(f'no valid model description: {what}')


def _rebuild(fields: Any) -> Model:
  _require(isinstance(fields, Mapping), 'not a JSON object')
  # `image_size` is read from here alone.
  preprocessing = Preprocessing.from_json(fields['preprocessing'])
  _check_preprocessing(preprocessing)
  variant = _read_variant(fields)
  num_classes = fields['num_classes']
  _require(_is_size(num_classes, 0), f'num_classes = {num_classes!r}')
  segmentation = fields.get('segmentation')
  if segmentation is not None:
    _require(num_classes > 0, 'a decoder without classes')
    segmentation = Decoder.from_json(segmentation, variant.depth)
  module = make_module(
    variant,
    num_classes=num_classes,
    image_size=preprocessing.image_size,
    in_chans=preprocessing.channels,
    segmentation=segmentation,
    **_read_norms(fields, variant),
    **_read_modes(fields),
  )
  return Model(
    module=module,
    params=abstract_params(module),
    variant=get_variant(fields['variant']).name,
    preprocessing=preprocessing,
    class_names=_read_class_names(fields, num_classes),
    kept_blocks=_read_kept_blocks(fields, module.depth),
  )


def _read_variant(fields: Mapping[str, Any]) -> Variant:
  """The named variant, with the architecture's values in place of its own."""
  architecture = fields.get('architecture', {})
  _require(isinstance(architecture, Mapping), '`architecture` is no object')
  for name, value in architecture.items():
    _require(
      name in ARCHITECTURE and ARCHITECTURE[name](value),
      f'architecture.{name} = {str(value)[:60]!r}',
    )
  variant = dataclasses.replace(get_variant(fields['variant']), **architecture)
  _require(
    variant.embed_dim % variant.num_heads == 0,
    f'{variant.num_heads} heads do not divide embed_dim {variant.embed_dim}',
  )
  return variant


def _read_norms(fields: Mapping[str, Any], variant: Variant) -> dict[str, Any]:
  """Epsilons of the LayerNorms, as arguments of `make_module`."""
  norm_eps = list(fields['norm_eps'])
  _require(all(_is_positive(value) for value in norm_eps), 'norm_eps')
  pre_norm_eps = fields.get('pre_norm_eps', variant.norm_eps)
  _require(_is_positive(pre_norm_eps), 'pre_norm_eps')
  return {'norm_eps': norm_eps, 'pre_norm_eps': float(pre_norm_eps)}


def _read_modes(fields: Mapping[str, Any]) -> dict[str, Any]:
  """What each block computes and how, as arguments of `make_module`."""
  modes = list(fields['attention_modes'])
  _require(_are_names(modes), 'attention_modes')
  compensation = fields.get('compensation', True)
  _require(_is_bool(compensation), 'compensation')
  linear_inputs = fields.get('linear_inputs', ['token'])
  _require(_are_names(linear_inputs), '`linear_inputs` is no list of names')
  path = fields.get('dilution_path', 'attention')
  _require(path in DILUTION_PATHS, 'dilution_path')
  merge = fields.get('merge', [])
  _require(
    isinstance(merge, list)
    and all(_is_size(count, 0) for count in merge)
    and len(merge) in (0, len(modes)),
    '`merge` is no list of one number per block',
  )
  quantization = fields.get('quantization', 'none')
  _require(quantization in QUANTIZATIONS, 'quantization')
  return {
    'attention_modes': modes,
    'compensation': compensation,
    'linear_inputs': linear_inputs,
    'dilution_path': path,
    'merge': tuple(merge),
    'quantization': quantization,
  }


def _read_class_names(
  fields: Mapping[str, Any], num_classes: int
) -> tuple[str, ...]:
  names = fields.get('class_names', [])
  _require(
    _are_names(names) and len(names) in (0, num_classes),
    '`class_names` is no list of one name per class',
  )
  return tuple(names)


def _read_kept_blocks(fields: Mapping[str, Any], depth: int) -> tuple[int, ...]:
  kept = fields.get('kept_blocks', [])
  _require(
    isinstance(kept, list)
    and all(_is_size(index, 0) for index in kept)
    and kept == sorted(set(kept))
    and len(kept) in (0, depth),
    '`kept_blocks` is no ascending list of one index per block',
  )
  return tuple(kept)


def _check_preprocessing(preprocessing: Preprocessing) -> None:
  size = preprocessing.image_size
  _require(len(size) == 2 and all(map(_is_size, size)), f'image_size {size}')
  mean, std = preprocessing.mean, preprocessing.std
  _require(
    0 < len(mean) == len(std) <= 64
    and all(map(math.isfinite, mean))
    and all(map(_is_positive, std)),
    'mean and std',
  )
  _require(_is_positive(preprocessing.crop_ratio), 'crop_ratio')
  _require(
    preprocessing.interpolation in ('bicubic', 'bilinear'),
    f'interpolation {preprocessing.interpolation[:40]!r}',
  )
