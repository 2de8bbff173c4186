"""Send metrics to TensorBoard and Weights & Biases, besides `metrics.jsonl`."""

import importlib
import time
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from lambda_vit_jax.core.errors import UsageError


class Tracker(Protocol):
  """Displays metrics while a run is in progress."""

  def begin(self, stage: str, step: int) -> None:
    """Starts or resumes a stage; discards what it logged after `step`."""

  def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Logs the metrics of a step."""

  def close(self) -> None:
    """Finishes: nothing will be logged any more."""


class TensorBoardTracker:
  """Writes event files to `WORKDIR/tensorboard/STAGE/`, one run per stage.

  Every line is on disk when `write` returns. A resumed stage starts a new file
  whose first event makes TensorBoard drop the steps that are repeated.
  """

  def __init__(self, workdir: str | epath.Path):
    """Imports tensorboardX.

    Raises:
      UsageError: it is not installed.
    """
    try:
      self._files = importlib.import_module('tensorboardX.event_file_writer')
      self._records = importlib.import_module('tensorboardX.record_writer')
      self._protos = importlib.import_module('tensorboardX.proto.event_pb2')
    except ImportError as error:
      raise UsageError(
        'config.metrics.tensorboard=True needs tensorboardX: pip install '
        "'lambda_vit_jax[tensorboard]'"
      ) from error
    self._root = epath.Path(workdir) / 'tensorboard'
    scheme, separator, _ = str(self._root).partition('://')
    if separator:
      self._records.register_writer_factory(scheme, _RemoteFile)
    self._writers: dict[str, Any] = {}

  def begin(self, stage: str, step: int) -> None:
    """Starts a file for what follows `step`."""
    if stage in self._writers:
      self._writers[stage].close()
    folder = self._root / stage
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads files in the order of their names, which have the time
    # in seconds; the number separates files of the same second.
    number = len(list(folder.glob('events.out.tfevents.*')))
    self._writers[stage] = self._files.EventsWriter(
      str(folder / 'events'), f'.{number:04d}'
    )
    event = self._protos.Event(wall_time=time.time(), step=step + 1)
    event.session_log.status = self._protos.SessionLog.START
    self._add(stage, event)

  def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Adds one event with all of `values`."""
    if stage not in self._writers:
      self.begin(stage, step - 1)
    event = self._protos.Event(wall_time=time.time(), step=step)
    for tag, value in values.items():
      event.summary.value.add(tag=tag, simple_value=value)
    self._add(stage, event)

  def _add(self, stage: str, event: Any) -> None:
    self._writers[stage].write_event(event)
    self._writers[stage].flush()

  def close(self) -> None:
    """Closes all files."""
    for writer in self._writers.values():
      writer.close()
    self._writers.clear()


class _RemoteFile:
  """An event file on remote storage, which cannot append: rewritten whole."""

  def __init__(self, path: epath.Path):
    self._path = path
    self._data = bytearray()

  @classmethod
  def open(cls, path: str) -> '_RemoteFile':
    return cls(epath.Path(path))

  def write(self, data: bytes) -> None:
    self._data += data

  def flush(self) -> None:
    self._path.write_bytes(bytes(self._data))

  def close(self) -> None:
    self.flush()


class WandbTracker:
  """Logs each stage as a Weights & Biases run; a workdir is one group.

  The group's name is stored in the workdir, so that a resumed stage continues
  its run. W&B accepts each step once: of repeated steps it keeps the first
  values, which are the same. `WANDB_MODE=offline` works without a network.
  """

  def __init__(
    self, project: str, workdir: str | epath.Path, config: Mapping[str, Any]
  ):
    """Imports wandb.

    Raises:
      UsageError: it is not installed.
    """
    try:
      self._wandb = importlib.import_module('wandb')
    except ImportError as error:
      raise UsageError(
        f'config.metrics.wandb={project!r} needs Weights & Biases: pip '
        "install 'lambda_vit_jax[wandb]'"
      ) from error
    self._project = project
    self._workdir = epath.Path(workdir)
    self._config = dict(config)
    self._run: Any = None
    self._stage = ''

  def _group(self) -> str:
    """The name of the workdir's group, created at first use."""
    path = self._workdir / 'wandb_group.txt'
    if not path.exists():
      path.write_text(f'{self._workdir.name}-{uuid.uuid4().hex[:8]}\n')
    return path.read_text().strip()

  def begin(self, stage: str, step: int) -> None:
    """Opens the stage's run, or continues it."""
    del step
    self.close()
    group = self._group()
    # W&B writes files of its own, which need a local folder.
    remote = '://' in str(self._workdir)
    self._run = self._wandb.init(
      project=self._project,
      group=group,
      name=f'{group}-{stage}',
      id=f'{group}-{stage}',
      resume='allow',
      config=self._config,
      dir=None if remote else str(self._workdir),
    )
    self._stage = stage

  def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Logs the values at `step`."""
    if self._run is None or stage != self._stage:
      self.begin(stage, step - 1)
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    """Finishes the open run."""
    if self._run is not None:
      self._run.finish()
      self._run = None


def make_trackers(
  config: Mapping[str, Any], workdir: str | epath.Path
) -> tuple[Tracker, ...]:
  """Returns the trackers that `config.metrics` asks for.

  Args:
    config: the whole config, which W&B displays.
    workdir: of the run.

  Raises:
    UsageError: a wrong value, or a package that is not installed.
  """
  settings = config['metrics']
  tensorboard, project = settings['tensorboard'], settings['wandb']
  if not isinstance(tensorboard, bool):
    raise UsageError(
      f'config.metrics.tensorboard={tensorboard!r} must be True or False'
    )
  if not isinstance(project, str):
    raise UsageError(
      f'config.metrics.wandb={project!r} must be the name of a project'
    )
  trackers: list[Tracker] = []
  if tensorboard:
    trackers.append(TensorBoardTracker(workdir))
  if project:
    trackers.append(WandbTracker(project, workdir, config))
  return tuple(trackers)
