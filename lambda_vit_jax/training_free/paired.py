"""Run a pruned model and its dense original in lockstep, by half-blocks.

`norm_recentring` and `mlp_refit` compare the streams of the two models on the
same images and correct the pruned one as they go.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from lambda_vit_jax.analysis.blocks import (
  BlockRunner,
  advance,
  check_finished,
  in_float32,
)
from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.analysis.memory import micro_batch_size
from lambda_vit_jax.core.errors import DataError, ModelError
from lambda_vit_jax.core.typing import Params
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import MODES, block_name

# The class token is one sample per image: 32 of them give σ within an eighth.
LEAST_IMAGES = 32


@dataclasses.dataclass(frozen=True)
class Pairing:
  """Which block of the dense model each block of the modified one was.

  Attributes:
    origins: the dense index of every block of the modified model.
    changed: the blocks whose mode differs, by their index in the modified
      model.
    narrowed: likewise those whose MLP has fewer neurons or is gone.
    dense_depth: blocks of the dense model.
  """

  origins: tuple[int, ...]
  changed: tuple[int, ...]
  narrowed: tuple[int, ...]
  dense_depth: int

  @property
  def targets(self) -> tuple[int, ...]:
    """Per block, the dense block whose input its output should equal.

    Where the next blocks were dropped, that is the block after them;
    `dense_depth` for the last.
    """
    return (*self.origins[1:], self.dense_depth)

  @property
  def first(self) -> int:
    """The first block whose attention half differs from the dense one.

    Its mode or its input differs. The depth if there is none.
    """
    moved = [j for j, origin in enumerate(self.origins) if j != origin]
    after = [j + 1 for j in self.narrowed]
    return min([*self.changed, *moved, *after], default=len(self.origins))

  @property
  def first_short(self) -> int:
    """The first block after whose MLP the streams differ, or the depth."""
    short = [j for j, target in enumerate(self.targets) if target != j + 1]
    found = [*self.changed, *self.narrowed, *short]
    return min(found, default=len(self.origins))


def pair(model: Model, dense: Model) -> Pairing:
  """Matches the blocks of a modified model with those of its dense original.

  Raises:
    ModelError: they differ in more than modes, dropped blocks and narrower MLPs.
  """
  for one in (model, dense):
    # Refuses models that merge tokens or segment.
    pieces.stem_of(one.module)
    if one.module.quantization != 'none':
      raise ModelError(
        'the model is quantised; correct it first, or dequantize(model)'
      )
    check_finished(one, 'a correction')
  origins = _origins(model, dense)
  old_modes = [dense.attention_modes[origin] for origin in origins]
  modes = zip(model.attention_modes, old_modes, strict=True)
  changed = {i: pair for i, pair in enumerate(modes) if pair[0] != pair[1]}
  for index, (mode, old) in changed.items():
    if not MODES[old].has_attention and (old, mode) != ('linear', 'absent'):
      raise ModelError(
        f'block {index} is {mode!r} in the first model and {old!r} in the '
        'second: give the changed model first, then the dense one'
      )
  narrowed = _narrowed(model, [dense.mlp_dims[origin] for origin in origins])
  return Pairing(origins, tuple(changed), narrowed, dense.depth)


def _narrowed(model: Model, old: Sequence[int]) -> tuple[int, ...]:
  """Blocks whose MLP is narrower than the `old` one, per block of the model."""
  for index, (width, before) in enumerate(
    zip(model.mlp_dims, old, strict=True)
  ):
    if width > before:
      raise ModelError(
        f'block {index} has an MLP of width {width} in the first model and '
        f'{before} in the second: give the changed model first, then the dense one'
      )
  return tuple(i for i, width in enumerate(model.mlp_dims) if width < old[i])


def check_not_doubled(model: Model, pairing: Pairing, name: str) -> None:
  """Refuses changed blocks that double the stream, for the function `name`.

  Raises:
    ModelError: names the first of them.
  """
  for index in pairing.changed:
    if MODES[model.attention_modes[index]].residual_scale == 2:
      raise ModelError(
        f'block {index} is identity, which doubles the stream; {name} works on '
        "blocks left out: prune(dense, layers, 'absent')"
      )


def _origins(model: Model, dense: Model) -> tuple[int, ...]:
  """The dense index of every block of models that are otherwise alike."""
  if model.depth < dense.depth and not model.kept_blocks:
    raise ModelError(
      f'the two models differ in depth ({model.depth} and {dense.depth}), and '
      'the first does not record which blocks it kept; make it by drop_blocks'
    )
  ours, theirs = model.block_origins, dense.block_origins
  missing = sorted(set(ours) - set(theirs))
  if missing:
    raise ModelError(
      f'the two models differ in depth: the second has no block {missing[0]} '
      'of the first; give the changed model first, then the dense one'
    )
  origins = tuple(theirs.index(origin) for origin in ours)
  eps = dense.module.norm_eps
  expected = {'norm_eps': (*(eps[origin] for origin in origins), eps[-1])}
  for field in dataclasses.fields(model.module):
    one = getattr(model.module, field.name)
    other = expected.get(field.name, getattr(dense.module, field.name))
    if field.name not in _FREE and one != other:
      raise ModelError(
        f'the two models differ in {field.name} ({one} and {other}): give the '
        'dense model that the first was made from, and no folded one'
      )
  return origins


# Fields in which a model may differ from the dense one.
_FREE = (
  'attention_kernel',
  'attention_modes',
  'compensation',
  # Checked by `_origins`.
  'depth',
  'dilution_path',
  'drop_path_rates',
  'linear_inputs',
  # Compared by `_narrowed`.
  'mlp_dims',
  'name',
  'parent',
  'remat',
)


class StreamedModel:
  """A model and the streams of all images, moved on half a block at a time.

  Attributes:
    params: of the model, as updated.
    runner: runs the blocks.
    streams: one per micro-batch, all before the same half of a block.
    masks: of the micro-batches, `[batch]`, False for padding.
  """

  def __init__(self, model: Model, images: ImageSet, size: int):
    self.params: dict[str, Any] = dict(model.params)
    self.runner = BlockRunner(model, images.placement)
    self.streams, self.masks = self.runner.embed_all(images, size)
    self._done = 0

  def update(self, changed: Params) -> None:
    """Replaces the parameters of some blocks or norms."""
    self.params |= changed
    self.runner.update(changed)

  def narrow(self, model: Model, index: int) -> None:
    """Goes on with another version of the model, whose block differs."""
    self.runner.module = in_float32(model).module
    self.update({block_name(index): pieces.block_params(model.params, index)})

  def run_to(self, index: int) -> None:
    """Runs the blocks that remain before a block."""
    while self._done < index:
      self.run_attention(self._done)
      self.run_mlp(self._done)

  def run_attention(self, index: int) -> None:
    """Runs the first half of a block."""
    advance(self.streams, functools.partial(self.runner.run_attention, index))

  def run_mlp(self, index: int) -> None:
    """Runs the second half."""
    advance(self.streams, functools.partial(self.runner.run_mlp, index))
    self._done = index + 1


def at_block(
  model: Model,
  dense: Model,
  images: ImageSet,
  index: int,
  memory_gib: float | None,
) -> tuple[StreamedModel, StreamedModel]:
  """Both models, with their streams before a block up to which they agree."""
  size = micro_batch_size(in_float32(dense).module, images, memory_gib)
  here, there = (StreamedModel(each, images, size) for each in (model, dense))
  here.run_to(index)
  there.run_to(index)
  return here, there


def check_images(images: ImageSet, purpose: str, held: int = 0) -> None:
  """Refuses a correction that would be measured on too few images.

  Args:
    images: those to measure on.
    purpose: what they are for.
    held: how many of those given were held back; about a quarter, if any.

  Raises:
    DataError: fewer than `LEAST_IMAGES`.
  """
  check_number(images.total, purpose, held)


def check_number(total: int, purpose: str, held: int = 0) -> None:
  """`check_images` of images that were counted and not read."""
  if total < LEAST_IMAGES:
    raise DataError(
      f'{total + held} images are too few to {purpose}; give at least '
      f'{least_given(LEAST_IMAGES, held)}, better 512'
    )


def least_given(needed: int, held: int) -> int:
  """How many images must be given so that so many are left to measure on.

  Args:
    needed: to measure on.
    held: whether a quarter is held back, as a number of images: the least n
      whose n - n // 4 is `needed`.
  """
  return (needed - 1) * 4 // 3 + 1 if held else needed
