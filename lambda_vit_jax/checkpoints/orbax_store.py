"""Saving and resuming training: the only file that knows Orbax's manager.

A checkpoint is `WORKDIR/checkpoints/STAGE/STEP/` with the items `params`,
`optimizer`, `ema` (where there is an average) and `meta` (JSON: the stage, the
model that the parameters belong to, and where the data stood). Items are
restored one by one, so that reading a model never reads its moments.
"""

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from lambda_vit_jax.checkpoints.quiet_read import UnreadableError, read_quietly
from lambda_vit_jax.core import digests
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import absolute

# Of `meta`. Under `fingerprints` earlier versions kept sums that did not see
# rows change places.
_FINGERPRINTS = 'tree_fingerprints'

_REMEDY = 'remove that folder to resume from the one before'


def orbax() -> Any:
  """The module `orbax.checkpoint`, which is slow to import: when needed."""
  return importlib.import_module('orbax.checkpoint')


def newest_step(directory: epath.Path) -> int | None:
  """The newest complete step in a stage's folder, None where there is none.

  On a file system a step gets its name when all of it is written; on object
  storage it has it from the start, and a marker comes last.
  """
  if not directory.exists():
    return None
  complete = orbax().path.step.is_path_finalized
  steps = [int(p.name) for p in directory.iterdir() if p.name.isdigit()]
  for step in sorted(steps, reverse=True):
    if complete(directory / str(step)):
      return step
  return None


class Checkpointer:
  """Numbered, atomic, asynchronous checkpoints of one stage."""

  def __init__(
    self,
    directory: str | epath.Path,
    keep: int = 2,
    keep_best: bool = False,
    reader: bool = False,
  ):
    """Opens (and makes) the folder; every process of a job has to.

    Args:
      directory: `WORKDIR/checkpoints/STAGE`.
      keep: how many of the latest steps stay.
      keep_best: also keep the step with the highest `accuracy` among those
        that were saved with metrics.
      reader: only to read, by this process alone and for its own devices.

    Raises:
      CheckpointError: the folder cannot be made or read.
    """
    self.directory = absolute(directory)
    managers = orbax().checkpoint_managers
    policies = [managers.LatestN(n=keep)]
    options: dict[str, Any] = {'create': True}
    if keep_best:
      policies.append(
        managers.BestN(
          get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False
        )
      )
      options |= {'best_fn': _accuracy, 'best_mode': 'max'}
    options['preservation_policy'] = managers.AnyPreservationPolicy(policies)
    if reader:
      options = {
        'read_only': True,
        'create': False,
        'best_fn': _accuracy,
        'multiprocessing_options': alone(),
      }
    try:
      self._manager = orbax().CheckpointManager(
        self.directory, options=orbax().CheckpointManagerOptions(**options)
      )
    except OSError as error:
      raise CheckpointError(
        f'{self.directory}: cannot keep checkpoints here ({error}); '
        'choose a --workdir you can write'
      ) from error

  def latest_step(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best metric, or None."""
    return self._manager.best_step()

  def save(
    self,
    step: int,
    items: dict[str, Any],
    meta: dict[str, Any],
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Starts saving; returns while the arrays are still being written.

    Raises:
      CheckpointError: this save or an earlier one failed (a full disk, say);
        the checkpoints from before are still there.
    """
    fingerprints = {
      name: digests.fingerprint(tree) for name, tree in items.items()
    }
    try:
      self._manager.save(
        step,
        args=orbax().args.Composite(
          meta=orbax().args.JsonSave(
            digests.seal(meta | {_FINGERPRINTS: fingerprints})
          ),
          **{
            name: orbax().args.StandardSave(tree)
            for name, tree in items.items()
          },
        ),
        metrics=metrics,
        force=True,
      )
    except (OSError, ValueError) as error:
      raise self._save_failed(step, error) from error

  def wait(self) -> None:
    """Blocks until everything is on disk; raises like `save`."""
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError) as error:
      raise self._save_failed(self._manager.latest_step(), error) from error

  def close(self) -> None:
    """Waits, then lets go of the folder."""
    self.wait()
    self._manager.close()

  def read_meta(self, step: int) -> dict[str, Any]:
    """The JSON item of a step."""
    meta = self._restore(step, meta=orbax().args.JsonRestore())['meta']
    where = str(self.directory / str(step))
    digests.check_seal(meta, where, _REMEDY)
    if not isinstance(meta, dict):
      raise CheckpointError(f'{where}: its metadata is no object; {_REMEDY}')
    return meta

  def restore(
    self, step: int, abstract_items: dict[str, Any]
  ) -> dict[str, Any]:
    """The named items of a step.

    Args:
      step: one that exists.
      abstract_items: per item a tree of `jax.ShapeDtypeStruct` with
        shardings; whatever mesh the checkpoint was written from, it arrives
        on this one.

    Raises:
      CheckpointError: truncated, or of another shape.
    """
    args = {
      name: orbax().args.StandardRestore(tree)
      for name, tree in abstract_items.items()
    }
    found = dict(self._restore(step, **args).items())
    expected = self.read_meta(step).get(_FINGERPRINTS, {})
    for name, tree in found.items():
      if name in expected and expected[name] != digests.fingerprint(tree):
        raise CheckpointError(
          f'{self.directory / str(step)}: {name} is not what was saved (a '
          f'damaged disk or copy?); {_REMEDY}'
        )
    return found

  def _restore(self, step: int, **items: Any) -> Any:
    args = orbax().args.Composite(**items)
    try:
      return read_quietly(lambda: self._manager.restore(step, args=args))
    except UnreadableError as error:
      raise CheckpointError(
        f'{self.directory / str(step)}: not a usable checkpoint ({error}); '
        f'{_REMEDY}'
      ) from error

  def _save_failed(self, step: int | None, error: Exception) -> CheckpointError:
    reason = ' '.join(str(error).split())
    if len(reason) > 200:
      # What happened stands in front, why behind, paths between.
      reason = f'{reason[:60]} … {reason[-140:]}'
    return CheckpointError(
      f'{self.directory}: saving step {step} failed ({reason}); earlier '
      'checkpoints are intact, free some space and run the command again'
    )


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint of another run.

  Attributes:
    directory: the stage's folder.
    step: one that exists there.
  """

  directory: epath.Path
  step: int

  @contextlib.contextmanager
  def open(self) -> Iterator[Checkpointer]:
    """A checkpointer to read it with, every process its own part."""
    checkpointer = Checkpointer(self.directory, reader=True)
    try:
      yield checkpointer
    finally:
      checkpointer.close()


def alone() -> Any:
  """Orbax options for a process that reads or writes without the others."""
  index = jax.process_index()
  return orbax().options.MultiprocessingOptions(
    primary_host=index,
    active_processes={index} if jax.process_count() > 1 else None,
    barrier_sync_key_prefix=f'process{index}',
  )


def _accuracy(metrics: dict[str, float]) -> float:
  return metrics['accuracy']


def abstract_like(tree: Any, shardings: Any) -> Any:
  """Shapes and dtypes of `tree` with the shardings to restore onto."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    shardings,
  )
