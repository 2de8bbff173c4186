"""The sections `pretrain` and `dilute` as typed settings."""

import dataclasses
from typing import Annotated

from lambda_vit_jax.cli.config_values import Duration, Real, one_of
from lambda_vit_jax.cli.setting_types import (
  Concentration,
  Flag,
  Length,
  Part,
  Positive,
  Probability,
  Rate,
)
from lambda_vit_jax.core.errors import UsageError

# Durations that are all in epochs compare alike with any number.
_STEPS_OF_ANY_EPOCH = 1_000_000


@dataclasses.dataclass(frozen=True)
class Training:
  """What the sections `pretrain` and `dilute` share."""

  learning_rate: Rate
  scale_by_batch: Flag
  final_learning_rate: Rate
  schedule: str
  poly_power: Annotated[float, Real(0, 100, above=True)]
  warmup_steps: Length
  weight_decay: Annotated[float, Real(0, 10)]
  b1: Part
  b2: Part
  clip_norm: Annotated[float, Real(0, 1e6)]
  layer_decay: Annotated[float, Real(0, 1, above=True)]
  frozen: str
  accumulate_steps: Positive
  label_smoothing: Part
  mixup: Concentration
  cutmix: Concentration
  mix_size: Positive | None
  drop_path_rate: Part
  ema: Part
  distill: str
  distill_weight: Probability
  distill_temperature: Annotated[float, Real(0, 1000, above=True)]

  @property
  def lengths(self) -> tuple[Duration, ...]:
    """The durations that make up the training."""
    raise NotImplementedError

  def total_steps(self, steps_per_epoch: int) -> int:
    """Returns the optimisation steps of the training."""
    return sum(length.steps(steps_per_epoch) for length in self.lengths)

  def peak_learning_rate(self, batch_size: int) -> float:
    """`learning_rate`, times batch_size / 512 with `scale_by_batch`."""
    if self.scale_by_batch:
      return self.learning_rate * batch_size / 512
    return self.learning_rate

  def check(self, stage: str, batch_size: int) -> None:
    """Checks what only makes sense together; raises UsageError."""
    self.check_lengths(stage)
    peak, final = self.peak_learning_rate(batch_size), self.final_learning_rate
    if 0 < peak < final:
      raise UsageError(
        f'config.{stage}.final_learning_rate={final:g}: the learning rate '
        f'only reaches {peak:g}; lower it'
      )

  def check_lengths(
    self, stage: str, steps_per_epoch: int | None = None
  ) -> None:
    """Checks that the warm-up, and one update, fit into the training.

    Args:
      stage: the section, for the message.
      steps_per_epoch: None where it is not known yet: only durations in the
        same unit are compared.

    Raises:
      UsageError: names the key.
    """
    units = {part.in_epochs for part in (self.warmup_steps, *self.lengths)}
    if steps_per_epoch is None and len(units) > 1:
      return
    each = steps_per_epoch or _STEPS_OF_ANY_EPOCH
    total = self.total_steps(each)
    # Without steps nothing is trained, whatever the warm-up.
    if not total:
      return
    lengths = ' + '.join(str(part) for part in self.lengths)
    if self.accumulate_steps > total:
      raise UsageError(
        f'config.{stage}.accumulate_steps={self.accumulate_steps}: {lengths} '
        'steps of training would end before the first update; lower it'
      )
    if self.warmup_steps.steps(each) >= total:
      raise UsageError(
        f'config.{stage}.warmup_steps={self.warmup_steps}: does not fit in '
        f'{lengths} steps of training; shorten it'
      )


@dataclasses.dataclass(frozen=True)
class Pretrain(Training):
  """Section `pretrain`."""

  steps: Length

  @property
  def lengths(self) -> tuple[Duration, ...]:
    """The steps of the stage."""
    return (self.steps,)

  def __post_init__(self):
    if self.distill != 'none':
      raise UsageError(
        f'config.pretrain.distill={self.distill!r}: this stage has no teacher; '
        'only `dilute` has one, the dense model'
      )


@dataclasses.dataclass(frozen=True)
class Dilute(Training):
  """Section `dilute`."""

  dilution_steps: Length
  settle_steps: Length
  compensation: Flag
  start: Annotated[str, one_of('attention', 'linear')]
  towards: Annotated[str, one_of('identity', 'linear', 'compressed')]

  @property
  def lengths(self) -> tuple[Duration, ...]:
    """While λ falls, and after that."""
    return (self.dilution_steps, self.settle_steps)

  @property
  def is_warm(self) -> bool:
    """Whether dilution goes through the maps that `linearize` fitted."""
    return self.start == 'linear'

  @property
  def stand_in(self) -> str:
    """The stage whose network λ leads to; empty for the identity."""
    return {'linear': 'linearize', 'compressed': 'compress'}.get(
      self.towards, ''
    )

  def __post_init__(self):
    if self.stand_in and self.is_warm:
      raise UsageError(
        f'config.dilute.towards={self.towards}: λ leads to that network at once; '
        'leave config.dilute.start=attention'
      )
