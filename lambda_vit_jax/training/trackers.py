"""Where metrics go besides `metrics.jsonl`: TensorBoard, Weights & Biases."""

import importlib
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from etils import epath

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.training.tensorboard import TensorBoardTracker


class Tracker(Protocol):
  """Something that shows metrics while a run is going on."""

  def begin(self, stage: str, step: int) -> None:
    """A stage starts, or goes on: what it says past `step` is yet to come."""

  def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Takes the metrics of a step."""

  def close(self) -> None:
    """No more will come."""


class WandbTracker:
  """One Weights & Biases run per stage, all of a workdir in one group.

  The runs' names are kept in the workdir, so that a resumed stage goes on in
  its run. W&B takes no step twice: of steps that are done again it keeps the
  first values, which are the same. `WANDB_MODE=offline` works without a
  network.
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
    """The workdir's name for W&B, made once."""
    path = self._workdir / 'wandb_group.txt'
    if not path.exists():
      path.write_text(f'{self._workdir.name}-{uuid.uuid4().hex[:8]}\n')
    return path.read_text().strip()

  def begin(self, stage: str, step: int) -> None:
    """Opens the stage's run, or goes on with it."""
    del step
    self.close()
    group = self._group()
    # W&B writes its own files; they need a folder that is no bucket.
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
    """Logs the values under their own names at `step`."""
    if self._run is None or stage != self._stage:
      self.begin(stage, step - 1)
    self._run.log(dict(values), step=step)

  def close(self) -> None:
    """Ends the run that is open."""
    if self._run is not None:
      self._run.finish()
      self._run = None


def make_trackers(
  config: Mapping[str, Any], workdir: str | epath.Path
) -> tuple[Tracker, ...]:
  """The trackers that `config.metrics` asks for.

  Args:
    config: the whole config; W&B shows it.
    workdir: of the run.

  Raises:
    UsageError: wandb is asked for and not installed, or a wrong value.
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
