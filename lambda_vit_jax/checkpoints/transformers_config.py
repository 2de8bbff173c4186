"""Read and write transformers' `config.json` and `preprocessor_config.json`.

Of its classes those are written whose function a model of ours is: the same
tokens, norms and readout, whatever the sizes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.checkpoints.layout_tables import LAYOUTS
from lambda_vit_jax.checkpoints.layouts import Layout
from lambda_vit_jax.core.errors import CheckpointError, ModelError
from lambda_vit_jax.core.preprocessing import LEAST_CROP
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
from lambda_vit_jax.models.architecture import hidden_width
from lambda_vit_jax.models.layers import ACTIVATIONS
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import get_variant

IMAGES = 'preprocessor_config.json'

_SIZE = Number(1, 1 << 16, whole=True)
_POSITIVE = Number(0, 1e6, above=True)
_CHANNELS = List(Number(-1e6, 1e6), 1, 64)
_SCALES = List(_POSITIVE, 1, 64)

# transformers' keys, and the field of `Variant` that each sets.
_KEYS = {
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
SCHEMA = Object(
  optional={**_NETWORK, 'vision_config': Object(optional=_NETWORK)}
)
_ACTIVATIONS = {'gelu_pytorch_tanh': 'gelu_tanh'}

IMAGES_SCHEMA = Object(
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


def read_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """Fields of a network of transformers; of a pair of towers, the images'."""
  network = config.get('vision_config', config)
  fields = {
    ours: network[theirs] for theirs, ours in _KEYS.items() if theirs in network
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


def read_preprocessing(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """How images are prepared, by a `preprocessor_config.json`.

  Images are resized to a square there where it gives two sides; here their
  shorter side is, and the rest is cropped.

  Raises:
    CheckpointError: nearly all of an image would be cropped.
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
    ratio = min(1.0, cropped / resized) if crops else 1.0
    if ratio < LEAST_CROP:
      raise CheckpointError(
        f'{where}: crops {cropped} of {resized} pixels; the part that is used of '
        f'an image must be {LEAST_CROP:g} of it or more'
      )
    fields['crop_ratio'] = ratio
  return fields


def _side(size: Any) -> int:
  """The shorter side that a size of transformers means; 0 if it has none."""
  if isinstance(size, Mapping):
    sides = [size.get(key) for key in ('shortest_edge', 'height', 'width')]
    size = min((x for x in sides if type(x) is int), default=0)
  return size if type(size) is int and size > 0 else 0


@dataclasses.dataclass(frozen=True)
class HubClass:
  """A class of transformers that a model can be saved for.

  Attributes:
    layout: the title of its names in `layout_tables`.
    model_type: transformers' name of the architecture.
    backbone: the class without a head.
    classifier: the class with one, or empty if its head reads something else.
    mask_axes: axes of the token for masked patches that the class has besides,
      0 for none.
    fields: more entries of `config.json`.
  """

  layout: str
  model_type: str
  backbone: str
  classifier: str = ''
  mask_axes: int = 0
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


CLASSES = (
  HubClass("transformers' ViT", 'vit', 'ViTModel', 'ViTForImageClassification'),
  HubClass(
    "transformers' DeiT",
    'deit',
    'DeiTModel',
    'DeiTForImageClassificationWithTeacher',
  ),
  HubClass(
    "transformers' DINOv2",
    'dinov2',
    'Dinov2Model',
    'Dinov2ForImageClassification',
    mask_axes=2,
  ),
  HubClass(
    "transformers' DINOv2 with registers",
    'dinov2_with_registers',
    'Dinov2WithRegistersModel',
    'Dinov2WithRegistersForImageClassification',
    mask_axes=2,
  ),
  HubClass("transformers' SigLIP", 'siglip_vision_model', 'SiglipVisionModel'),
  HubClass(
    "transformers' CLIP",
    'clip_vision_model',
    'CLIPVisionModel',
    'CLIPVisionModelWithProjection',
  ),
  HubClass("transformers' DINOv3", 'dinov3_vit', 'DINOv3ViTModel', mask_axes=3),
  HubClass(
    "transformers' DINOv3 (SwiGLU)",
    'dinov3_vit',
    'DINOv3ViTModel',
    mask_axes=3,
    fields={'use_gated_mlp': True, 'hidden_act': 'silu'},
  ),
)

# Fields of an architecture that its class in transformers fixes.
_STRUCTURE = (
  'class_token',
  'distilled',
  'position_on_class',
  'absolute_positions',
  'qkv_bias',
  'key_bias',
  'fused_qkv',
  'rotary',
  'relative_bias',
  'mlp_kind',
  'mlp_norm',
  'pre_norm',
  'pooling',
  'norm_before_pool',
)


def class_of(model: Model) -> tuple[HubClass, Layout]:
  """The class of transformers that computes a model, and its names of arrays.

  Raises:
    ModelError: none does.
  """
  module = model.module
  if any(module.merge_counts) or module.segmentation is not None:
    raise ModelError(
      'format transformers: it has no token merging and no decoder of ours; '
      'leave the format out'
    )
  for entry in CLASSES:
    # The second one has the prefix of a backbone beside a head.
    layouts = [x for x in LAYOUTS if x.title == entry.layout]
    if _differs(model, layouts[0]):
      continue
    if model.num_classes and not entry.classifier:
      raise ModelError(
        f'format transformers: {entry.backbone} has no head; export '
        'lv.backbone(model), or leave the format out'
      )
    return entry, layouts[1 if model.num_classes else 0]
  raise ModelError(
    f'format transformers: no class of it computes {model.variant} with '
    f'pooling {module.pooling!r}; leave the format out'
  )


def _differs(model: Model, layout: Layout) -> bool:
  """Whether a class with these names computes something else."""
  stock, module = get_variant(layout.stock), model.module
  wanted = {name: getattr(stock, name) for name in _STRUCTURE} | {
    name: value for name, value in layout.fields.items() if name in _STRUCTURE
  }
  return (
    any(getattr(module, name) != value for name, value in wanted.items())
    or bool(module.num_registers) != bool(stock.num_registers)
    or (module.layer_scale is None) != (stock.layer_scale is None)
  )


def write_config(model: Model) -> dict[str, Any]:
  """Returns the `config.json` with which transformers builds a model.

  Raises:
    ModelError: see `class_of`; or images that are not square.
  """
  entry, _ = class_of(model)
  module = model.module
  height, width = module.image_size
  if height != width:
    raise ModelError(
      f'format transformers: images are {height} x {width}, and it has square '
      'ones alone; leave the format out'
    )
  hidden = hidden_width(
    module.embed_dim, module.mlp_ratio, module.mlp_alignment
  )
  names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
  config: dict[str, Any] = {
    'architectures': [
      entry.classifier if model.num_classes else entry.backbone
    ],
    'model_type': entry.model_type,
    'hidden_size': module.embed_dim,
    'num_hidden_layers': module.depth,
    'num_attention_heads': module.num_heads,
    'intermediate_size': hidden,
    'mlp_ratio': _whole(hidden / module.embed_dim),
    'patch_size': module.patch_size,
    'image_size': height,
    'num_channels': module.in_chans,
    'layer_norm_eps': module.norm_eps[-1],
    'hidden_act': names.get(module.activation, module.activation),
  }
  if module.layer_scale is not None:
    config['layerscale_value'] = module.layer_scale
  if module.num_registers:
    config['num_register_tokens'] = module.num_registers
  if model.num_classes:
    labels = model.class_names or [
      f'LABEL_{index}' for index in range(model.num_classes)
    ]
    config['id2label'] = {str(i): name for i, name in enumerate(labels)}
    config['label2id'] = {name: i for i, name in enumerate(labels)}
    config['projection_dim'] = model.num_classes
  return config | dict(entry.fields)


def _whole(ratio: float) -> float:
  return int(ratio) if ratio.is_integer() else ratio


def write_preprocessing(model: Model) -> dict[str, Any]:
  """Returns the `preprocessor_config.json` of a model's images."""
  how = model.preprocessing
  side = how.image_size[0]
  numbers = {ours: theirs for theirs, ours in _FILTERS.items()}
  return {
    'image_processor_type': 'BitImageProcessor',
    'do_convert_rgb': True,
    'do_resize': True,
    'size': {'shortest_edge': round(side / how.crop_ratio)},
    'resample': numbers[how.interpolation],
    'do_center_crop': True,
    'crop_size': {'height': side, 'width': side},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': list(how.mean),
    'image_std': list(how.std),
  }
