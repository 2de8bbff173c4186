"""Changes of a `Model` that give another one: the first is not touched.

Whole blocks are dropped by `lambda_vit_jax.models.shorter`.
"""

from collections.abc import Iterable
from typing import Any

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.core.typing import AttentionMode
from lambda_vit_jax.models import merge_schedule, quantization, surgery
from lambda_vit_jax.models.model import Model


def prune(
  model: Model, layers: Iterable[int], mode: AttentionMode = 'identity'
) -> Model:
  """Removes the attention of `layers`: no array of it stays in the tree.

  The blocks are then what dilution leaves at λ = 0 (METHOD, sections 2 and 5).

  Args:
    model: left as it is.
    layers: block indices; those that are gone already stay as they are.
    mode: `identity` (2x, what dilution ends in) or `absent` (x).

  Returns:
    A new `Model`; arrays that stay are shared with the old one.

  Raises:
    ModelError: an index out of range or given twice, or no attention left.
  """
  modes = surgery.modes_without(layers, model.attention_modes, mode)
  surgery.check_layers(surgery.removed_layers(modes), model.depth)
  gone = [
    index
    for index, (old, new) in enumerate(
      zip(model.attention_modes, modes, strict=True)
    )
    if old != new
  ]
  return model.replace(
    module=model.module.clone(attention_modes=modes),
    params=surgery.prune_tree(model.params, gone),
  )


def merge_tokens(model: Model, merge: Any, start: Any = 0) -> Model:
  """The model with token merging in the blocks that have attention.

  Needs no training: the parameters stay as they are (`merging`).

  Args:
    model: left as it is; merging that it has is replaced.
    merge: tokens per block, a list with one number per block, `constant:8` or
      `decreasing:8` (`merge_plan.merge_schedule`); 0 for none.
    start: the first block that merges.

  Returns:
    A new `Model` that shares the parameters.

  Raises:
    ModelError: another form, or more than the tokens allow.
  """
  module = model.module
  rows, columns = module.grid_size
  schedule = merge_schedule.merge_schedule(
    merge, model.depth, rows * columns, start, model.attention_modes
  )
  return model.replace(module=module.clone(merge=schedule))


def quantize(model: Model, arithmetic: str = 'weights') -> Model:
  """The model with its matrices as 8-bit integers, one scale per channel.

  Needs no data: each matrix by itself (`lambda_vit_jax.models.quantization`). What
  is searched, fitted or trained has to be done before.

  Args:
    model: left as it is; may be quantised already.
    arithmetic: `weights` reads the integers as floats, `dynamic` quantises
      each token as well and multiplies integers.

  Returns:
    A new `Model`; arrays that are no matrix are shared with the old one.

  Raises:
    ModelError: an unknown arithmetic.
  """
  # Decoders have convolutions, which have no form of 8 bits here.
  kept = {
    name: leaf for name, leaf in model.params.items() if name == 'decoder'
  }
  known = quantization.QUANTIZATIONS[1:]
  if arithmetic not in known:
    raise ModelError(
      f'int8 arithmetic {arithmetic!r}; known are {" and ".join(known)}'
    )
  return model.replace(
    module=model.module.clone(quantization=arithmetic),
    params=quantization.quantize_tree(model.params) | kept,
  )


def dequantize(model: Model) -> Model:
  """The model in float32 whose matrices are what 8-bit integers left.

  Args:
    model: left as it is; quantised or not.

  Returns:
    A new `Model`: each matrix is `q · scale`, one scale per output channel
    (docs/method.md, 8-bit integers). Of a model that is not quantised all
    values are the same.
  """
  return model.replace(
    module=model.module.clone(quantization='none'),
    params=quantization.dequantize_tree(model.params),
  )


def fold(model: Model) -> Model:
  """The same function as a plain ViT, no factor 2 anywhere.

  METHOD, section 2: each `identity` block, which doubles the stream, becomes
  `absent`; what later blocks add is divided by 2^k, their norms' epsilons by
  4^k, where k counts the doublings before them.

  Args:
    model: left as it is; without blocks in mode `diluted`.

  Returns:
    A new `Model` with the same logits, exactly but for rounding.
  """
  modes = model.attention_modes
  segmentation = model.module.segmentation
  if segmentation is not None:
    segmentation = segmentation.folded(surgery.doublings(modes))
  return model.replace(
    module=model.module.clone(
      attention_modes=surgery.fold_modes(modes),
      norm_eps=surgery.fold_eps(model.module.norm_eps, modes),
      segmentation=segmentation,
    ),
    params=surgery.fold_tree(model.params, modes),
  )
