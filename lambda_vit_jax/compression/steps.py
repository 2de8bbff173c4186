"""The path of a search as it grows: its start, its steps, an earlier one."""

import dataclasses
import math
from collections.abc import Collection, Mapping

import jax

from lambda_vit_jax.compression import costs, parts
from lambda_vit_jax.compression.options import CompressOptions
from lambda_vit_jax.compression.parts import Kind, Part
from lambda_vit_jax.compression.record import (
  BlockLeft,
  Compression,
  Point,
  Step,
)
from lambda_vit_jax.compression.repairs import Repair
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import block_name


def start(
  model: Model,
  dense: Model,
  options: CompressOptions,
  num_images: int,
  cost: costs.Cost,
) -> Compression:
  """A path without steps."""
  return Compression(
    options=options.recorded(),
    target_speedup=float(options.target_speedup),
    num_images=num_images,
    dense=_point(dense, cost),
    start=_point(model, cost),
    blocks=tuple(_left(model, block) for block in dense.block_origins),
    models=(model,),
  )


def _point(model: Model, cost: costs.Cost, error: float = 0.0) -> Point:
  measured = cost(model) if isinstance(cost, costs.BlockTimes) else None
  return Point(model.macs(executed=True), model.num_parameters, error, measured)


def _left(model: Model, block: int) -> BlockLeft:
  if block not in model.block_origins:
    return BlockLeft(block, None, None)
  position = parts.position_of(model, block)
  return BlockLeft(
    block,
    model.attention_modes[position],
    model.mlp_dims[position],
    model.module.merge_counts[position],
  )


def step_of(
  model: Model,
  part: Part,
  scores: Mapping[Part, float],
  cost: costs.Cost,
  seconds: float,
) -> Step:
  """The step that made a model.

  Args:
    model: without the part.
    part: what went.
    scores: of the candidates of the step, that of the part among them.
    cost: of a network.
    seconds: wall time.
  """
  left = _left(model, part.block)
  return Step(
    **vars(_point(model, cost, scores[part])),
    part=part.kind,
    block=part.block,
    attention=left.attention,
    neurons=left.neurons,
    merged=left.merged,
    scores=_rows(scores),
    seconds=seconds,
  )


def _rows(values: Mapping[Part, float]) -> tuple[tuple[int, Kind, float], ...]:
  """In the order of blocks and kinds."""
  return tuple(
    (part.block, part.kind, value) for part, value in sorted(values.items())
  )


def extended(
  found: Compression, step: Step, model: Model, growth: Mapping[Part, float]
) -> Compression:
  """The path with one more step, and what is known of the parts left."""
  return dataclasses.replace(
    found,
    steps=(*found.steps, step),
    models=(*found.models, model),
    pending=_rows(growth),
  )


def scored(found: Compression, score: float) -> Compression:
  """The path, with the score of its start."""
  return dataclasses.replace(
    found, start=dataclasses.replace(found.start, error=score)
  )


def growth_of(record: Compression) -> dict[Part, float]:
  """What is known of the parts left at the end of a path."""
  return {Part(block, kind): value for block, kind, value in record.pending}


def applied(model: Model, repair: Repair) -> Model:
  """`repair` on a model whose arrays are on the host."""
  return dataclasses.replace(
    repair, params=jax.device_get(dict(repair.params))
  ).apply(model)


def with_blocks(model: Model, blocks: Mapping[int, Params]) -> Model:
  """`model` with other parameters of blocks, by their index in the variant."""
  named = {
    block_name(parts.position_of(model, block)): jax.device_get(params)
    for block, params in blocks.items()
  }
  return model.replace(params=model.params | named)


def settled_at(found: Compression) -> float:
  """The speed-up when a refit of MLPs was last tried, or at the start."""
  settled = [step for step in found.steps if step.settled is not None]
  return found.speedup(settled[-1] if settled else found.start)


def earlier(found: Compression, resume: Compression | None) -> tuple[Step, ...]:
  """The steps of an interrupted search, once it is known to be the same.

  Raises:
    UsageError: it had other options or images; names the first.
  """
  if resume is None:
    return ()
  old, new = (
    {
      **record.options,
      'num_images': record.num_images,
      'dense': record.dense.macs,
    }
    for record in (resume, found)
  )
  for name, value in new.items():
    if old.get(name) != value:
      raise UsageError(
        f'resume: that search had {name}={old.get(name)!r}, this one has '
        f'{value!r}; give the same, or search anew'
      )
  return resume.steps


def check_possible(part: Part, left: Collection[Part]) -> None:
  """Refuses a step of an earlier search that this model does not have.

  Raises:
    UsageError: the part is not among those left.
  """
  if part not in left:
    raise UsageError(
      f'resume: the step {part} cannot be made on this model; give the model '
      'and the images of that search'
    )


def check_same(step: Step, measured: float) -> None:
  """Refuses an earlier search of another network, or of other images.

  Another device rounds otherwise, which moves an error by some percent at most.

  Raises:
    UsageError: the step, made again, has another error by far.
  """
  if not math.isclose(step.error, measured, rel_tol=0.3, abs_tol=1e-6):
    raise UsageError(
      f'resume: after {step.part} {step.block} that search had the error '
      f'{step.error:.3g}, and this one has {measured:.3g}; give the model and '
      'the images of that search'
    )


def check_reach(
  model: Model, dense: Model, options: CompressOptions, cost: costs.Cost
) -> None:
  """Refuses a speed-up beyond `largest`.

  Raises:
    UsageError: says the largest.
  """
  best = largest(model, dense, options.parts, cost)
  if best < options.target_speedup:
    raise UsageError(
      f'compress.target_speedup={options.target_speedup:g} is out of reach: '
      f'without all of {", ".join(options.parts)} that may go it is {best:.3f}'
    )


def largest(
  model: Model, dense: Model, names: Collection[str], cost: costs.Cost
) -> float:
  """The speed-up without all parts of `parts.GROUPS` that may go, as far as known.

  One attention layer stays, the first or the last one. Only blocks with attention
  merge tokens, so where they do, the first layers stay, as many as is best; other
  choices are not tried.
  """
  having = [
    block
    for position, block in enumerate(model.block_origins)
    if position not in model.removed_layers
  ]
  most = len(having) if 'tokens' in names else 1
  found = []
  for chain in (
    [having[-1:]],
    [having[:count] for count in range(most, 0, -1)],
  ):
    left = model
    for kept in chain:
      while gone := _removable(left, names, kept):
        left = parts.without(left, gone)
      found.append(left)
  return cost(dense) / cost(min(found, key=costs.macs))


def _removable(
  model: Model, names: Collection[str], kept: Collection[int]
) -> Part | None:
  """A part to go, but not the attention of the blocks `kept`."""
  left = [
    part
    for part in parts.parts_left(model, names)
    if part.block not in kept or part.kind in ('neurons', 'mlp', 'tokens')
  ]
  return min(left, key=lambda part: part.kind != 'block', default=None)
