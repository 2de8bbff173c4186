"""A config as typed, frozen dataclasses: `Settings.from_config`.

One class for each section of `configs/common.py`, where each key is explained.
A field's type decides how its value is read and checked. Values that only make
sense together are checked here too; what depends on the model or on other
rooms' tables is checked by `config_check.py`.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from lambda_vit_jax.cli import config_values as values
from lambda_vit_jax.core.errors import UsageError

BUDGETS = ('num_layers', 'removal_ratio', 'target_speedup')
"""Keys of `select`, exactly one of which sets how many layers go."""

Natural = Annotated[int, values.integer]
Positive = Annotated[int, values.positive]
Number = Annotated[float, values.number]
Flag = Annotated[bool, values.flag]
Duration = Annotated[values.Duration, values.duration]
Names = Annotated[tuple[str, ...], values.sequence]
Layers = Annotated[tuple[int, ...], values.sequence]


@dataclasses.dataclass(frozen=True)
class Data:
  """Section `data`: which images are read, and how."""

  source: str
  train_images: Positive | None
  holdout_images: Natural
  skip_undecodable: Flag
  workers: Natural
  cache_dir: str
  repeats: Positive
  # Read by data.augment.Augment.
  augment: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Section `model`: the network and its arithmetic."""

  variant: str
  image_size: Annotated[int | tuple[int, int], values.image_size] | None
  crop_ratio: Annotated[float, values.share] | None
  dtype: Annotated[str, values.one_of('float32', 'bfloat16')]
  remat: Flag
  # Read by models.merge_schedule.
  merge: Any
  merge_start: Natural


@dataclasses.dataclass(frozen=True)
class Segment:
  """Section `segment`: the decoder, masks, and windows of evaluation."""

  decoder: str
  blocks: Annotated[tuple[int, ...], values.tuple_of(values.integer)]
  channels: Natural
  dropout: Number
  num_classes: Natural | None
  ignore_index: Natural
  reduce_zero_label: Flag
  scale: Annotated[tuple[float, ...], values.tuple_of(values.number)]
  most_of_one: Number
  flip: Number
  photometric: Number
  evaluation: str
  stride: Natural | None
  pictures: Natural


@dataclasses.dataclass(frozen=True)
class Training:
  """What the sections `pretrain` and `dilute` share."""

  learning_rate: Number
  scale_by_batch: Flag
  final_learning_rate: Number
  schedule: str
  poly_power: Number
  warmup_steps: Duration
  weight_decay: Number
  b1: Number
  b2: Number
  clip_norm: Number
  layer_decay: Number
  frozen: str
  accumulate_steps: Positive
  label_smoothing: Number
  mixup: Number
  cutmix: Number
  mix_size: Positive | None
  drop_path_rate: Number
  ema: Number
  distill: str
  distill_weight: Number
  distill_temperature: Number

  def peak_learning_rate(self, batch_size: int) -> float:
    """`learning_rate`, times batch_size / 512 with `scale_by_batch`."""
    if self.scale_by_batch:
      return self.learning_rate * batch_size / 512
    return self.learning_rate


@dataclasses.dataclass(frozen=True)
class Pretrain(Training):
  """Section `pretrain`."""

  steps: Duration

  def __post_init__(self):
    if self.distill != 'none':
      raise UsageError(
        f'config.pretrain.distill={self.distill!r}: this stage has no teacher; '
        'only `dilute` has one, the dense model'
      )


@dataclasses.dataclass(frozen=True)
class Dilute(Training):
  """Section `dilute`."""

  dilution_steps: Duration
  settle_steps: Duration
  compensation: Flag
  start: Annotated[str, values.one_of('attention', 'linear')]

  @property
  def is_warm(self) -> bool:
    """Whether dilution goes through the maps that `linearize` fitted."""
    return self.start == 'linear'


@dataclasses.dataclass(frozen=True)
class Analyze:
  """Section `analyze`."""

  num_images: Positive | None


@dataclasses.dataclass(frozen=True)
class Select:
  """Section `select`: which attention layers go."""

  criterion: str
  target: str
  sign: Literal['signed', 'absolute']
  trial: str
  num_layers: Natural | None
  removal_ratio: Number | None
  target_speedup: Number | None
  layers: Layers
  num_images: Positive | None
  memory_gib: Number | None
  probe_steps: Annotated[int, functools.partial(values.integer, least=2)]

  def __post_init__(self):
    given = [key for key in BUDGETS if getattr(self, key) is not None]
    if len(given) != 1:
      found = ' and '.join(given) if given else 'none'
      raise UsageError(
        f'config.select: {found} set; exactly one of {", ".join(BUDGETS)} '
        'must be'
      )

  @property
  def budget(self) -> dict[str, Any]:
    """The one of `BUDGETS` that is set, as a keyword argument."""
    (key,) = (k for k in BUDGETS if getattr(self, k) is not None)
    return {key: getattr(self, key)}


@dataclasses.dataclass(frozen=True)
class Linearize:
  """Section `linearize`: what replaces attention layers without training."""

  num_images: Positive | None
  # Read by training_free.least_squares.
  ridge: Any
  rank: Positive | None
  sequential: Flag
  inputs: Names
  target: Annotated[str, values.one_of('stream', 'attention')]
  recentre: Flag
  refit: Flag
  maps: Flag
  num_drop_blocks: Natural
  drop_blocks: Layers

  def __post_init__(self):
    if self.num_drop_blocks and self.drop_blocks:
      raise UsageError(
        f'config.linearize.num_drop_blocks={self.num_drop_blocks} and '
        f'config.linearize.drop_blocks={self.drop_blocks}: give one of the two'
      )


@dataclasses.dataclass(frozen=True)
class Export:
  """Section `export`: formats of the pruned model."""

  formats: Names
  dtype: str
  int8_arithmetic: str
  zero_fill: Flag


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """Section `benchmark`: what is timed."""

  batch_size: Positive
  batch_sizes: Annotated[tuple[int, ...], values.sizes]
  rounds: Positive | None
  seconds: Number
  precision: Number


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Section `mesh`: how parameters are split over devices."""

  fsdp: Positive


@dataclasses.dataclass(frozen=True)
class Metrics:
  """Section `metrics`: where metrics go besides `metrics.jsonl`."""

  tensorboard: Flag
  wandb: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """All of a run's settings."""

  seed: Natural
  batch_size: Positive
  init: str
  task: Annotated[str, values.one_of('classify', 'segment')]
  data: Data
  model: Architecture
  segment: Segment
  pretrain: Pretrain
  analyze: Analyze
  select: Select
  method: Annotated[str, values.one_of('dilute', 'linearize')]
  linearize: Linearize
  dilute: Dilute
  export: Export
  benchmark: Benchmark
  mesh: Mesh
  metrics: Metrics
  log_every: Positive
  checkpoint_every: Positive
  keep_checkpoints: Positive
  eval_every: Natural | None
  resume_from: str
  profile: str

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> 'Settings':
    """Reads and checks every value of a config.

    Args:
      config: all sections, as `configs/common.py` has them.

    Raises:
      UsageError: a value of the wrong kind, or values that contradict each
        other; names the keys.
    """
    return read(cls, config)

  def __post_init__(self):
    for stage in ('pretrain', 'dilute'):
      size = self.training(stage).mix_size
      if size is not None and size < self.batch_size and self.batch_size % size:
        raise UsageError(
          f'config.{stage}.mix_size={size}: does not divide '
          f'config.batch_size={self.batch_size}; leave it empty for the whole '
          'batch'
        )
    if self.segments:
      self._check_segmentation()
    if self.method == 'dilute' and self.dilute.is_warm:
      self._check_warm_start()

  @property
  def segments(self) -> bool:
    """Whether the run is about classes of pixels, not of images."""
    return self.task == 'segment'

  def training(self, stage: str) -> Training:
    """Returns the section of a stage that trains."""
    section: Training = getattr(self, stage)
    return section

  def _check_segmentation(self) -> None:
    for stage in ('pretrain', 'dilute'):
      section = self.training(stage)
      for key in ('mixup', 'cutmix'):
        if getattr(section, key):
          raise UsageError(
            f'config.{stage}.{key}={getattr(section, key)}: images with masks '
            'are not mixed; set it to 0'
          )
    criterion = self.select.criterion
    if 'loss_increase' in criterion:
      raise UsageError(
        f'config.select.criterion={criterion!r} needs a class per image; with '
        'task=segment use transfer_entropy, cosine, affine or probe'
      )

  def _check_warm_start(self) -> None:
    if not self.linearize.maps:
      raise UsageError(
        'config.linearize.maps=False leaves a warm start without maps; leave '
        'it True, or config.dilute.start=attention'
      )
    for key in ('drop_blocks', 'num_drop_blocks'):
      if getattr(self.linearize, key):
        raise UsageError(
          f'config.linearize.{key}: a warm start has all its blocks; set '
          'config.method=linearize, or config.dilute.start=attention'
        )


_T = TypeVar('_T')


def read(cls: type[_T], config: Mapping[str, Any], section: str = '') -> _T:
  """Reads a dataclass of this file from a mapping; `section` is for errors."""
  hints = typing.get_type_hints(cls, include_extras=True).items()
  return cls(**{k: _value(t, config[k], section + k) for k, t in hints})


def _value(hint: Any, value: Any, key: str) -> Any:
  if dataclasses.is_dataclass(hint) and isinstance(hint, type):
    return read(hint, value, f'{key}.')
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    # `X | None`: empty means unset.
    some = typing.get_args(hint)[0]
    return None if value is None else _value(some, value, key)
  if typing.get_origin(hint) is Annotated:
    return hint.__metadata__[0](value, key)
  return value
