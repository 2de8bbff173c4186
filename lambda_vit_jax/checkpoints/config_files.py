"""What the JSON files beside weights say: timm's, transformers', OpenCLIP's.

All of them are read as untrusted input: by schema, nothing evaluated.
"""

import logging
from collections.abc import Mapping
from typing import Any

from etils import epath

from lambda_vit_jax.checkpoints import readers, timm_config
from lambda_vit_jax.checkpoints.layouts import Layout
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import read_json
from lambda_vit_jax.core.schema import (
  Anything,
  Bool,
  List,
  Nullable,
  Number,
  Object,
  Schema,
  Text,
)
from lambda_vit_jax.models.layers import ACTIVATIONS

_LOG = logging.getLogger(__name__)

_SIZE = Number(1, 1 << 16, whole=True)
_POSITIVE = Number(0, 1e6, above=True)
_CHANNELS = List(Number(-1e6, 1e6), 1, 64)
_SCALES = List(_POSITIVE, 1, 64)

# transformers' keys, and the field of `Variant` that each sets.
_TRANSFORMERS_KEYS = {
  'hidden_size': 'embed_dim',
  'num_hidden_layers': 'depth',
  'num_attention_heads': 'num_heads',
  'mlp_ratio': 'mlp_ratio',
  'patch_size': 'patch_size',
  'image_size': 'image_size',
  'layer_norm_eps': 'norm_eps',
  'layerscale_value': 'layer_scale',
  'num_register_tokens': 'num_registers',
}
_NETWORK: dict[str, Schema] = {
  'hidden_size': _SIZE,
  'num_hidden_layers': Number(1, 256, whole=True),
  'num_attention_heads': _SIZE,
  'intermediate_size': _SIZE,
  'mlp_ratio': _POSITIVE,
  'patch_size': _SIZE,
  'image_size': _SIZE,
  'layer_norm_eps': _POSITIVE,
  'layerscale_value': _POSITIVE,
  'num_register_tokens': Number(0, 1 << 16, whole=True),
  'hidden_act': Text(100),
  'use_gated_mlp': Bool(),
}
_TRANSFORMERS = Object(
  optional={**_NETWORK, 'vision_config': Object(optional=_NETWORK)}
)
_ACTIVATIONS = {'gelu_pytorch_tanh': 'gelu_tanh'}

_PREPROCESSOR = Object(
  optional={
    'image_mean': Nullable(_CHANNELS),
    'image_std': Nullable(_SCALES),
    'do_normalize': Nullable(Bool()),
    'do_center_crop': Nullable(Bool()),
    'resample': Nullable(Number(0, 5, whole=True)),
    'size': Anything(),
    'crop_size': Anything(),
  },
  alike=('image_mean', 'image_std'),
)
# Numbers of PIL's filters; we have these two.
_FILTERS = {2: 'bilinear', 3: 'bicubic'}

_OPEN_CLIP = Object(
  {
    'model_cfg': Object(
      {
        'vision_cfg': Object(
          optional={
            'image_size': _SIZE,
            'layers': Anything(),
            'width': _SIZE,
            'head_width': _SIZE,
            'patch_size': _SIZE,
            'mlp_ratio': _POSITIVE,
          }
        )
      },
      {'quick_gelu': Bool()},
    )
  },
  {'preprocess_cfg': Object(optional={'mean': _CHANNELS, 'std': _SCALES})},
)
_OPEN_CLIP_HEAD = 64


def read_beside(
  folder: epath.Path, layout: Layout, variant: str | None
) -> tuple[str | None, dict[str, Any]]:
  """What the files of a folder state about the weights in it.

  Args:
    folder: holds the weights.
    layout: whose names they have.
    variant: the one that was asked for, if any.

  Returns:
    timm's name of the architecture where there is one, perhaps with a tag, and
    the fields of `Variant` that the files set.

  Raises:
    CheckpointError: a file that cannot be read, or that states what we have no
      network for.
  """
  fields: dict[str, Any] = dict(layout.fields)
  if layout.config == 'OpenCLIP':
    config = _beside(folder / 'open_clip_config.json', _OPEN_CLIP)
    return None, fields | (_open_clip(config) if config else {})
  path = folder / 'config.json'
  if layout.config == 'transformers':
    config = _beside(path, _TRANSFORMERS)
    images = _beside(folder / 'preprocessor_config.json', _PREPROCESSOR)
    if config:
      fields |= layout.implied | _transformers(config, str(path))
    return None, fields | _preprocessor(images or {})
  config = _beside(path, timm_config.SCHEMA) if layout.config else None
  if config is None:
    return None, fields
  name = timm_config.architecture(config)
  if name is not None:
    return name, fields | timm_config.read_fields(config, str(path))
  if variant is None:
    raise CheckpointError(
      f"{path}: names no `architecture`, so it is not timm's; say which it "
      'is with `variant` (a stage: --config.model.variant, predict: '
      '--variant), or remove the file'
    )
  _LOG.warning(
    "%s: names no `architecture`, so it is not timm's and is left out; images "
    'are prepared as for %s',
    path,
    variant,
  )
  return None, fields


def _beside(path: epath.Path, schema: Schema) -> dict[str, Any] | None:
  """The content of a JSON file, or None if there is none."""
  if not path.exists():
    return None
  readers.check_link(path)
  return read_json(path, schema, timm_config.REMEDY)


def _transformers(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Fields of a network of transformers; of a pair of towers, the images'."""
  network = config.get('vision_config', config)
  fields = {
    ours: network[theirs]
    for theirs, ours in _TRANSFORMERS_KEYS.items()
    if theirs in network
  }
  if {'hidden_size', 'intermediate_size'} <= set(network):
    fields['mlp_ratio'] = network['intermediate_size'] / network['hidden_size']
  # A gated MLP has no other activation than this.
  gated = network.get('use_gated_mlp') and network.get('hidden_act') == 'silu'
  if 'hidden_act' in network and not gated:
    name = _ACTIVATIONS.get(network['hidden_act'], network['hidden_act'])
    if name not in ACTIVATIONS or network.get('use_gated_mlp'):
      raise CheckpointError(
        f'{where}: hidden_act={name} is not supported; known are '
        f'{", ".join(ACTIVATIONS)}'
      )
    fields['activation'] = name
  return fields


def _preprocessor(config: Mapping[str, Any]) -> dict[str, Any]:
  """How images are prepared, by a `preprocessor_config.json`.

  Images are resized to a square there where it gives two sides; here their
  shorter side is, and the rest is cropped.
  """
  fields: dict[str, Any] = {}
  for theirs, ours in (('image_mean', 'mean'), ('image_std', 'std')):
    if config.get(theirs):
      fields[ours] = tuple(float(value) for value in config[theirs])
  if config.get('do_normalize') is False:
    fields |= {'mean': (0.0,) * 3, 'std': (1.0,) * 3}
  if config.get('resample') in _FILTERS:
    fields['interpolation'] = _FILTERS[config['resample']]
  resized, cropped = _side(config.get('size')), _side(config.get('crop_size'))
  if resized:
    crops = config.get('do_center_crop') and cropped
    fields['crop_ratio'] = min(1.0, (cropped or 1) / resized) if crops else 1.0
  return fields


def _side(size: Any) -> int:
  """The shorter side that a size of transformers means; 0 if it has none."""
  if isinstance(size, Mapping):
    sides = [size.get(key) for key in ('shortest_edge', 'height', 'width')]
    size = min((x for x in sides if type(x) is int), default=0)
  return size if type(size) is int and size > 0 else 0


def _open_clip(config: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of OpenCLIP's image tower; of timm's tower only the images."""
  model, images = config['model_cfg'], config.get('preprocess_cfg', {})
  fields: dict[str, Any] = {
    name: tuple(float(value) for value in images[name])
    for name in ('mean', 'std')
    if name in images
  }
  tower = model['vision_cfg']
  width = tower.get('width')
  if width is None or type(tower.get('layers')) is not int:
    return fields
  keys = {'patch_size', 'image_size', 'mlp_ratio'} & set(tower)
  return (
    fields
    | {key: tower[key] for key in keys}
    | {
      'embed_dim': width,
      'depth': tower['layers'],
      'num_heads': width // tower.get('head_width', _OPEN_CLIP_HEAD),
      'activation': 'quick_gelu' if model.get('quick_gelu') else 'gelu',
      'crop_ratio': 1.0,
    }
  )
