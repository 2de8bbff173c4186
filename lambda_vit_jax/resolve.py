"""From a config's free-form values to checked ones."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lambda_vit_jax.errors import UsageError

BUDGETS = ('num_layers', 'removal_ratio', 'target_speedup')
"""Keys of `select`, exactly one of which says how many layers go."""

# What may change between two runs in one workdir: nothing here alters a
# result that an earlier stage wrote.
_OPERATIONAL = (
  'log_every',
  'checkpoint_every',
  'keep_checkpoints',
  'eval_every',
  'profile',
  # Read only where the workdir has no checkpoint of the stage.
  'resume_from',
  'mesh',
  'metrics',
  'benchmark',
  'data.workers',
  'data.cache_dir',
  'select.memory_gib',
)

# At most as many digits as an int64 holds.
_INTEGER = re.compile(r'-?[0-9]{1,18}')
_EPOCHS = re.compile(r'([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*ep')


def duration(value: Any, steps_per_epoch: int, key: str) -> int:
  """A number of steps from `1000`, `'1000'` or `'30ep'`.

  Raises:
    UsageError: anything else; names the key.
  """
  text = str(value).strip()
  epochs = _EPOCHS.fullmatch(text)
  if epochs:
    return round(float(epochs[1]) * steps_per_epoch)
  if (
    isinstance(value, bool)
    or not _INTEGER.fullmatch(text)
    or text.startswith('-')
  ):
    raise UsageError(
      f'config.{key}={value!r} is no duration; give steps (1000) or epochs '
      "('30ep')"
    )
  return int(text)


def integer(value: Any, key: str, least: int = 0) -> int:
  """An int of at least `least`, also from its text.

  Raises:
    UsageError: names the key.
  """
  text = str(value).strip()
  if isinstance(value, bool) or not _INTEGER.fullmatch(text):
    raise UsageError(f'config.{key}={value!r} is not a whole number')
  if int(text) < least:
    raise UsageError(f'config.{key}={text} must be at least {least}')
  return int(text)


def number(value: Any, key: str) -> float:
  """A float, also from its text.

  Raises:
    UsageError: names the key.
  """
  try:
    found = float(value)
  except (TypeError, ValueError, OverflowError):
    found = math.nan
  if not math.isfinite(found):
    raise UsageError(f'config.{key}={value!r} is not a number')
  return found


def peak_learning_rate(
  settings: Mapping[str, Any], batch_size: int, section: str
) -> float:
  """`learning_rate`, times batch_size / 512 where `scale_by_batch` says so.

  Raises:
    UsageError: not a number.
  """
  peak = number(settings['learning_rate'], f'{section}.learning_rate')
  return peak * batch_size / 512 if settings['scale_by_batch'] else peak


def image_size(value: Any) -> int | tuple[int, int] | None:
  """`None`, `224`, `'224'`, `(224, 160)` or `'224x160'`.

  Raises:
    UsageError: anything else.
  """
  if value is None:
    return None
  parts = re.split(r'[x,]', value) if isinstance(value, str) else value
  parts = list(parts) if isinstance(parts, list | tuple) else [parts]
  sizes = tuple(integer(part, 'model.image_size', least=1) for part in parts)
  if len(sizes) not in (1, 2):
    raise UsageError(
      f'config.model.image_size={value!r}: give one side or (height, width)'
    )
  return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def budget(select: Mapping[str, Any]) -> tuple[str, float]:
  """Which of `num_layers`, `removal_ratio`, `target_speedup` is in force.

  Raises:
    UsageError: none or several are set.
  """
  given = [key for key in BUDGETS if select[key] is not None]
  if len(given) != 1:
    found = ' and '.join(given) if given else 'none'
    raise UsageError(
      f'config.select: {found} set; exactly one of {", ".join(BUDGETS)} must be'
    )
  key = given[0]
  if key == 'num_layers':
    return key, integer(select[key], f'select.{key}')
  return key, number(select[key], f'select.{key}')


def _flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


def differing_keys(
  saved: Mapping[str, Any],
  config: Mapping[str, Any],
  defaults: Mapping[str, Any] | None = None,
) -> list[str]:
  """Keys whose values differ in a way that could change a result.

  Args:
    saved: the config that a workdir was made with.
    config: today's.
    defaults: what stands for a key that `saved` lacks: an earlier version,
      which did not know the key, did what is the default now.
  """

  def operational(key: str) -> bool:
    return any(
      key == name or key.startswith(f'{name}.') for name in _OPERATIONAL
    )

  old, new = _flatten(saved), _flatten(config)
  keys: Iterable[str] = sorted(set(old) | set(new))
  old = _flatten(defaults or {}) | old
  missing = object()
  return [
    key
    for key in keys
    if not operational(key) and old.get(key, missing) != new.get(key, missing)
  ]
