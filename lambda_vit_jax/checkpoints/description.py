"""Describe a model in JSON, without its parameters, and rebuild it from that.

The description is in `model.json`, in a checkpoint's metadata and in the header
of our safetensors files. It is read as untrusted input: known keys only, types
and bounds checked, nothing evaluated or opened.
"""

import dataclasses
import functools
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


def _is_list_of(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and all(map(valid, value))


_is_count = functools.partial(_is_size, least=0)
_are_counts = _is_list_of(_is_count)
_are_names = _is_list_of(lambda value: isinstance(value, str))

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
  'num_registers': _is_count,
  'position_on_class': _is_bool,
  'pre_norm': _is_bool,
  'norm_before_pool': _is_bool,
}
"""Fields of `ViT` in a description, each with the check of its value."""

_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
  'num_classes': (_is_count, 'a number of classes'),
  'norm_eps': (_is_list_of(_is_positive), 'a list of positive numbers'),
  'pre_norm_eps': (_is_positive, 'a positive number'),
  'attention_modes': (_are_names, 'a list of modes'),
  'compensation': (_is_bool, 'true or false'),
  'linear_inputs': (_are_names, 'a list of names'),
  'dilution_path': (lambda value: value in DILUTION_PATHS, 'a known path'),
  'merge': (_are_counts, 'a list of one number per block'),
  'quantization': (lambda value: value in QUANTIZATIONS, 'a known form'),
  'class_names': (_are_names, 'a list of one name per class'),
  'kept_blocks': (
    lambda value: _are_counts(value) and value == sorted(set(value)),
    'an ascending list of one index per block',
  ),
}
"""The other fields: the check of each value, and what it has to be."""

# Of fields that files of earlier versions lack.
_DEFAULTS = {
  'architecture': {},
  'compensation': True,
  'linear_inputs': ['token'],
  'dilution_path': 'attention',
  'merge': [],
  'quantization': 'none',
  'segmentation': None,
  'class_names': [],
  'kept_blocks': [],
}


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
    'segmentation': module.segmentation and module.segmentation.to_json(),
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
  variant = _read_variant(_DEFAULTS | fields)
  fields = _DEFAULTS | {'pre_norm_eps': variant.norm_eps} | fields
  checked = {name: fields[name] for name in _FIELDS}
  for name, (is_valid, what) in _FIELDS.items():
    _require(is_valid(checked[name]), f'`{name}` is not {what}')
  num_classes, depth = checked['num_classes'], variant.depth
  lengths = {'merge': depth, 'kept_blocks': depth, 'class_names': num_classes}
  for name, length in lengths.items():
    found = len(checked[name])
    _require(found in (0, length), f'`{name}` is not {_FIELDS[name][1]}')
  # `image_size` is read from here alone.
  preprocessing = Preprocessing.from_json(fields['preprocessing'])
  _check_preprocessing(preprocessing)
  segmentation = fields['segmentation']
  if segmentation is not None:
    _require(num_classes > 0, 'a decoder without classes')
    segmentation = Decoder.from_json(segmentation, depth)
  names, kept = (checked.pop(name) for name in ('class_names', 'kept_blocks'))
  module = make_module(
    variant,
    image_size=preprocessing.image_size,
    in_chans=preprocessing.channels,
    segmentation=segmentation,
    **(checked | {'merge': tuple(checked['merge'])}),
  )
  return Model(
    module=module,
    params=abstract_params(module),
    variant=get_variant(fields['variant']).name,
    preprocessing=preprocessing,
    class_names=tuple(names),
    kept_blocks=tuple(kept),
  )


def _read_variant(fields: Mapping[str, Any]) -> Variant:
  """The named variant, with the architecture's values in place of its own."""
  architecture = fields['architecture']
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


def _check_preprocessing(preprocessing: Preprocessing) -> None:
  _require(all(map(_is_size, preprocessing.image_size)), 'image_size')
  mean, std = preprocessing.mean, preprocessing.std
  _require(
    0 < len(mean) == len(std) <= 64
    and all(map(math.isfinite, mean))
    and all(map(_is_positive, std)),
    'mean and std',
  )
  _require(_is_positive(preprocessing.crop_ratio), 'crop_ratio')
  known = ('bicubic', 'bilinear')
  _require(preprocessing.interpolation in known, 'interpolation')
