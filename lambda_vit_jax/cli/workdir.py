"""`Run`: a workdir with its settings, data set, mesh and stored models."""

import functools
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath

from lambda_vit_jax.analysis.memory import default_gib
from lambda_vit_jax.checkpoints import load, orbax_store
from lambda_vit_jax.cli import (
  config_check,
  config_differences,
  result_files,
  shared_labels,
  task,
  workdir_config,
)
from lambda_vit_jax.cli.settings import Settings
from lambda_vit_jax.cli.workdir_lock import WorkdirLock
from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import LambdaVitError, UsageError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.typing import AttentionMode
from lambda_vit_jax.data import pipeline
from lambda_vit_jax.data.augment import Recipe
from lambda_vit_jax.data.sources.dataset import Dataset, split_holdout
from lambda_vit_jax.models import merge_schedule
from lambda_vit_jax.models.build import for_backend
from lambda_vit_jax.models.model import Model, create_model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.runtime import interrupts, processes, sharding
from lambda_vit_jax.runtime.progress import Reporter
from lambda_vit_jax.training.metrics import MetricsWriter
from lambda_vit_jax.training.trackers import make_trackers


def finished_step(workdir: str | epath.Path, stage: str) -> int | None:
  """The newest checkpointed step of a stage, None where there is none."""
  return orbax_store.newest_step(epath.Path(workdir) / 'checkpoints' / stage)


class Run:
  """One workdir with its settings; everything heavy is made when first used.

  Attributes:
    config: as given, and as `config.json` stores it.
    settings: the same values, read and checked.
    reporter: shows lines and progress to a person.
    workdir: absolute.
    leader: whether this process writes the job's files.
    metrics: writes `metrics.jsonl`, and to trackers.
  """

  def __init__(
    self,
    config: Mapping[str, Any],
    workdir: str,
    reporter: Reporter,
    lock: bool = False,
  ):
    """Opens a workdir, or makes it.

    Args:
      config: with the values of flags.
      workdir: may be remote.
      reporter: for this process.
      lock: keep other jobs out until `close`. Without it, one may be running:
        its config stays.

    Raises:
      LambdaVitError: the workdir is a file, cannot be written, or another job
        uses it.
      UsageError: a value that no stage would take, or another one than results
        in the workdir were made with; names the keys.
      ModelError: sizes that do not make a model.
    """
    # Grain's worker processes read absl's global flags. Ours are a set of
    # their own (`cli/flags.py`), so the global ones are never parsed.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    self.config = config
    self.settings = Settings.from_config(config)
    self.reporter = reporter
    self.workdir = files.absolute(workdir)
    self.leader = processes.is_leader()
    config_check.check(self.settings)
    workdir_config.check_apart(self.workdir, self.settings.data.source)
    # As `config.json` stores it: tuples are lists.
    stored = json.loads(json.dumps(config))
    self._lock = WorkdirLock(self.workdir) if lock else None
    try:
      self._new = processes.from_leader(
        lambda: workdir_config.claim(
          self.workdir, stored, self._lock, replace=lock
        )
      )
      self._check_shared(stored)
      trackers = make_trackers(stored, self.workdir) if self.leader else ()
    except BaseException:
      self._unlock()
      raise
    self.metrics = MetricsWriter(self.workdir, self.leader, trackers)

  def close(self) -> None:
    """Closes the trackers and lets other jobs in."""
    try:
      self.metrics.close()
    finally:
      self._unlock()

  def _unlock(self) -> None:
    if self._lock is not None:
      self._lock.release()

  def withdraw(self) -> None:
    """Removes the config of a failed command, if that is all there is."""
    if self.leader and self._new:
      workdir_config.withdraw(self.workdir)

  def _check_shared(self, config: dict[str, Any]) -> None:
    """Checks that every process sees a file that the leader has just written.

    Raises:
      UsageError: the processes were given different configs.
      LambdaVitError: the workdir is not the same folder for all.
    """
    if jax.process_count() == 1:
      return
    configs = processes.gather(config)
    keys = sorted(
      set().union(
        *(config_differences.differences(configs[0], c) for c in configs)
      )
    )
    if keys:
      raise UsageError(
        f'the processes were given different values of {", ".join(keys)}; '
        'start all with the same flags'
      )
    token = processes.from_leader(lambda: uuid.uuid4().hex)
    path = self.path(f'.job-{token}')
    if self.leader:
      path.write_text(token)
    processes.barrier()
    seen = processes.gather(path.exists())
    if self.leader:
      path.unlink()
    if not all(seen):
      blind = [index for index, sees in enumerate(seen) if not sees]
      raise LambdaVitError(
        f'--workdir={self.workdir}: processes {blind} do not see what process '
        '0 writes there; it must lie on storage that all share (NFS, gs://…)'
      )

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """All devices of all processes."""
    return sharding.make_mesh(self.settings.mesh.fsdp)

  @functools.cached_property
  def batch_size(self) -> int:
    """Images of one step over all processes."""
    sharding.check_batch_size(self.settings.batch_size, self.mesh)
    return self.settings.batch_size

  @functools.cached_property
  def memory_gib(self) -> float | None:
    """The config's memory for activations, else the smallest device's."""
    given = self.settings.select.memory_gib
    if given is not None or jax.process_count() == 1:
      return given
    return min(processes.gather(default_gib()))

  @functools.cached_property
  def dataset(self) -> Dataset:
    """The data set, opened."""
    return task.open_dataset(self.settings)

  @functools.cached_property
  def recipe(self) -> Recipe:
    """How stored records become examples, in training and in evaluation."""
    return task.recipe(self.settings, self.dataset)

  @functools.cached_property
  def _split(self) -> tuple[np.ndarray, np.ndarray]:
    labels = self.dataset.train.labels
    used = np.arange(len(labels))
    limit = self.settings.data.train_images
    if limit is not None:
      if limit > len(labels):
        raise UsageError(
          f'config.data.train_images={limit}: there are only {len(labels)}'
        )
      used = split_holdout(labels, limit)[1]
    train, held = split_holdout(labels[used], self.settings.data.holdout_images)
    return used[train], used[held]

  def share_labels(self) -> None:
    """Lets each process of a job read a part of the training labels only.

    Every process must call this, before one of them asks which images train.
    """
    if jax.process_count() > 1:
      shared_labels.share(self.dataset.train)

  @property
  def steps_per_epoch(self) -> int:
    """Optimisation steps that read as many images as there are to train on."""
    return max(1, len(self.train_indices) // self.batch_size)

  def train_batches(
    self, preprocessing: Preprocessing, start_step: int
  ) -> Iterator[dict[str, np.ndarray]]:
    """This process's endless training batches from a step on."""
    return pipeline.train_batches(
      self.dataset.train,
      self.train_indices,
      preprocessing,
      self.recipe,
      self._loading(),
      seed=self.settings.seed,
      start_step=start_step,
      repeats=self.settings.data.repeats,
    )

  def _loading(self, alone: bool = False) -> pipeline.Loading:
    """How batches are read; `alone`, by this process without the others."""
    data = self.settings.data
    return pipeline.Loading(
      batch_size=self.batch_size,
      process_index=0 if alone else jax.process_index(),
      process_count=1 if alone else jax.process_count(),
      workers=data.workers,
      skip_undecodable=data.skip_undecodable,
    )

  def eval_batches(
    self,
    preprocessing: Preprocessing,
    limit: int | None = None,
    alone: bool = False,
  ) -> Iterator[dict[str, np.ndarray]]:
    """Every test image once, padded and masked; see `holdout_batches`.

    With a limit, a fixed draw of so many: folders are read class by class, and
    the labels of a test set may be costly to read.
    """
    test = self.dataset.test
    indices = np.arange(len(test))
    if limit is not None:
      # RandomState's stream never changes.
      drawn = np.random.RandomState(0).permutation(indices)[:limit]
      indices = np.sort(drawn)
    return self._batches(test, indices, preprocessing, alone)

  @property
  def train_indices(self) -> np.ndarray:
    """Training images that the network learns from."""
    return self._split[0]

  def holdout_indices(self, limit: int | None = None) -> np.ndarray:
    """Training images kept out of training, for selection.

    Args:
      limit: only so many; every class has its share of them.
    """
    held = self._split[1]
    if limit is None or limit >= len(held):
      return held
    return held[split_holdout(self.dataset.train.labels[held], limit)[1]]

  def holdout_batches(
    self,
    preprocessing: Preprocessing,
    limit: int | None = None,
    alone: bool = False,
  ) -> Iterator[dict[str, np.ndarray]]:
    """The held-out training images in the evaluation transform.

    Args:
      preprocessing: the model's.
      limit: only this many images.
      alone: return all of them in this process, not only its part.
    """
    return self._batches(
      self.dataset.train, self.holdout_indices(limit), preprocessing, alone
    )

  def _batches(
    self,
    split: Any,
    indices: np.ndarray,
    preprocessing: Preprocessing,
    alone: bool = False,
  ) -> Iterator[dict[str, np.ndarray]]:
    loading = self._loading(alone)
    for batch in pipeline.eval_batches(
      split, indices, preprocessing, loading, recipe=self.recipe
    ):
      interrupts.check()
      yield batch

  def load(self, stage: str, weights: Literal['raw', 'ema'] = 'ema') -> Model:
    """Loads the result of a training stage, in the compute dtype.

    Of `pretrain` that is the last checkpoint, of `dilute` and `baseline` the
    one of `export.checkpoint`.

    Args:
      stage: its name.
      weights: as in `load_stage`.

    Raises:
      CheckpointError: the stage is not finished, or see `load_stage`.
    """
    model = load.load_stage(
      self.workdir,
      stage,
      best=self._takes_best(stage),
      finished=True,
      weights=weights,
    )
    return self.with_options(model)

  def trained_steps(self, stage: str) -> int:
    """Optimisation steps of the checkpoint that `load` loads; raises alike."""
    return load.stage_step(self.workdir, stage, self._takes_best(stage))

  def _takes_best(self, stage: str) -> bool:
    # What selection reads and dilution starts from is the last one.
    return stage != 'pretrain' and self.settings.export.checkpoint == 'best'

  def with_options(self, model: Model) -> Model:
    """`model` with the config's dtype and rematerialisation."""
    settings = self.settings.model
    dtype = jnp.dtype(settings.dtype)
    module = model.module.clone(dtype=dtype, remat=settings.remat)
    return model.replace(module=for_backend(module))

  def merge_schedule(
    self, module: ViT, modes: Sequence[AttentionMode] | None
  ) -> tuple[int, ...]:
    """The config's token merging, for `module` with its blocks in `modes`.

    The dense model has none: what `pretrain` trains, and what selection and
    fits read. `modes` is None where the layers to remove are not known yet.

    Raises:
      ModelError: not a schedule, or more than the tokens allow.
    """
    settings = self.settings.model
    rows, columns = module.grid_size
    return merge_schedule.merge_schedule(
      settings.merge, module.depth, rows * columns, settings.merge_start, modes
    )

  def fresh_model(self) -> Model:
    """The config's variant, not yet trained."""
    settings = self.settings.model
    model = create_model(
      settings.variant,
      num_classes=self.dataset.num_classes,
      image_size=settings.image_size,
      seed=self.settings.seed,
    )
    return task.with_outputs(self.settings, model, self.dataset)

  def write_json(self, name: str, value: Any) -> None:
    """Writes a file of this run; the leading process does."""
    if self.leader:
      files.write_json(self.path(name), value)

  def read_json(self, name: str) -> dict[str, Any] | None:
    """What the leading process reads, None where there is no such file.

    Raises:
      CheckpointError: malformed.
    """
    return processes.from_leader(lambda: result_files.read(self.workdir, name))

  def path(self, name: str) -> epath.Path:
    """A file or folder of this run."""
    return self.workdir / name
