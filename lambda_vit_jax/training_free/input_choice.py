"""Choose the inputs of a map: `inputs='auto'`.

Starting from `token`, the input is added that lowers the held-out error most per
operation, as long as one does and the budget allows for it. All come from the
moments of one regression on every input: a part of its columns is the regression
on fewer.
"""

from collections.abc import Iterable, Sequence

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.models import map_inputs
from lambda_vit_jax.models.macs import attention_macs, map_extent
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training_free.cross_validation import RIDGES, best_ridge
from lambda_vit_jax.training_free.least_squares import (
  CrossMoments,
  RidgeSolver,
  merged,
)
from lambda_vit_jax.training_free.map_design import columns_of

AUTO = 'auto'

DEFAULT_BUDGET = 0.5

# Coarse: sets of inputs are compared, and the map's own ridge is chosen after.
_RIDGES = RIDGES[2::2]

# An input has to explain this share of what a map of the token leaves.
_LEAST = 0.01

Groups = Sequence[Sequence[CrossMoments]]
"""Per group of tokens the moments of each fold: those of the class token first,
where they are apart."""


def auto_budget(inputs: str | Iterable[str]) -> float | None:
  """The budget of `auto` or `auto:SHARE`, None for inputs that are named.

  Raises:
    UsageError: no share between 0 and 1.
  """
  names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
  word, _, share = str(names[0] if len(names) == 1 else '').partition(':')
  if word != AUTO:
    return None
  try:
    budget = float(share) if share else DEFAULT_BUDGET
  except ValueError:
    budget = -1.0
  if not 0.0 <= budget <= 1.0:
    raise UsageError(
      f'linearize.inputs={names[0]!r}: the budget is a share of what attention '
      'costs more than a map of the token; give auto:0 to auto:1'
    )
  return budget


def named_inputs(inputs: str | Iterable[str]) -> tuple[str, ...]:
  """Inputs in the order of a file, or `auto` with its budget as given.

  Raises:
    ModelError: an unknown input, or no `token`.
    UsageError: no share between 0 and 1.
  """
  inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
  if auto_budget(inputs) is not None:
    return inputs
  return map_inputs.check_linear_inputs(inputs)


def cost(module: ViT, inputs: Sequence[str]) -> int:
  """Multiply-accumulates of a map per image, and weights that it reads."""
  tokens = module.num_tokens
  extent = map_extent(module, inputs, tokens, tokens)
  macs = map_inputs.map_macs(inputs, extent)
  return macs + map_inputs.map_parameters(inputs, extent)


def most(module: ViT, budget: float) -> float:
  """The most that a map may cost."""
  least = cost(module, ('token',))
  weights = 4 * module.embed_dim * (module.embed_dim + 1)
  whole = attention_macs(module, module.num_tokens, module.num_tokens) + weights
  return least + budget * (whole - least)


def candidates(module: ViT, budget: float) -> tuple[str, ...]:
  """`token` and the inputs that a model can have and the budget can pay."""
  found = ['token']
  for name in map_inputs.LINEAR_INPUTS[1:]:
    fits = name != 'neighbours' or map_inputs.has_neighbours(module.grid_size)
    if name == map_inputs.CLASS_MAP and not module.class_token:
      fits = False
    if fits and cost(module, ('token', name)) <= most(module, budget):
      found.append(name)
  return map_inputs.check_linear_inputs(found)


def restrict(
  module: ViT,
  known: Sequence[str],
  inputs: Sequence[str],
  groups: Groups,
) -> list[list[CrossMoments]]:
  """The groups of a map of some `inputs`, from those of all that are `known`."""
  columns = columns_of(module, known, inputs)
  parts = [
    [fold.of_inputs(columns) for fold in folds if fold.count > 0]
    for folds in groups
  ]
  if map_inputs.CLASS_MAP in known and map_inputs.CLASS_MAP not in inputs:
    first, rest = parts
    return [[a.merge(b) for a, b in zip(first, rest, strict=True)]]
  return parts


def held_out_error(groups: Groups) -> float:
  """Squared error of the last fold with the map of the others, best ridge.

  One fold, not each in turn: a solution for every set of inputs is what the
  choice costs.
  """
  *first, rest = groups
  error, ridge, solver = _of_last(rest)
  for folds in first:
    shared = solver.solve(ridge)
    error += _of_last([fold.beyond(shared) for fold in folds])[0]
  return error


def _of_last(folds: Sequence[CrossMoments]) -> tuple[float, float, RidgeSolver]:
  """The error of the last fold, its ridge, and the solver of the others."""
  *fitted, held_out = folds
  solver = RidgeSolver(merged(fitted))
  errors = solver.errors(held_out, _RIDGES)
  return float(errors.min()), best_ridge(errors, _RIDGES), solver


def choose_inputs(
  module: ViT,
  known: Sequence[str],
  budget: float,
  groups: Groups,
) -> tuple[str, ...]:
  """The inputs that pay most, within the budget.

  Args:
    module: of the network.
    known: see `candidates`.
    budget: share of what attention costs more than a map of `token`.
    groups: moments of the regression on all of `known`.

  Returns:
    Of `known`, in their order; `token` where no two folds have images.
  """
  if sum(fold.count > 0 for fold in groups[-1]) < 2:
    return ('token',)

  def error_of(inputs: Sequence[str]) -> float:
    return held_out_error(restrict(module, known, inputs, groups))

  taken: tuple[str, ...] = ('token',)
  error, left = error_of(taken), most(module, budget)
  least = _LEAST * abs(error)
  while True:
    best, rate = None, 0.0
    for name in known:
      if name in taken:
        continue
      wider = map_inputs.check_linear_inputs((*taken, name))
      price = cost(module, wider)
      if price > left:
        continue
      found = error_of(wider)
      gain = (error - found) / (price - cost(module, taken))
      if error - found > least and gain > rate:
        best, rate = (wider, found), gain
    if best is None:
      return taken
    taken, error = best
