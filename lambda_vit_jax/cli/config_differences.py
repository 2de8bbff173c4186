"""Compare two configs key by key, ignoring keys that change no result."""

from collections.abc import Mapping
from typing import Any

from lambda_vit_jax.core.text import printable

# With `export.checkpoint=best` they say which checkpoints there are to choose from.
_CHOOSES_BEST = ('checkpoint_every', 'eval_every')
# Keys that may change between two runs in one workdir: none of them alters a
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
  # Adds a model to compare with.
  'evaluate',
  'data.workers',
  'data.cache_dir',
  'select.memory_gib',
)


def flatten(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns values by their full keys, `select.num_layers`; tuples as lists."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = list(value) if isinstance(value, tuple) else value
  return flat


_MISSING = object()
# Characters of a value in a message.
_MOST_SHOWN = 60


def differences(
  saved: Mapping[str, Any],
  config: Mapping[str, Any],
  defaults: Mapping[str, Any] | None = None,
) -> dict[str, str]:
  """Finds the differences that could change a result.

  Args:
    saved: the config that a workdir was made with.
    config: today's config.
    defaults: values for keys that `saved` lacks: an earlier version, which did
      not know the key, did what is the default now, but for `_before`.

  Returns:
    For each key, in order, both values in words:
    `select.num_layers was 5, is 6`.
  """
  old, new = flatten(saved), flatten(config)
  keys = sorted(set(old) | set(new))
  if defaults is not None:
    old = flatten(defaults) | _before(old) | old

  def shown(flat: Mapping[str, Any], key: str) -> str:
    return (
      printable(repr(flat[key]), _MOST_SHOWN) if key in flat else 'not there'
    )

  best = new.get('export.checkpoint') == 'best'
  free = [name for name in _OPERATIONAL if not (best and name in _CHOOSES_BEST)]
  return {
    key: f'{key} was {shown(old, key)}, is {shown(new, key)}'
    for key in keys
    if not any(is_below(key, name) for name in free)
    and old.get(key, _MISSING) != new.get(key, _MISSING)
  }


def _before(saved: Mapping[str, Any]) -> dict[str, Any]:
  """What earlier versions did that is not the default now."""
  polished = saved.get('linearize.polish_steps')
  return {'linearize.polish_crop_area': 1.0} if polished else {}


def is_below(key: str, section: str) -> bool:
  """Returns whether a full key is `section` or inside it."""
  return key == section or key.startswith(f'{section}.')
