"""What the JSON files beside weights say: timm's, transformers', OpenCLIP's.

All of them are read as untrusted input: by schema, nothing evaluated.
"""

import logging
from collections.abc import Mapping
from typing import Any

from etils import epath

from lambda_vit_jax.checkpoints import (
  readers,
  timm_config,
  transformers_config,
)
from lambda_vit_jax.checkpoints.layouts import Layout
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import read_json
from lambda_vit_jax.core.schema import (
  Anything,
  Bool,
  List,
  Number,
  Object,
  Schema,
)

_LOG = logging.getLogger(__name__)

_SIZE = Number(1, 1 << 16, whole=True)
_POSITIVE = Number(0, 1e6, above=True)
_CHANNELS = List(Number(-1e6, 1e6), 1, 64)
_SCALES = List(_POSITIVE, 1, 64)

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
    config = _beside(path, transformers_config.SCHEMA)
    images = _beside(
      folder / transformers_config.IMAGES, transformers_config.IMAGES_SCHEMA
    )
    if config:
      fields |= layout.implied
      fields |= transformers_config.read_fields(config, str(path))
    prepared = transformers_config.read_preprocessing(
      images or {}, str(folder / transformers_config.IMAGES)
    )
    return None, fields | prepared
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
