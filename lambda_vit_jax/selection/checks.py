"""Check the options, images and resumed state of a search."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import Batches, ImageSet, read_images
from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.models import modes
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import criteria, exhaustive
from lambda_vit_jax.selection.budget import resolve_num_layers, with_attention
from lambda_vit_jax.selection.options import canonical
from lambda_vit_jax.selection.record import Selection

# With fewer images the choice is hardly better than chance.
FEW_IMAGES = 128


def check_names(target: str, sign: str, trial: str, criterion: str) -> None:
  """Refuses unknown names, and a trial that the criterion does not make.

  Raises:
    UsageError: names the key and the known values.
  """
  for value, known, key in (
    (target, ('logits', 'features'), 'target'),
    (sign, ('signed', 'absolute'), 'sign'),
    (trial, ('skip', 'linear'), 'trial'),
  ):
    if value not in known:
      raise UsageError(
        f'select.{key}={value!r} is not known; use {" or ".join(known)}'
      )
  if trial != 'skip' and canonical(criterion) not in criteria.MEASURED:
    raise UsageError(
      f'select.trial={trial} needs select.criterion='
      f'{" or ".join(criteria.MEASURED)}; {criterion} makes no '
      'such trials'
    )


def check_budget(
  model: Model, name: str, layers: Sequence[int], **budget: Any
) -> int:
  """Returns the number of layers that a search removes.

  Args:
    model: only its sizes are used, not its arrays.
    name: the criterion, without the score of `exhaustive`.
    layers: blocks to remove with criterion `given`.
    **budget: see `budget.resolve_num_layers`.

  Raises:
    UsageError: an impossible budget.
    ModelError: layers that are out of range or repeated.
  """
  if name == 'given':
    return _check_given(model, layers)
  number = resolve_num_layers(model, **budget)
  if name == 'exhaustive':
    exhaustive.all_sets(with_attention(model), number)
  return number


def _check_given(model: Model, layers: Sequence[int]) -> int:
  if not layers:
    raise UsageError(
      'select.criterion=given needs select.layers, the blocks to remove'
    )
  modes.check_layers(layers, model.depth)
  gone = sorted(set(layers) & set(model.removed_layers))
  if gone:
    raise UsageError(f'select.layers: blocks {gone} have no attention')
  modes.check_layers((*layers, *model.removed_layers), model.depth)
  return len(layers)


def enough_images(
  model: Model,
  batches: Batches | None,
  mesh: Mesh | None,
  warn: Callable[[str], None],
  stage: str = 'select',
) -> ImageSet:
  """Reads the images of a search, and warns if there are few.

  Raises:
    DataError: fewer than two, or not of the model's input shape.
  """
  images = read_images(() if batches is None else batches, model, mesh)
  total = images.total
  # A variance needs two.
  if total < 2:
    raise DataError(
      f'{total} image cannot show a deviation; give at least {FEW_IMAGES}'
    )
  if total < FEW_IMAGES:
    warn(
      f'only {total} images: the choice is uncertain below {FEW_IMAGES}; give '
      f'more (in a config: {stage}.num_images and data.holdout_images)'
    )
  return images


def check_resumed(
  start: Selection, resume: Selection, number: int, candidates: Sequence[int]
) -> Selection:
  """Returns the interrupted search `resume` if its settings are `start`'s.

  Raises:
    UsageError: a setting differs (it is named), more layers are chosen, or
      some that are not among `candidates`.
  """
  names = 'criterion target sign trial num_samples resamples inputs seed'
  for name in names.split():
    old, new = getattr(resume, name), getattr(start, name)
    unknown = name in ('inputs', 'seed') and old in ((), None)
    # Earlier versions kept the order in which they were given.
    same = old == new or (name == 'inputs' and sorted(old) == sorted(new))
    if not same and not unknown:
      raise UsageError(
        f'the interrupted search had {name}={old!r}, this one has {new!r}; '
        'delete the old selection to start again'
      )
  if len(resume.order) > number:
    raise UsageError(
      f'the interrupted search chose {len(resume.order)} layers already, more '
      f'than {number}; delete the old selection to start again'
    )
  others = [layer for layer in resume.order if layer not in candidates]
  if others:
    raise UsageError(
      f'the interrupted search chose the layers {others}, which this one does '
      'not choose from; delete the old selection to start again'
    )
  if resume.removed_before == start.removed_before:
    return resume
  # Files of earlier versions do not name the layers that were gone.
  return dataclasses.replace(resume, removed_before=start.removed_before)
