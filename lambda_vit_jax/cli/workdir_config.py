"""`config.json`: which values a workdir was made with, and which still bind.

A value binds once there is a result that depends on it. Until then today's
value replaces it.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.cli import (
  config_differences,
  result_files,
  stage_table,
  workdir_lock,
)
from lambda_vit_jax.cli.workdir_lock import WorkdirLock
from lambda_vit_jax.configs import common
from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import LambdaVitError, UsageError

_SEARCH = stage_table.results('select')
_LINEAR = stage_table.results('linearize')
_COMPRESSED = stage_table.results('compress')
_DILUTED = stage_table.results('dilute')
# Trained with the section `dilute`, from the dense model.
_BASELINE = stage_table.results('baseline')
# `benchmark` copies the scores of `evaluate`.
_SCORES = stage_table.results('evaluate', 'benchmark')
_LAST = stage_table.results('export', 'evaluate', 'benchmark')
# The report is made anew each time.
_ALL = stage_table.results(*(s for s in stage_table.STAGES if s != 'report'))


def check_apart(workdir: epath.Path, source: str) -> None:
  """Refuses to write a run's files among the images that it reads.

  Args:
    workdir: absolute.
    source: the value of `data.source`.

  Raises:
    UsageError: they are one folder.
  """
  kind, _, folder = source.partition(':')
  local = kind.endswith('_folder') and folder and '://' not in folder
  if local and files.user_path(folder).resolve() == workdir.resolve():
    raise UsageError(
      f'--workdir={workdir}: is the folder of the images; name another one'
    )


def claim(
  workdir: epath.Path,
  config: Mapping[str, Any],
  lock: WorkdirLock | None = None,
  replace: bool = True,
) -> bool:
  """Stores the config in a workdir, or checks it; leading process only.

  Args:
    workdir: a folder, or where to make one.
    config: with JSON values.
    lock: taken first, if given.
    replace: store today's values where none of those that differ binds.

  Returns:
    Whether the workdir had no config before.

  Raises:
    LambdaVitError: the workdir is a file, cannot be written, or another job
      uses it.
    UsageError: results in it were made with other values; names them.
  """
  path = workdir / stage_table.CONFIG
  if workdir.exists() and not workdir.is_dir():
    raise LambdaVitError(f'--workdir={workdir}: is a file; choose a folder')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if lock is not None:
      lock.acquire()
    saved = result_files.read(workdir, stage_table.CONFIG)
    if saved is None:
      files.write_json(path, config)
      return True
    differing = config_differences.differences(
      saved, config, common.base().to_dict()
    )
    binding = [
      text
      for key, text in differing.items()
      if any(_is_there(workdir, name) for name in _readers(key, saved))
    ]
    if binding:
      raise UsageError(
        f'--workdir={workdir}: made with other values: {"; ".join(binding)}; '
        'use a new --workdir, or the old values'
      )
    if differing and replace:
      files.write_json(path, config)
  except OSError as error:
    raise LambdaVitError(
      f'--workdir={workdir}: not writable ({error.strerror or error}); '
      'choose another'
    ) from error
  return False


def withdraw(workdir: epath.Path) -> None:
  """Undoes the first `claim` of a workdir that still holds nothing else."""
  names = {path.name for path in workdir.iterdir()}
  if names - {workdir_lock.NAME} == {stage_table.CONFIG}:
    (workdir / stage_table.CONFIG).unlink()


def _is_there(workdir: epath.Path, name: str) -> bool:
  path = workdir / name
  if name.startswith('checkpoints/'):
    return orbax_store.newest_step(path) is not None
  return path.exists()


def _readers(key: str, saved: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the results that a value affects.

  Args:
    key: its full key.
    saved: the config that results were made with, which decides which
      stages were run.
  """
  method = saved.get('method')
  linear = method == 'linearize'
  dilute = saved.get('dilute', {})
  warm = 'linear' in (dilute.get('start'), dilute.get('towards'))
  towards = dilute.get('towards') if method == 'dilute' else None
  compressed = method == 'compress' or towards == 'compressed'
  # Criterion `probe` dilutes, and `output` fits maps.
  criterion = saved.get('select', {}).get('criterion')
  # What later stages read of a search for layers, and of training.
  last = () if method == 'compress' else _LAST
  of_selection = (*_SEARCH, *_LINEAR, *_DILUTED, *last)
  if towards == 'compressed':
    of_selection = (*_SEARCH, *_LINEAR)
  by_section = {
    'analyze': stage_table.results('analyze'),
    'select': of_selection,
    **({'linearize.inputs': of_selection} if criterion == 'output' else {}),
    'linearize': (
      *_LINEAR,
      *(_DILUTED if warm else ()),
      *(_LAST if linear or warm else ()),
    ),
    'compress': (
      *_COMPRESSED,
      *(_DILUTED if towards == 'compressed' else ()),
      *(_LAST if compressed else ()),
    ),
    'dilute': (
      *(_SEARCH if criterion == 'probe' else ()),
      *_DILUTED,
      *_BASELINE,
      *(() if linear else last),
    ),
    'model.merge': (*_DILUTED, *_LAST),
    'model.merge_start': (*_DILUTED, *_LAST),
    'method': _LAST,
    # Where it goes changes nothing of what it is.
    'export.hub': (),
    'export': _LAST,
    'segment.evaluation': _SCORES,
    'segment.stride': _SCORES,
    'segment.pictures': _SCORES,
  }
  for section, names in by_section.items():
    if config_differences.is_below(key, section):
      return names
  return _ALL
