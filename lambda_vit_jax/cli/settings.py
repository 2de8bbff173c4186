"""A config as typed, frozen dataclasses: `Settings.from_config`.

One class for each section of `configs/common.py`, where each key is explained.
A field's type decides how its value is read, and has the range of every number
as data (`config_values.Whole`, `Real`, `Steps`); `data.augment` has its own in
`data/augment.py`. Values that only make sense together are checked here too;
what depends on the model or on other rooms' tables is checked by
`config_check.py`, what depends on the data set by `training_check.py`.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from lambda_vit_jax.cli import config_values as values
from lambda_vit_jax.cli.config_values import (
  ImageSize,
  ListOf,
  Real,
  Steps,
  Whole,
)
from lambda_vit_jax.cli.setting_types import (
  GREATEST_SIDE,
  Block,
  Blocks,
  Flag,
  Names,
  Natural,
  Part,
  Positive,
  Probability,
  Side,
)
from lambda_vit_jax.cli.training_free_settings import Compress, Linearize
from lambda_vit_jax.cli.training_settings import Dilute, Pretrain, Training
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.preprocessing import LEAST_CROP

BUDGETS = ('num_layers', 'removal_ratio', 'target_speedup')
"""Keys of `select`, exactly one of which sets how many layers go."""


@dataclasses.dataclass(frozen=True)
class Data:
  """Section `data`: which images are read, and how."""

  source: str
  train_images: Positive | None
  holdout_images: Natural
  skip_undecodable: Flag
  workers: Annotated[int, Whole(0, 1024)]
  cache_dir: str
  repeats: Annotated[int, Whole(1, 1024)]
  # Read by data.augment.Augment.
  augment: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Architecture:
  """Section `model`: the network and its arithmetic."""

  variant: str
  image_size: (
    Annotated[int | tuple[int, int], ImageSize(Whole(1, GREATEST_SIDE))] | None
  )
  crop_ratio: Annotated[float, Real(LEAST_CROP, 1)] | None
  dtype: Annotated[str, values.one_of('float32', 'bfloat16')]
  remat: Flag
  # Read by models.merge_schedule.
  merge: Any
  merge_start: Block


@dataclasses.dataclass(frozen=True)
class Segment:
  """Section `segment`: the decoder, masks, and windows of evaluation."""

  decoder: str
  blocks: Blocks
  channels: Side
  dropout: Part
  num_classes: Side | None
  # -1 for no such number.
  ignore_index: Annotated[int, Whole(-1, GREATEST_SIDE)]
  reduce_zero_label: Flag
  scale: Annotated[tuple[float, ...], ListOf(Real(0.05, 20))]
  most_of_one: Probability
  flip: Probability
  photometric: Probability
  evaluation: str
  stride: Side | None
  pictures: Natural


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
  num_layers: Block | None
  removal_ratio: Part | None
  target_speedup: Annotated[float, Real(1, 1000)] | None
  layers: Blocks
  # A deviation needs two.
  num_images: Annotated[int, Whole(2)] | None
  memory_gib: Annotated[float, Real(0, 1e6, above=True)] | None
  probe_steps: Annotated[int, Whole(2)]

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
class Export:
  """Section `export`: formats of the pruned model."""

  formats: Names
  dtype: str
  int8_arithmetic: str
  zero_fill: Flag
  weights: Literal['raw', 'ema']
  checkpoint: Annotated[str, values.one_of('last', 'best')]
  hub: str

  def __post_init__(self):
    values.one_of('raw', 'ema')(self.weights, 'export.weights')

  @property
  def options(self) -> dict[str, Any]:
    """What `exporters.export` reads: neither the parameters nor the hub."""
    chosen = dataclasses.asdict(self)
    return {
      name: value
      for name, value in chosen.items()
      if name not in ('weights', 'checkpoint', 'hub')
    }


@dataclasses.dataclass(frozen=True)
class Evaluate:
  """Section `evaluate`: what the pruned model is compared with."""

  baseline: Flag


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """Section `benchmark`: what is timed."""

  batch_size: Positive
  batch_sizes: Annotated[tuple[int, ...], ListOf(Whole(1), or_one=True)]
  rounds: Positive | None
  seconds: Annotated[float, Real(0, 1e6, above=True)]
  precision: Annotated[float, Real(0, 1, above=True)]
  runtimes: Names
  test_images: Natural


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Section `mesh`: how parameters are split over devices."""

  fsdp: Side


@dataclasses.dataclass(frozen=True)
class Metrics:
  """Section `metrics`: where metrics go besides `metrics.jsonl`."""

  tensorboard: Flag
  wandb: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """All of a run's settings."""

  # JAX's keys drop higher bits.
  seed: Annotated[int, Whole(0, 2**32 - 1)]
  batch_size: Positive
  init: str
  task: Annotated[str, values.one_of('classify', 'segment')]
  data: Data
  model: Architecture
  segment: Segment
  pretrain: Pretrain
  analyze: Analyze
  select: Select
  method: Annotated[str, values.one_of('dilute', 'linearize', 'compress')]
  linearize: Linearize
  compress: Compress
  dilute: Dilute
  export: Export
  evaluate: Evaluate
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
    for stage in self.training_stages:
      self.training(stage).check(stage, self.batch_size)
    if self.method == 'dilute' and self.select.num_layers != 0:
      self._check_dilution()

  @property
  def segments(self) -> bool:
    """Whether the run is about classes of pixels, not of images."""
    return self.task == 'segment'

  @property
  def training_stages(self) -> tuple[str, ...]:
    """The sections of `Training` that this config uses."""
    return ('pretrain', 'dilute') if self.method == 'dilute' else ('pretrain',)

  def training(self, stage: str) -> Training:
    """Returns the section of a stage that trains; `baseline` has dilute's."""
    return self.pretrain if stage == 'pretrain' else self.dilute

  @property
  def fitted_stages(self) -> frozenset[str]:
    """Those of `linearize` and `compress` whose network this config uses."""
    if self.method != 'dilute':
      return frozenset({self.method})
    warm = {'linearize'} if self.dilute.is_warm else set()
    return frozenset({*warm, self.dilute.stand_in})

  @property
  def has_baseline(self) -> bool:
    """Whether the dense model is trained as long as the pruned one."""
    trains = any(part.length for part in self.dilute.lengths)
    return self.method == 'dilute' and trains and self.evaluate.baseline

  def _check_segmentation(self) -> None:
    for stage in ('pretrain', 'dilute'):
      section = self.training(stage)
      for key in ('mixup', 'cutmix'):
        if getattr(section, key):
          raise UsageError(
            f'config.{stage}.{key}={getattr(section, key)}: images with masks '
            'are not mixed; set it to 0'
          )
    if self.method == 'dilute' and self.dilute.stand_in:
      raise UsageError(
        f'config.dilute.towards={self.dilute.towards} is not there for '
        'task=segment; use identity'
      )
    criterion = self.select.criterion
    if 'loss_increase' in criterion:
      raise UsageError(
        f'config.select.criterion={criterion!r} needs a class per image; with '
        'task=segment use transfer_entropy, cosine, affine or probe'
      )

  def _check_dilution(self) -> None:
    if not any(part.length for part in self.dilute.lengths):
      raise UsageError(
        'config.dilute.dilution_steps=0 and config.dilute.settle_steps=0: '
        'nothing would be trained without the layers; set one of them, or '
        'config.method=linearize'
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
  hints = field_types(typing.cast(Any, cls)).items()
  return cls(**{k: _value(t, config[k], section + k) for k, t in hints})


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
  """Returns the fields of a dataclass of this file, with their readers."""
  return typing.get_type_hints(cls, include_extras=True)


def number_ranges(
  cls: type = Settings, section: str = ''
) -> dict[str, Whole | Real | Steps]:
  """Returns the range of each key that is a number, or a list of numbers."""
  found: dict[str, Whole | Real | Steps] = {}
  for name, hint in field_types(cls).items():
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
      found |= number_ranges(hint, f'{section}{name}.')
      continue
    for part in (hint, *typing.get_args(hint)):
      for reader in getattr(part, '__metadata__', ()):
        while hasattr(reader, 'item'):
          reader = reader.item
        if isinstance(reader, Whole | Real | Steps):
          found[section + name] = reader
  return found


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
