"""Describe a model in JSON, without its parameters, and rebuild it from that.

The description is in `model.json`, in a checkpoint's metadata and in the header
of our safetensors files. It is read as untrusted input: known keys only, types
and bounds checked, nothing evaluated or opened.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.core.errors import CheckpointError, LambdaVitError
from lambda_vit_jax.core.files import check_json
from lambda_vit_jax.core.preprocessing import LEAST_CROP, Preprocessing
from lambda_vit_jax.core.schema import (
  Bool,
  Choice,
  List,
  Nullable,
  Number,
  Object,
  Schema,
  Text,
  shown,
)
from lambda_vit_jax.models import map_inputs
from lambda_vit_jax.models.build import abstract_params, make_module
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.gated_mlp import MLPS
from lambda_vit_jax.models.layers import ACTIVATIONS
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import DILUTION_PATHS, removed_layers
from lambda_vit_jax.models.quantization import QUANTIZATIONS
from lambda_vit_jax.models.rotary import ROTARIES
from lambda_vit_jax.models.variants import Variant, get_variant
from lambda_vit_jax.models.vit import ViT

REMEDY = 'export the model again'

_SIZE = Number(1, 1 << 16, whole=True)
_COUNT = Number(0, 1 << 16, whole=True)
_POSITIVE = Number(0, 1e9, above=True)
_NAMES = List(Text(1000))

ARCHITECTURE: dict[str, Schema] = {
  'patch_size': _SIZE,
  'embed_dim': _SIZE,
  # Every block is traced: thousands of them would look like a hang.
  'depth': Number(1, 256, whole=True),
  'num_heads': _SIZE,
  'mlp_ratio': _POSITIVE,
  'activation': Choice(tuple(ACTIVATIONS)),
  'layer_scale': Nullable(_POSITIVE),
  'pooling': Choice(('token', 'avg', 'map')),
  'distilled': Bool(),
  'num_registers': _COUNT,
  'position_on_class': Bool(),
  'class_token': Bool(),
  'absolute_positions': Bool(),
  'qkv_bias': Bool(),
  'key_bias': Bool(),
  'fused_qkv': Bool(),
  'relative_bias': Bool(),
  'rotary': Choice(('', *ROTARIES)),
  'mlp_kind': Choice(MLPS),
  'mlp_norm': Bool(),
  'mlp_alignment': _SIZE,
  'pre_norm': Bool(),
  'norm_before_pool': Bool(),
}
"""Fields of `ViT` in a description."""

_PREPROCESSING = Object(
  {
    'image_size': List(_SIZE, 2, 2),
    'mean': List(Number(-1e6, 1e6), 1, 64),
    'std': List(_POSITIVE, 1, 64),
    'crop_ratio': Number(LEAST_CROP, 1),
    'interpolation': Choice(('bicubic', 'bilinear')),
  },
  alike=('mean', 'std'),
)

_MODULE: dict[str, Schema] = {
  'num_classes': _COUNT,
  'norm_eps': List(_POSITIVE),
  'attention_modes': _NAMES,
}
# Files of earlier versions lack some of these.
_OPTIONAL: dict[str, Schema] = {
  'pre_norm_eps': _POSITIVE,
  'compensation': Bool(),
  'linear_inputs': _NAMES,
  'block_inputs': List(_NAMES),
  'dilution_path': Choice(tuple(DILUTION_PATHS)),
  'merge': List(_COUNT),
  'mlp_dims': List(_COUNT),
  'quantization': Choice(tuple(QUANTIZATIONS)),
}

STAGES = Object(
  optional=dict.fromkeys(
    ('linearize', 'compress'),
    Object(optional={'dropped': List(_COUNT, distinct=True)}),
  )
)
"""What stages add to the `model.json` of their networks."""

SCHEMA = Object(
  {'variant': Text(200), 'preprocessing': _PREPROCESSING, **_MODULE},
  {
    'architecture': Object(optional=ARCHITECTURE, others=None),
    'segmentation': Nullable(Object()),
    'class_names': List(Text(1000), distinct=True),
    'kept_blocks': List(_COUNT, distinct=True),
    'zero_filled': Bool(),
    'folded': Object(optional={'dtype': Text(100)}),
    'files': Object(others=Text(100)),
    **STAGES.optional,
    **_OPTIONAL,
  },
)
"""Of a description, alone or within `model.json`."""

# Of fields that files of earlier versions lack.
_DEFAULTS = {
  'architecture': {},
  'compensation': True,
  'linear_inputs': ['token'],
  'block_inputs': [],
  'dilution_path': 'attention',
  'merge': [],
  'mlp_dims': [],
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
    'linear_inputs': list(map_inputs.union(module.linear_inputs)),
    # Of each block, where maps have different inputs.
    'block_inputs': [
      list(i) for i in module.linear_inputs if not isinstance(i, str)
    ],
    'dilution_path': module.dilution_path,
    'merge': list(module.merge),
    'mlp_dims': list(module.hidden_dims),
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
  check_json(fields, where, SCHEMA, REMEDY)
  try:
    return _rebuild({**_DEFAULTS, **fields})
  except CheckpointError as error:
    raise CheckpointError(f'{where}: {error}') from None
  except LambdaVitError as error:
    raise CheckpointError(
      f'{where}: {error}; the file is not one of ours, or of a newer version'
    ) from None


def _require(condition: bool, what: str) -> None:
  if not condition:
    raise CheckpointError(f'no valid model description: {what}; {REMEDY}')


def _rebuild(fields: Mapping[str, Any]) -> Model:
  variant = _read_variant(fields)
  fields = {'pre_norm_eps': variant.norm_eps, **fields}
  num_classes, depth = fields['num_classes'], variant.depth
  lengths = {
    'merge': depth,
    'mlp_dims': depth,
    'kept_blocks': depth,
    'block_inputs': depth,
    'class_names': num_classes,
  }
  for name, length in lengths.items():
    found = len(fields[name])
    _require(
      found in (0, length),
      f'`{name}` is a list of {found}, but must be empty or one of {length}',
    )
  kept = fields['kept_blocks']
  _require(kept == sorted(kept), '`kept_blocks` is not ascending')
  # `image_size` is read from here alone.
  preprocessing = Preprocessing.from_json(fields['preprocessing'])
  segmentation = fields['segmentation']
  if segmentation is not None:
    _require(num_classes > 0, 'a decoder without classes')
    segmentation = Decoder.from_json(segmentation, depth)
  settings = {name: fields[name] for name in (*_MODULE, *_OPTIONAL)}
  settings['linear_inputs'] = (
    settings.pop('block_inputs') or settings['linear_inputs']
  )
  module = make_module(
    variant,
    image_size=preprocessing.image_size,
    in_chans=preprocessing.channels,
    segmentation=segmentation,
    **(settings | {'merge': tuple(fields['merge'])}),
  )
  _check_repeated(fields, module)
  return Model(
    module=module,
    params=abstract_params(module),
    variant=get_variant(fields['variant']).name,
    preprocessing=preprocessing,
    class_names=tuple(fields['class_names']),
    kept_blocks=tuple(kept),
  )


def _read_variant(fields: Mapping[str, Any]) -> Variant:
  """The named variant, with the architecture's values in place of its own."""
  return dataclasses.replace(
    get_variant(fields['variant']), **fields['architecture']
  )


def _check_repeated(fields: Mapping[str, Any], module: ViT) -> None:
  """Refuses entries for readers that are not what the others make."""
  made = {
    'image_size': list(module.image_size),
    'removed_layers': list(removed_layers(module.attention_modes)),
  }
  for name, value in made.items():
    found = fields.get(name, value)
    _require(
      found == value, f'`{name}` is {shown(found)}, but the rest says {value}'
    )
