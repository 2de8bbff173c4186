"""The dilution schedule: λ(step) from 1 to 0, and λ per block.

λ scales the attention of the diluted blocks (see docs/method.md#dilution):
`x ← (2 - λ)·x + λ·attn(norm1(x))`. The published schedule is linear from 1
to 0 and then stays at 0.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
import numpy as np
import optax

from lambda_vit_jax.core.typing import Array, AttentionMode, Params
from lambda_vit_jax.training.blend import Blend


def dilution_schedule(
  dilution_steps: int, start_step: int = 0
) -> Callable[[Array | int], Array]:
  """λ over steps: 1 until `start_step`, then linear to 0; an optax schedule.

  Args:
    dilution_steps: steps from λ = 1 to λ = 0; 0 means λ = 0 at once.
    start_step: the last step at which λ is 1.

  Returns:
    A function from the step (an int or a traced array) to a float32 λ: exactly
    1 at `start_step`, exactly 0 from `start_step + dilution_steps` on.
  """

  def schedule(step: Array | int) -> Array:
    elapsed = jnp.asarray(step, jnp.float32) - start_step
    remaining = dilution_steps - elapsed
    # XLA divides by a constant by multiplying with its reciprocal, so n / n may
    # differ from 1. The first step is therefore set to 1; 0 / n is exact.
    begun = (elapsed > 0) | (remaining <= 0)
    share = jnp.clip(remaining / max(dilution_steps, 1), 0.0, 1.0)
    return jnp.where(begun, share, 1.0)

  return schedule


@dataclasses.dataclass(frozen=True)
class Dilution:
  """Which layers are diluted, and when.

  Attributes:
    layers: block indices; none for plain training.
    steps: steps from λ = 1 to λ = 0.
    halfway: of a warm start, the step at which λ is 1 again: λ first fades
      from attention to an affine map, then from the map to the identity, and
      0 in the first half is the same network as 1 in the second. None for the
      plain schedule.
    spans: of every block of the network, the steps at which its λ begins and
      ends to fall; empty where all fall together.
    blend: what λ does to parameters besides, while it falls; None for nothing.
  """

  layers: tuple[int, ...] = ()
  steps: int = 0
  halfway: int | None = None
  spans: tuple[tuple[int, int], ...] = ()
  blend: Blend | None = None

  def within(self, blend: Blend | None) -> 'Dilution':
    """The same with another blend, that of a phase."""
    return dataclasses.replace(self, blend=blend)

  def blended(self, params: Params, step: Array) -> Params:
    """The parameters to run the network with at `step`."""
    if self.blend is None:
      return params
    return self.blend(params, self.factors(step))

  def factors(self, step: Array) -> Array:
    """`[depth]` λ of every block of a network in which all are diluted."""
    if not self.spans:
      return jnp.broadcast_to(self.factor(step), (len(self.layers),))
    return jnp.stack(
      [dilution_schedule(end - begin, begin)(step) for begin, end in self.spans]
    )

  def factor(self, step: Array) -> Array:
    """λ of the diluted layers at `step`, the largest; 1 without any."""
    if not self.layers:
      return jnp.ones((), jnp.float32)
    if self.spans:
      return self.factors(step).max()
    if self.halfway is None:
      return dilution_schedule(self.steps)(step)
    halves = (self.halfway, self.steps - self.halfway)
    return optax.join_schedules(
      [dilution_schedule(steps) for steps in halves], [self.halfway]
    )(step)

  def block_factors(
    self, step: Array, modes: Sequence[AttentionMode]
  ) -> Array | None:
    """`[depth]` λ per block at `step`; None where no mode is `diluted`."""
    if 'diluted' not in modes:
      return None
    if self.spans:
      return self.factors(step)
    return factor_vector(self.factor(step), self.layers, len(modes))


def factor_vector(
  factor: Array | float, diluted_layers: Iterable[int], depth: int
) -> Array:
  """λ per block, `[depth]` float32: `factor` if diluted, else 1."""
  chosen = np.zeros(depth, bool)
  chosen[list(diluted_layers)] = True
  return jnp.where(chosen, jnp.asarray(factor, jnp.float32), 1.0)


def diluted_modes(
  diluted_layers: Iterable[int], modes: Sequence[AttentionMode]
) -> tuple[AttentionMode, ...]:
  """Modes during dilution: `diluted` at those layers that still have attention."""
  diluted_layers = set(diluted_layers)
  return tuple(
    'diluted' if index in diluted_layers and mode == 'full' else mode
    for index, mode in enumerate(modes)
  )


def final_mode(compensation: bool) -> AttentionMode:
  """Mode at λ = 0: `identity`, or `absent` if the residual keeps scale 1."""
  return 'identity' if compensation else 'absent'
