"""Load a network that is in memory: a `timm` model, or a state dict.

Nothing of PyTorch or timm is imported: what is needed are attributes.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.checkpoints import (
  infer,
  readers,
  third_party,
  timm_config,
)
from lambda_vit_jax.checkpoints.timm_config import SCHEMA, read_fields
from lambda_vit_jax.checkpoints.weight_file import WeightFile
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import check_json
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import Variant, get_variant

_CLASSES = ('VisionTransformer', 'VisionTransformerDistilled')
_KEYS = ('tag', 'mean', 'std', 'crop_pct', 'interpolation', 'crop_mode')
_REMEDY = 'such a network is not supported'
_ACTIVATIONS = {
  'GELU': 'gelu',
  'GELUTanh': 'gelu_tanh',
  'QuickGELU': 'quick_gelu',
}


def is_network(where: Any) -> bool:
  """Whether this is a module with a state dict, or a state dict itself."""
  return isinstance(where, Mapping) or callable(
    getattr(where, 'state_dict', None)
  )


def load_network(network: Any, variant: str | None) -> Model:
  """Copies the weights of a network that is in memory.

  Args:
    network: timm's `VisionTransformer`, whose architecture is read from the
      object; or a state dict, of timm's or another program's names.
    variant: by default that of the object, or from the arrays' shapes.

  Raises:
    CheckpointError: another module, or one that computes something else.
  """
  if isinstance(network, Mapping):
    file = readers.of_tensors(network, 'the state dict')
    stated = file.layout.fields
    spec = get_variant(variant or infer.infer_variant(file, stated))
    return third_party.load_weights(
      file, third_party.as_stated(spec, file, stated)
    )
  where = f'the {type(network).__name__}'
  if type(network).__name__ not in _CLASSES:
    raise CheckpointError(
      f"{where}: not a network of timm's that we have; known is "
      'VisionTransformer'
    )
  file = readers.of_tensors(network.state_dict(), where)
  try:
    spec, size = _read(network, file, variant)
  except (AttributeError, KeyError, TypeError) as error:
    raise CheckpointError(
      f'{where}: not as timm makes it ({error}); load its state_dict() with '
      '`variant`'
    ) from error
  return third_party.load_weights(file, spec, size)


def _read(
  network: Any, file: WeightFile, variant: str | None
) -> tuple[Variant, tuple[int, int]]:
  """The variant that a VisionTransformer is, and its (height, width)."""
  where = file.path
  _check_computation(network, where)
  pretrained = {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in dict(network.pretrained_cfg).items()
    if name in _KEYS and value is not None
  }
  block = network.blocks[0]
  arguments = {
    'patch_size': network.patch_embed.patch_size[0],
    'embed_dim': network.embed_dim,
    'depth': len(network.blocks),
    'num_heads': block.attn.num_heads,
    'global_pool': network.global_pool,
    'fc_norm': 'fc_norm.weight' in file.shapes,
    'no_embed_class': network.no_embed_class,
    'pre_norm': 'norm_pre.weight' in file.shapes,
    'reg_tokens': file.shapes.get('reg_token', (1, 0))[1],
  }
  config = {
    'architecture': network.pretrained_cfg['architecture'],
    'model_args': arguments,
    'pretrained_cfg': pretrained,
  }
  stated = read_fields(check_json(config, where, SCHEMA, _REMEDY), where)
  spec = third_party.described(
    timm_config.architecture(config) or '', stated, variant, where
  )
  scaled = 'blocks.0.ls1.gamma' in file.shapes
  hidden = file.shapes.get('blocks.0.mlp.fc1.weight', (0,))[0]
  spec = dataclasses.replace(
    spec,
    distilled='dist_token' in file.shapes,
    class_token='cls_token' in file.shapes,
    layer_scale=(spec.layer_scale or 1e-5) if scaled else None,
    mlp_ratio=hidden / network.embed_dim,
    norm_eps=block.norm1.eps,
    activation=_ACTIVATIONS[type(block.mlp.act).__name__],
    **stated,
  )
  height, width = network.patch_embed.img_size
  return spec, (int(height), int(width))


def _check_computation(network: Any, where: str) -> None:
  """Refuses a network with the arrays of another that computes differently."""
  final = network.fc_norm if hasattr(network.fc_norm, 'eps') else network.norm
  norms = [norm for b in network.blocks for norm in (b.norm1, b.norm2)]
  found = {
    'block': {type(block).__name__ for block in network.blocks} - {'Block'},
    'activation': {type(block.mlp.act).__name__ for block in network.blocks}
    - set(_ACTIVATIONS),
    'approximation of GELU': {
      getattr(block.mlp.act, 'approximate', 'none') for block in network.blocks
    }
    - {'none'},
    'pool_include_prefix': {getattr(network, 'pool_include_prefix', False)}
    - {False},
  }
  epsilons = {getattr(norm, 'eps', None) for norm in (*norms, final)}
  if len(epsilons) > 1:
    found['epsilon of the norms'] = epsilons
  for what, values in found.items():
    if values:
      shown = ', '.join(map(str, sorted(values, key=str)))
      raise CheckpointError(
        f'{where}: its {what} is {shown}, which is not supported; the network '
        'would compute something else'
      )
