"""Save and restore trees with Orbax: training checkpoints and `params/`.

A checkpoint is `WORKDIR/checkpoints/STAGE/STEP/` with the items `params`,
`optimizer`, `ema` (where there is an average) and `meta` (JSON: the stage, a
description of the model, and the position in the data). Items are restored
one by one, so that reading a model never reads its optimizer state.
"""

import contextlib
import errno
import gc
import importlib
import inspect
import operator
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from lambda_vit_jax.checkpoints import description, orbax_folder
from lambda_vit_jax.core import digests
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.files import absolute, check_json
from lambda_vit_jax.core.schema import Bool, Number, Object, Text

# The key in `meta`. Earlier versions wrote `fingerprints`, sums that do not
# change when two rows are swapped; those are ignored.
_FINGERPRINTS = 'tree_fingerprints'

META = Object(
  {'model': description.SCHEMA},
  {
    'has_ema': Bool(),
    'total_steps': Number(0, 1 << 53, whole=True),
    _FINGERPRINTS: Object(others=Text(100)),
  },
)
"""Of the item `meta` of a training checkpoint."""

_REMEDY = 'remove that folder to resume from the one before'

# Seconds that a failed read waits for the others, at most and at least: the
# threads of tensorstore report to a closed event loop after their reads end.
_LONGEST_WAIT = 5.0
_GRACE = 0.05


def orbax() -> Any:
  """Imports `orbax.checkpoint`, which is slow, when it is first needed."""
  return importlib.import_module('orbax.checkpoint')


def newest_step(directory: epath.Path) -> int | None:
  """Returns the newest complete step in a stage's folder, or None.

  On a file system a step gets its name once all of it is written; on object
  storage it has its name from the start, and a marker is written last.
  """
  if not directory.exists():
    return None
  complete = orbax().path.step.is_path_finalized
  steps = [path for path in directory.iterdir() if path.name.isdigit()]
  return max((int(p.name) for p in steps if complete(p)), default=None)


class Checkpointer:
  """Numbered, atomic, asynchronous checkpoints of one stage."""

  def __init__(
    self,
    directory: str | epath.Path,
    keep: int = 2,
    keep_best: bool = False,
    reader: bool = False,
  ):
    """Opens (and makes) the folder; every process of a job has to call this.

    Args:
      directory: `WORKDIR/checkpoints/STAGE`.
      keep: how many of the latest steps to keep.
      keep_best: also keep the step with the highest `accuracy` among those
        that were saved with metrics.
      reader: open read-only, for this process and its own devices alone.

    Raises:
      CheckpointError: the folder cannot be made or read.
    """
    self.directory = absolute(directory)
    managers = orbax().checkpoint_managers
    policies = [managers.LatestN(n=keep)]
    options: dict[str, Any] = {'best_fn': _accuracy} if keep_best else {}
    if keep_best:
      policies.append(
        managers.BestN(
          get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False
        )
      )
    options['preservation_policy'] = managers.AnyPreservationPolicy(policies)
    if reader:
      options = {
        'read_only': True,
        'create': False,
        'best_fn': _accuracy,
        'save_interval_steps': 0,
        'multiprocessing_options': alone(),
      }
    try:
      with orbax_folder.without_notes():
        self._manager = orbax().CheckpointManager(
          self.directory, options=orbax().CheckpointManagerOptions(**options)
        )
    except OSError as error:
      raise CheckpointError(
        f'{self.directory}: cannot keep checkpoints here ({error}); '
        'choose a --workdir you can write'
      ) from error
    except Exception as error:
      # Orbax reads the scores of all steps, and raises what it meets.
      orbax_folder.check_scores(self.directory)
      reason = ' '.join(str(error).split())[:200]
      raise CheckpointError(
        f'{self.directory}: its checkpoints cannot be listed ({reason}); '
        'remove the damaged one'
      ) from error

  def latest_step(self) -> int | None:
    """The newest complete step, or None."""
    return self._manager.latest_step()

  def best_step(self) -> int | None:
    """The step with the best accuracy, or None.

    Raises:
      CheckpointError: the scores of a step hold none.
    """
    return _read(
      self._manager.best_step,
      f'{self.directory}: a step has no score, so the best is not known',
      'remove its folder `metrics`',
    )

  def save(
    self,
    step: int,
    items: dict[str, Any],
    meta: dict[str, Any],
    metrics: dict[str, float] | None = None,
  ) -> None:
    """Starts saving; returns while the arrays are still being written.

    Args:
      step: number of the checkpoint.
      items: trees of arrays, by name.
      meta: JSON values, saved with a fingerprint of each tree.
      metrics: for `keep_best`: `accuracy`.

    Raises:
      CheckpointError: this save or an earlier one failed (a full disk, say);
        earlier checkpoints are intact.
    """
    fingerprints = {name: digests.fingerprint(x) for name, x in items.items()}
    args = {name: orbax().args.StandardSave(x) for name, x in items.items()}
    args['meta'] = orbax().args.JsonSave(
      digests.seal(meta | {_FINGERPRINTS: fingerprints})
    )
    with self._saving(step):
      self._manager.save(
        step, args=orbax().args.Composite(**args), metrics=metrics, force=True
      )

  def wait(self) -> None:
    """Blocks until everything is on disk; raises like `save`."""
    with self._saving():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for pending saves, then closes the folder."""
    self.wait()
    self._manager.close()

  def read_meta(self, step: int) -> dict[str, Any]:
    """Reads the JSON item of a step.

    Raises:
      CheckpointError: unreadable, or changed since it was written.
    """
    meta = self._restore(step, meta=orbax().args.JsonRestore())['meta']
    where = str(self.directory / str(step))
    check_json(meta, f'{where}/meta', META, _REMEDY)
    digests.check_seal(meta, where, _REMEDY)
    return meta

  def restore(
    self, step: int, abstract_items: dict[str, Any]
  ) -> dict[str, Any]:
    """Restores the named items of a step.

    Args:
      step: one that exists.
      abstract_items: per item a tree of `jax.ShapeDtypeStruct` with
        shardings, which may belong to another mesh than the one the
        checkpoint was written from.

    Raises:
      CheckpointError: truncated, changed, or of another shape.
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
    return _read(
      lambda: self._manager.restore(step, args=args),
      f'{self.directory / str(step)}: not a usable checkpoint',
      _REMEDY,
    )

  @contextlib.contextmanager
  def _saving(self, step: int | None = None) -> Iterator[None]:
    try:
      yield
    except (OSError, ValueError) as error:
      step = self._manager.latest_step() if step is None else step
      raise CheckpointError(
        f'{self.directory}: saving step {step} failed ({_reason(error)}); earlier '
        'checkpoints are intact, free some space and run the command again'
      ) from error


def _reason(error: Exception) -> str:
  """Why something could not be written, in a few words."""
  text = ' '.join(str(error).split())
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    if os.strerror(number) in text:
      return os.strerror(number)
  # The failure comes first, the cause last, and paths in between.
  return text if len(text) <= 200 else f'{text[:60]} … {text[-140:]}'


class Source(NamedTuple):
  """A checkpoint of another run to start from: a stage's folder and a step."""

  directory: epath.Path
  step: int

  def open(self) -> 'contextlib.closing[Checkpointer]':
    """Opens a checkpointer with which every process reads its own part."""
    return contextlib.closing(Checkpointer(self.directory, reader=True))


def alone() -> Any:
  """Returns Orbax options to read or write without the other processes."""
  index = jax.process_index()
  return orbax().options.MultiprocessingOptions(
    primary_host=index,
    active_processes={index} if jax.process_count() > 1 else None,
    barrier_sync_key_prefix=f'process{index}',
  )


_accuracy = operator.itemgetter('accuracy')


def abstract_like(tree: Any, shardings: Any) -> Any:
  """Returns shapes and dtypes of `tree` with the shardings to restore onto."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    tree,
    shardings,
  )


def on_first_device(tree: Any) -> Any:
  """Returns `abstract_like` with this process's first device for each leaf."""
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return abstract_like(tree, jax.tree.map(lambda _: device, tree))


def save_tree(path: epath.Path, tree: Any) -> None:
  """Writes a tree of arrays as one Orbax folder, by this process alone.

  Raises:
    OSError: it cannot be written: the disk is full, say.
  """
  # As numpy: Orbax takes no `jax.Array` of one process in a job of several.
  arrays = jax.tree.map(np.asarray, tree)
  try:
    with orbax().StandardCheckpointer(
      multiprocessing_options=alone()
    ) as checkpointer:
      checkpointer.save(absolute(path), arrays)
  except ValueError as error:
    # As which tensorstore reports what the system says.
    raise OSError(_reason(error)) from error


def restore_tree(path: epath.Path, abstract: Any) -> Any:
  """Reads what `save_tree` wrote, onto this process's first device.

  Args:
    path: the folder.
    abstract: a tree with the shapes and dtypes of the arrays.

  Raises:
    CheckpointError: damaged, or of other shapes.
  """
  path = absolute(path)
  wanted = on_first_device(abstract)

  def restore() -> Any:
    with orbax().StandardCheckpointer(
      multiprocessing_options=alone()
    ) as checkpointer:
      return checkpointer.restore(path, wanted)

  return _read(
    restore,
    f'{path}: not the parameters that model.json describes',
    'export the model again',
  )


# The hook below belongs to the process: one read at a time replaces it.
_hook_lock = threading.RLock()


def _read(read: Callable[[], Any], problem: str, remedy: str) -> Any:
  """Calls `read`; a failure of Orbax becomes `problem`, its reason and `remedy`.

  Orbax reads arrays concurrently. A read that fails leaves others behind, in
  reference cycles and in tensorstore's threads, and each would print a
  traceback after our one line. A hook silences them until all have ended.
  """
  with _hook_lock:
    hook = sys.unraisablehook

    def report(unraisable: Any) -> None:
      loop_closed = str(unraisable.exc_value) == 'Event loop is closed'
      if not inspect.iscoroutine(unraisable.object) and not loop_closed:
        hook(unraisable)

    sys.unraisablehook = report
    try:
      try:
        return read()
      except Exception as error:
        # Tensorstore reports damaged files as a bare Exception.
        reason = ' '.join(str(error).split())[:200]
      # Only after the handler does nothing hold the traceback's frames.
      _wait_for_reads()
    finally:
      sys.unraisablehook = hook
  raise CheckpointError(f'{problem} ({reason}); {remedy}')


def _wait_for_reads() -> None:
  """Collects the suspended coroutines of Orbax, until there are none."""
  end = time.monotonic() + _LONGEST_WAIT
  gc.collect()
  while time.monotonic() < end and any(
    inspect.iscoroutine(found) and 'orbax' in found.cr_code.co_filename
    for found in gc.get_objects()
  ):
    time.sleep(_GRACE)
    gc.collect()
  time.sleep(_GRACE)
