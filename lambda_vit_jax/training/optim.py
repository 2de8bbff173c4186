"""AdamW as an optax chain, its parameter masks and learning-rate schedules."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.typing import Array, Params

_BLOCK = re.compile(r'block(\d+)')
_LAST = ('head', 'decoder', 'norm', 'fc_norm', 'attn_pool')
_TOKENS = ('cls_token', 'dist_token', 'reg_token', 'latent')
# A bias may have an axis of positions before that of channels.
_NO_DECAY = (
  'bias',
  'pos_embed',
  'gamma',
  'relative_position_bias_table',
  *_TOKENS,
)


def _map_named(
  function: Callable[[list[str], Array], Any], params: Params
) -> Params:
  """Maps over the leaves and the names on the path to each."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: function(
      [str(getattr(part, 'key', part)) for part in path], leaf
    ),
    params,
  )


def decay_mask(params: Params) -> Params:
  """True where weight decay applies: kernels; not norms, biases or tokens."""
  return _map_named(
    lambda names, leaf: leaf.ndim > 1 and names[-1] not in _NO_DECAY, params
  )


def layer_scales(params: Params, decay: float, depth: int) -> Params:
  """Learning-rate factor of each leaf: `decay^(depth + 1 - layer)`.

  Embeddings are layer 0, block l is layer l + 1, the final norm, an attention
  pool and the head or decoder are layer depth + 1, as in BEiT and timm.
  """

  def scale(names: list[str], leaf: Array) -> float:
    del leaf
    block = _BLOCK.fullmatch(names[0])
    if block:
      return decay ** (depth - int(block[1]))
    last = names[0].startswith(_LAST)
    return 1.0 if last and names[0] != 'norm_pre' else decay ** (depth + 1)

  return _map_named(scale, params)


def frozen_mask(params: Params, pattern: str) -> Params:
  """True where the path (`block03/attn/qkv/kernel`) contains `pattern`."""
  return _map_named(
    lambda names, _: re.search(pattern, '/'.join(names)) is not None, params
  )


SCHEDULES = ('cosine', 'poly')
"""Shapes of the decay from the peak."""


def check_schedule(shape: str) -> None:
  """Raises UsageError if `shape` is not one of `SCHEDULES`."""
  if shape not in SCHEDULES:
    raise UsageError(
      f'schedule={shape!r} is not known; use {" or ".join(SCHEDULES)}'
    )


def check_frozen(
  pattern: str, stage: str, params: Params | None = None
) -> None:
  """Checks that `pattern`, unless empty, freezes some of `params`, if given.

  Raises:
    UsageError: it is no regular expression, or no path or every path
      contains it.
  """
  where = f'config.{stage}.frozen={pattern!r}'
  try:
    re.compile(pattern)
  except re.error as error:
    raise UsageError(f'{where}: not a regular expression ({error})') from error
  if not pattern or params is None:
    return
  matches = jax.tree.leaves(frozen_mask(params, pattern))
  if not any(matches):
    raise UsageError(
      f'{where}: no parameter has it in its path; paths look like '
      'block03/attn/qkv/kernel'
    )
  if all(matches):
    raise UsageError(
      f'{where}: every parameter has it in its path, so that none would be '
      'trained; leave one out'
    )


def learning_rate_schedule(
  peak: float,
  total_steps: int,
  warmup_steps: int,
  final: float,
  shape: str = 'cosine',
  power: float = 1.0,
) -> Callable[[Array | int], Array]:
  """Linear warm-up from 0 to `peak`, then decay to `final`.

  Args:
    peak: the highest rate.
    total_steps: steps until `final`, warm-up included.
    warmup_steps: steps from 0 to `peak`.
    final: the rate at the end and after it.
    shape: `cosine`, or `poly` for (share of the steps left)^power.
    power: of `poly`.

  Returns:
    A function from the step to the rate.

  Raises:
    UsageError: an unknown shape, or a warm-up as long as the training.
  """
  check_schedule(shape)
  if warmup_steps >= total_steps:
    raise UsageError(
      f'a warm-up of {warmup_steps} steps does not fit in {total_steps} steps '
      'of training; shorten it'
    )
  steps = total_steps - warmup_steps
  if shape == 'poly':
    decay = optax.polynomial_schedule(peak, final, power, steps)
  else:
    alpha = final / peak if peak else 0.0
    decay = optax.cosine_decay_schedule(peak, steps, alpha)
  if not warmup_steps:
    return decay
  warmup = optax.linear_schedule(0.0, peak, warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


def make_optimizer(
  settings: Mapping[str, Any],
  schedule: Callable[[Array | int], Array],
  depth: int,
) -> optax.GradientTransformation:
  """AdamW as in DeiT, with clipping, layer decay, freezing, accumulation.

  Args:
    settings: `weight_decay`, `b1`, `b2`, `clip_norm` (0 for none),
      `layer_decay` (1 for none), `frozen` (regular expression on parameter
      paths, '' for none), `accumulate_steps` (1 for none).
    schedule: learning rate by step.
    depth: number of blocks of the model, for `layer_decay`.
  """
  parts = []
  if settings['clip_norm']:
    parts.append(optax.clip_by_global_norm(settings['clip_norm']))
  parts.append(optax.scale_by_adam(b1=settings['b1'], b2=settings['b2']))
  if settings['weight_decay']:
    parts.append(
      optax.add_decayed_weights(settings['weight_decay'], mask=decay_mask)
    )
  decay = settings['layer_decay']
  if decay != 1.0:
    by_layer = optax.stateless(
      lambda updates, _: jax.tree.map(
        operator.mul, updates, layer_scales(updates, decay, depth)
      )
    )
    parts.append(by_layer)
  each = settings['accumulate_steps']
  # The chain counts updates, the schedule counts steps: an update is applied
  # at the last of `each` steps.
  parts.append(
    optax.scale_by_learning_rate(lambda n: schedule(n * each + each - 1))
  )
  if settings['frozen']:
    pattern = settings['frozen']
    parts.append(
      optax.masked(optax.set_to_zero(), lambda p: frozen_mask(p, pattern))
    )
  chain = optax.chain(*parts)
  if each > 1:
    chain = optax.MultiSteps(chain, each).gradient_transformation()
  # Optax computes float ** int count, which strict promotion refuses.
  update = jax.numpy_dtype_promotion('standard')(chain.update)
  return optax.GradientTransformation(chain.init, update)
