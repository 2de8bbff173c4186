"""Find the attention layers a ViT does not need, and ship it without them.

  import lambda_vit_jax as lv

  model = lv.create_model('deit_small_patch16_224', num_classes=10)
  selection = lv.nose(model, batches, num_layers=5)
  pruned = lv.prune(model, selection)
  lv.export(pruned, 'out/')

Names are loaded when first used, so that importing the package is free.
"""

import importlib
from typing import Any

__version__ = '0.2.0'

# `__init__.pyi` has the same names for editors and type checkers.
_PUBLIC = {
  'Compression': 'compression.record',
  'Evaluation': 'evaluation.scores',
  'Model': 'models.model',
  'Selection': 'selection.record',
  'backbone': 'models.adapt',
  'choose_blocks': 'training_free.block_spans',
  'compress': 'compression.greedy',
  'create_model': 'models.model',
  'dequantize': 'models.edits',
  'dilute': 'training_free.dilute',
  'drop_blocks': 'models.edits',
  'entropy_profile': 'analysis.profile',
  'evaluate': 'evaluation.scores',
  'export': 'exporters.export',
  'fold': 'models.edits',
  'image_batches': 'data.inputs',
  'linearize': 'training_free.linear_maps',
  'list_models': 'models.variants',
  'load_export': 'checkpoints.load',
  'load_pretrained': 'checkpoints.load',
  'load_selection': 'selection.stored',
  'merge_tokens': 'models.edits',
  'narrow': 'training_free.neurons',
  'narrow_mlps': 'models.edits',
  'nose': 'selection.nose',
  'polish': 'training_free.polish',
  'predict': 'evaluation.scores',
  'preprocess': 'data.inputs',
  'prune': 'models.edits',
  'push_to_hub': 'exporters.publish',
  'quantize': 'models.edits',
  'recentre': 'training_free.norm_recentring',
  'refit': 'training_free.mlp_refit',
  'spectrum': 'analysis.spectrum',
  'with_decoder': 'models.adapt',
}

__all__ = ['__version__', *_PUBLIC]


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_PUBLIC[name]}')
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted(__all__)
