"""From a config's free-form values to checked ones."""

import math
import re
from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.core.errors import UsageError

BUDGETS = ('num_layers', 'removal_ratio', 'target_speedup')
"""Keys of `select`, exactly one of which says how many layers go."""

METHODS = ('dilute', 'linearize')
"""Values of `method`."""

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


def method(config: Mapping[str, Any]) -> str:
  """The stage that makes the pruned model.

  Raises:
    UsageError: not one of `METHODS`.
  """
  name = config['method']
  if name not in METHODS:
    raise UsageError(
      f'config.method={name!r} is not known; use {" or ".join(METHODS)}'
    )
  return str(name)


def is_warm(config: Mapping[str, Any]) -> bool:
  """Whether dilution leads by way of fitted maps.

  Raises:
    UsageError: `dilute.start` is neither `attention` nor `linear`.
  """
  start = config['dilute']['start']
  if start not in ('attention', 'linear'):
    raise UsageError(
      f'config.dilute.start={start!r} is not known; use attention or linear'
    )
  return bool(start == 'linear')


def compute_dtype(model: Mapping[str, Any]) -> str:
  """The section's `dtype`.

  Raises:
    UsageError: neither `float32` nor `bfloat16`.
  """
  dtype = model['dtype']
  if dtype not in ('float32', 'bfloat16'):
    raise UsageError(
      f'config.model.dtype={dtype!r}; known are float32 and bfloat16'
    )
  return str(dtype)


def crop_ratio(model: Mapping[str, Any]) -> float | None:
  """The section's `crop_ratio`, None for the variant's own.

  Raises:
    UsageError: not in (0, 1].
  """
  if model['crop_ratio'] is None:
    return None
  ratio = number(model['crop_ratio'], 'model.crop_ratio')
  if not 0 < ratio <= 1:
    raise UsageError(f'config.model.crop_ratio={ratio} must lie in (0, 1]')
  return ratio


def probe_steps(select: Mapping[str, Any]) -> int:
  """The section's `probe_steps`.

  Raises:
    UsageError: below 2.
  """
  steps = integer(select['probe_steps'], 'select.probe_steps')
  if steps < 2:
    raise UsageError(
      f'config.select.probe_steps={steps}: a short dilution needs 2 or more'
    )
  return steps


def benchmark_sizes(
  benchmark: Mapping[str, Any],
) -> tuple[int, tuple[int, ...]]:
  """Images per call, and those of the sweep.

  Raises:
    UsageError: not whole numbers; names the key.
  """
  given = benchmark['batch_sizes']
  given = (given,) if isinstance(given, int) else given
  if not isinstance(given, list | tuple):
    raise UsageError(
      f'config.benchmark.batch_sizes={given!r}: give a list, (1, 4, 16)'
    )
  return (
    integer(benchmark['batch_size'], 'benchmark.batch_size', 1),
    tuple(integer(size, 'benchmark.batch_sizes', least=1) for size in given),
  )


def optional_count(value: Any, key: str) -> int | None:
  """An int of at least 1, or None for all.

  Raises:
    UsageError: names the key.
  """
  return None if value is None else integer(value, key, least=1)


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Values by their full keys, `select.num_layers`; tuples as lists."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


_MISSING = object()


def differences(
  saved: Mapping[str, Any],
  config: Mapping[str, Any],
  defaults: Mapping[str, Any] | None = None,
) -> dict[str, str]:
  """What differs in a way that could change a result.

  Args:
    saved: the config that a workdir was made with.
    config: today's.
    defaults: what stands for a key that `saved` lacks: an earlier version,
      which did not know the key, did what is the default now.

  Returns:
    By key, in order, both values in words: `select.num_layers was 5, is 6`.
  """
  old, new = flatten(saved), flatten(config)
  keys = sorted(set(old) | set(new))
  old = flatten(defaults or {}) | old
  return {
    key: f'{key} was {_shown(old, key)}, is {_shown(new, key)}'
    for key in keys
    if not any(is_below(key, name) for name in _OPERATIONAL)
    and old.get(key, _MISSING) != new.get(key, _MISSING)
  }


def differing_keys(
  saved: Mapping[str, Any],
  config: Mapping[str, Any],
  defaults: Mapping[str, Any] | None = None,
) -> list[str]:
  """The keys of `differences`."""
  return list(differences(saved, config, defaults))


def is_below(key: str, section: str) -> bool:
  """Whether a full key is `section`, or stands in it."""
  return key == section or key.startswith(f'{section}.')


def _shown(flat: Mapping[str, Any], key: str) -> str:
  return repr(flat[key]) if key in flat else 'not there'
