"""What a search for layers refuses (METHOD, section 4): names, budgets, images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from lambda_vit_jax.analysis.images import ImageSet, read_images
from lambda_vit_jax.core.errors import DataError, UsageError
from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models import modes
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import criteria
from lambda_vit_jax.selection.budget import resolve_num_layers, with_attention
from lambda_vit_jax.selection.record import Selection

# Below this many images a choice is a guess; below two there is no variance.
FEW_IMAGES = 128
_FEWEST_IMAGES = 2


def check_names(target: str, sign: str) -> None:
  """Refuses what `select` knows no `target` or `sign` by.

  Raises:
    UsageError: names the key and what is known.
  """
  for value, known, key in (
    (target, ('logits', 'features'), 'target'),
    (sign, ('signed', 'absolute'), 'sign'),
  ):
    if value not in known:
      raise UsageError(
        f'select.{key}={value!r} is not known; use {" or ".join(known)}'
      )


def check_budget(
  model: Model, name: str, layers: Sequence[int], **budget: Any
) -> int:
  """How many layers a search by criterion `name` is to remove.

  Args:
    model: its sizes; arrays are not looked at.
    name: of the criterion, without a score.
    layers: of criterion `given`.
    **budget: see `budget.resolve_num_layers`.

  Raises:
    UsageError: an impossible budget.
    ModelError: layers that are out of range or repeated.
  """
  if name == 'given':
    return _check_given(model, layers)
  number = resolve_num_layers(model, **budget)
  if name == 'exhaustive':
    criteria.all_sets(with_attention(model), number)
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
  batches: Iterable[Array | Mapping[str, Array]] | None,
  mesh: Mesh | None,
  warn: Callable[[str], None],
) -> ImageSet:
  """Reads the images of a search, and warns where they are few.

  Raises:
    DataError: fewer than two, or of another shape than the model takes.
  """
  images = read_images(() if batches is None else batches, model, mesh)
  total = images.total
  if total < _FEWEST_IMAGES:
    raise DataError(
      f'{total} image cannot show a deviation; give at least {FEW_IMAGES}'
    )
  if total < FEW_IMAGES:
    warn(
      f'only {total} images: the choice of layers is uncertain below '
      f'{FEW_IMAGES}; raise select.num_images or data.holdout_images'
    )
  return images


def check_resumed(
  start: Selection, resume: Selection, number: int
) -> Selection:
  """The interrupted search `resume`, where it is the same as `start`.

  Raises:
    UsageError: names the setting that differs.
  """
  for name in (
    'criterion',
    'target',
    'sign',
    'trial',
    'num_samples',
    'resamples',
  ):
    old, new = getattr(resume, name), getattr(start, name)
    if old != new:
      raise UsageError(
        f'the interrupted search had {name}={old!r}, this one has {new!r}; '
        'delete the old selection to start again'
      )
  if len(resume.order) > number:
    raise UsageError(
      f'the interrupted search chose {len(resume.order)} layers already, more '
      f'than {number}; delete the old selection to start again'
    )
  return resume
