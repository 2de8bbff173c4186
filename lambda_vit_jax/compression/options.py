"""Options of `compress`, as one object, and their checks."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from lambda_vit_jax.compression import costs, parts, scores
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.models import map_inputs
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.training_free import input_choice, least_squares

RESCORE = ('lazy', 'all')

DEFAULT_INPUTS = ('token', 'mean', 'class_map')


def names_of(names: str | Sequence[str]) -> tuple[str, ...]:
  """One name, or several, as a tuple."""
  return (names,) if isinstance(names, str) else tuple(names)


@dataclasses.dataclass(frozen=True)
class CompressOptions:
  """How to search: keywords of `greedy.compress`, config keys `compress.*`.

  Attributes:
    inputs: of the maps, None for `DEFAULT_INPUTS` as far as the network has
      them, empty for no maps.
  """

  target_speedup: float = 1.5
  parts: tuple[str, ...] = ('attention', 'neurons', 'blocks')
  criterion: str = 'output'
  target: str = 'logits'
  cost: str = 'macs'
  inputs: tuple[str, ...] | None = None
  repair: bool = True
  ridge: float | str = 'auto'
  rescore: str = 'lazy'
  finetune: int | None = None
  memory_gib: float | None = None

  def checked(self, model: Model) -> 'CompressOptions':
    """The options for a model, in one form.

    Raises:
      UsageError: an unknown name or an impossible number; names the key.
    """
    scores.check_names(self.criterion, self.target)
    costs.check_cost(self.cost)
    if self.rescore not in RESCORE:
      raise UsageError(
        f'compress.rescore={self.rescore!r} is not known; use '
        f'{" or ".join(RESCORE)}'
      )
    if not self.target_speedup > 1.0:
      raise UsageError(
        f'compress.target_speedup={self.target_speedup:g}: must be above 1, such '
        'as 1.5'
      )
    if self.finetune is not None and self.finetune < 0:
      raise UsageError(
        f'compress: finetune={self.finetune}: give a number of steps, 0 or None '
        'for none'
      )
    ridge = least_squares.check_ridge(self.ridge)
    inputs: Sequence[str] | None = self.inputs
    if not self.repair:
      inputs = ()
    elif inputs is None:
      own = model.module.class_token
      inputs = DEFAULT_INPUTS if own else DEFAULT_INPUTS[:2]
    elif input_choice.auto_budget(inputs) is not None:
      # What goes is weighed by what it saves, which `auto` knows after the fit.
      raise UsageError(
        f'compress.inputs={inputs[0]!r}: is for linearize; name the inputs of '
        'the maps, such as token,mean'
      )
    names = parts.check_parts(self.parts)
    if 'tokens' in names:
      map_inputs.check_unmerged(inputs)
    return dataclasses.replace(
      self,
      parts=names,
      inputs=tuple(inputs),
      ridge='auto' if ridge is None else ridge,
    )

  @property
  def fixed_ridge(self) -> float | None:
    """The ridge of every fit, None to choose each."""
    return None if self.ridge == 'auto' else float(self.ridge)

  @property
  def is_nose(self) -> bool:
    """Whether the search is that of `nose`, which then runs."""
    return (
      self.criterion == 'transfer_entropy'
      and self.parts == ('attention',)
      and not self.repair
    )

  def recorded(self) -> dict[str, Any]:
    """What decides the path; how far it goes is not part of it."""
    left_out = ('target_speedup', 'finetune', 'memory_gib')
    return {
      name: value for name, value in vars(self).items() if name not in left_out
    }
