"""λ as a function of the step, and its vector over blocks (METHOD 2 and 5)."""

from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.core.typing import Array, AttentionMode


def dilution_schedule(
  dilution_steps: int, start_step: int = 0
) -> Callable[[Array | int], Array]:
  """λ over steps: 1 at `start_step`, linear to 0, then 0. An optax schedule.

  Args:
    dilution_steps: steps from λ = 1 to λ = 0; 0 means λ = 0 at once.
    start_step: the step at which λ leaves 1.

  Returns:
    A function of the step (an int or a traced array) to a float32 scalar:
    exactly 1 at `start_step` and exactly 0 from `start_step +
    dilution_steps` on.
  """

  def schedule(step: Array | int) -> Array:
    elapsed = jnp.asarray(step, jnp.float32) - start_step
    remaining = dilution_steps - elapsed
    # XLA divides by a constant through its reciprocal, so that n / n need not
    # be 1; 0 / n is 0.
    begun = (elapsed > 0) | (remaining <= 0)
    share = jnp.clip(remaining / max(dilution_steps, 1), 0.0, 1.0)
    return jnp.where(begun, share, 1.0)

  return schedule


def warm_schedule(
  dilution_steps: int, halfway: int
) -> Callable[[Array | int], Array]:
  """λ of a warm start: 1 to 0 twice, a pure function of the step.

  Before `halfway` it leads from attention to an affine map, from there on
  from the map to the identity; at `halfway` itself it is 1 again, which is
  the same network as 0 was on the first way.
  """
  first = dilution_schedule(halfway)
  second = dilution_schedule(dilution_steps - halfway, halfway)

  def schedule(step: Array | int) -> Array:
    step = jnp.asarray(step)
    return jnp.where(step < halfway, first(step), second(step))

  return schedule


def is_diluted(step: int, dilution_steps: int, start_step: int = 0) -> bool:
  """Whether λ is 0 at `step`: from then on attention is not computed."""
  return step >= start_step + dilution_steps


def factor_vector(
  factor: Array | float, diluted_layers: Iterable[int], depth: int
) -> Array:
  """`[depth]` float32: `factor` at `diluted_layers`, 1 elsewhere."""
  chosen = np.zeros(depth, bool)
  chosen[list(diluted_layers)] = True
  return jnp.where(chosen, jnp.asarray(factor, jnp.float32), 1.0)


def diluted_modes(
  diluted_layers: Iterable[int], modes: Sequence[AttentionMode]
) -> tuple[AttentionMode, ...]:
  """Modes during dilution: `diluted` at those layers that have attention."""
  diluted_layers = set(diluted_layers)
  return tuple(
    'diluted' if index in diluted_layers and mode == 'full' else mode
    for index, mode in enumerate(modes)
  )


def final_mode(compensation: bool) -> AttentionMode:
  """What a diluted block becomes: `identity`, or `absent` without r = 2 - λ."""
  return 'identity' if compensation else 'absent'
