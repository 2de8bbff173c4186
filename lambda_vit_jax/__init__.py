"""Find the attention layers a ViT does not need, and ship it without them.

  import lambda_vit_jax as lv

  model = lv.create_model('deit_small_patch16_224', num_classes=10)
  selection = lv.nose(model, batches, num_layers=5)
  pruned = lv.prune(model, selection.removed)
  lv.export(pruned, 'out/')

Names are loaded when first used, so that importing the package is free.
"""

import importlib
from typing import Any

from lambda_vit_jax.version import __version__

_PUBLIC = {
  'Model': 'models.model',
  'Selection': 'selection',
  'backbone': 'models.segmenter',
  'choose_blocks': 'spans',
  'create_model': 'models.model',
  'dequantize': 'models.changes',
  'drop_blocks': 'models.shorter',
  'entropy_profile': 'profile',
  'export': 'exporter',
  'fold': 'models.changes',
  'linearize': 'linearizer',
  'load_export': 'exporter',
  'load_pretrained': 'load',
  'merge_tokens': 'models.changes',
  'nose': 'selection',
  'prune': 'models.changes',
  'quantize': 'models.changes',
  'recentre': 'recentring',
  'refit': 'refitting',
  'spectrum': 'fourier',
  'with_decoder': 'models.segmenter',
}

__all__ = ['__version__', *_PUBLIC]


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_PUBLIC[name]}')
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted(__all__)
