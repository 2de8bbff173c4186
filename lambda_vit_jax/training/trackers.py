"""Send metrics to TensorBoard and Weights & Biases, besides `metrics.jsonl`."""

import importlib
import time
import types
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

from lambda_vit_jax.core import files
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.growing_file import GrowingFile
from lambda_vit_jax.core.text import printable


def _optional_modules(need: str, extra: str, *names: str) -> list[Any]:
  try:
    return [importlib.import_module(name) for name in names]
  except ImportError as error:
    raise UsageError(
      f"config.metrics.{need}: pip install 'lambda_vit_jax[{extra}]'"
    ) from error


class TensorBoardTracker:
  """Writes event files to `WORKDIR/tensorboard/STAGE/`, one run per stage.

  Every line is on disk when `write` returns (on object storage: after `save`,
  or a few seconds). A resumed stage starts a new file
  whose first event makes TensorBoard drop the steps that are repeated.
  """

  def __init__(self, workdir: str | epath.Path):
    """Imports tensorboardX; raises UsageError if it is not installed."""
    self._files, self._records, self._protos = _optional_modules(
      'tensorboard=True needs tensorboardX',
      'tensorboard',
      'tensorboardX.event_file_writer',
      'tensorboardX.record_writer',
      'tensorboardX.proto.event_pb2',
    )
    self._root = epath.Path(workdir) / 'tensorboard'
    if files.is_remote(self._root):
      scheme = str(self._root).partition('://')[0]
      factory = types.SimpleNamespace(open=self._open)
      self._records.register_writer_factory(scheme, factory)
    self._writer: Any = None
    self._remote_file: GrowingFile | None = None

  def begin(self, stage: str, step: int) -> None:
    """Starts a file for what follows `step`."""
    self.close()
    folder = self._root / stage
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads files in the order of their names, which have the time
    # in seconds; the number separates files of the same second.
    number = len(list(folder.glob('events.out.tfevents.*')))
    self._writer = self._files.EventsWriter(
      str(folder / 'events'), f'.{number:04d}'
    )
    event = self._protos.Event(wall_time=time.time(), step=step + 1)
    event.session_log.status = self._protos.SessionLog.START
    self._add(event)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds one event with all of `values`."""
    event = self._protos.Event(wall_time=time.time(), step=step)
    for tag, value in values.items():
      event.summary.value.add(tag=tag, simple_value=value)
    self._add(event)

  def _add(self, event: Any) -> None:
    self._writer.write_event(event)
    self._writer.flush()

  def _open(self, path: str) -> GrowingFile:
    """For tensorboardX, which cannot write there by itself."""
    self._remote_file = GrowingFile(path)
    return self._remote_file

  def save(self) -> None:
    """Writes every event."""
    if self._remote_file is not None:
      self._remote_file.save()

  def close(self) -> None:
    """Closes the file of the stage."""
    if self._writer is not None:
      self._writer.close()
      self._writer = None


class WandbTracker:
  """Logs each stage as a Weights & Biases run; a workdir is one group.

  The group's name is stored in the workdir, so that a resumed stage continues
  its run. W&B accepts each step once: of repeated steps it keeps the first
  values, which are the same. `WANDB_MODE=offline` works without a network.
  """

  def __init__(
    self, project: str, workdir: str | epath.Path, config: Mapping[str, Any]
  ):
    """Imports wandb; raises UsageError if it is not installed."""
    (self._wandb,) = _optional_modules(
      f'wandb={project!r} needs Weights & Biases', 'wandb', 'wandb'
    )
    self._project = project
    self._workdir = epath.Path(workdir)
    self._config = dict(config)
    self._run: Any = None

  def begin(self, stage: str, step: int) -> None:
    """Opens the stage's run, or continues it."""
    del step
    self.close()
    path = self._workdir / 'wandb_group.txt'
    if not path.exists():
      path.write_text(f'{self._workdir.name}-{uuid.uuid4().hex[:8]}\n')
    group = printable(path.read_bytes().decode(errors='replace').strip(), 100)
    # W&B writes files of its own, which need a local folder.
    remote = files.is_remote(self._workdir)
    self._run = self._wandb.init(
      project=self._project,
      group=group,
      name=f'{group}-{stage}',
      id=f'{group}-{stage}',
      resume='allow',
      config=self._config,
      dir=None if remote else str(self._workdir),
    )

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Logs the values at `step`."""
    self._run.log(dict(values), step=step)

  def save(self) -> None:
    """Does nothing: W&B sends by itself."""

  def close(self) -> None:
    """Finishes the open run."""
    if self._run is not None:
      self._run.finish()
      self._run = None


Tracker = TensorBoardTracker | WandbTracker


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
  for name, kind, what in (
    ('tensorboard', bool, 'True or False'),
    ('wandb', str, 'the name of a project'),
  ):
    value = settings[name]
    if not isinstance(value, kind):
      raise UsageError(f'config.metrics.{name}={value!r} must be {what}')
  trackers: list[Tracker] = []
  if settings['tensorboard']:
    trackers.append(TensorBoardTracker(workdir))
  if settings['wandb']:
    trackers.append(WandbTracker(settings['wandb'], workdir, config))
  return tuple(trackers)
