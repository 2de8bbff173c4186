"""Number of attention layers to remove, from a count, a ratio or a speedup."""

import math
import numbers
from typing import TypeGuard

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.models.model import Model

DEFAULT_LAYERS = 5


def resolve_num_layers(
  model: Model,
  num_layers: int | None = None,
  removal_ratio: float | None = None,
  target_speedup: float | None = None,
) -> int:
  """Returns the number of layers to remove, from at most one kind of budget.

  Args:
    model: the model to prune.
    num_layers: the number itself; 5 if no budget is given.
    removal_ratio: share of all blocks, including those already removed;
      rounded.
    target_speedup: ratio of the model's multiply-accumulates to those of the
      pruned one, at its image size; the least number that reaches it.

  Raises:
    UsageError: more than one budget, or one that leaves no attention.
  """
  given = [num_layers, removal_ratio, target_speedup]
  if sum(value is not None for value in given) > 1:
    raise UsageError(
      'more than one budget is set; give one of select.num_layers, '
      'select.removal_ratio, select.target_speedup'
    )
  gone = len(model.removed_layers)
  left = model.depth - gone
  if not left:
    raise UsageError(
      'no block has attention: there is nothing to remove; start from a model '
      'that has'
    )
  if target_speedup is not None:
    return _layers_for_speedup(model, target_speedup)
  if removal_ratio is not None:
    if not _is_number(removal_ratio) or not 0.0 <= removal_ratio < 1.0:
      raise UsageError(
        f'select.removal_ratio={removal_ratio!r}: a share of the blocks, at '
        'least 0 and less than 1'
      )
    number = max(round(removal_ratio * model.depth) - gone, 0)
  else:
    number = DEFAULT_LAYERS if num_layers is None else num_layers
    if not _is_number(number) or number % 1 or number < 0:
      raise UsageError(
        f'select.num_layers={num_layers!r}: a whole number of layers'
      )
    number = int(number)
  if number >= left:
    raise UsageError(
      f'{number} layers to remove, but only {left} of {model.depth} blocks '
      f'have attention and one must stay; at most {left - 1}'
    )
  return number


def _layers_for_speedup(model: Model, target: float) -> int:
  if not _is_number(target) or target < 1.0:
    raise UsageError(f'select.target_speedup={target!r}: at least 1')
  candidates = with_attention(model)
  dense = model.macs()
  best = 1.0
  for number in range(len(candidates)):
    best = dense / prune(model, candidates[:number]).macs()
    if best >= target:
      return number
  raise UsageError(
    f'select.target_speedup={target} is out of reach: with one attention '
    f'layer left the model needs {best:.3f} times fewer multiply-accumulates'
  )


def _is_number(value: object) -> TypeGuard[float]:
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return False
  return math.isfinite(value)


def with_attention(model: Model) -> tuple[int, ...]:
  """Blocks whose attention can be removed."""
  removed = set(model.removed_layers)
  return tuple(i for i in range(model.depth) if i not in removed)
