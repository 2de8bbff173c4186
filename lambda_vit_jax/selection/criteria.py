"""What makes an attention layer a good one to remove: scores per block.

Every criterion answers the same question: given the layers removed so far,
what does each candidate score? The least score goes next.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from lambda_vit_jax.analysis import entropy, profile
from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.analysis.moments import HostMoments
from lambda_vit_jax.core.errors import UsageError, nearest
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import affine_score, bootstrap
from lambda_vit_jax.selection.trial_readout import Target
from lambda_vit_jax.selection.trials import Trial, TrialRunner

CRITERIA = (
  'transfer_entropy',
  'loss_increase',
  'cosine',
  'affine',
  'random',
  'first',
  'last',
  'given',
  'exhaustive',
)

NEEDS_IMAGES = (
  'transfer_entropy',
  'loss_increase',
  'cosine',
  'affine',
  'exhaustive',
)

MEASURED = ('transfer_entropy', 'loss_increase')
"""Criteria that run the network without the layers in question."""

# The largest number of sets that an exhaustive search evaluates.
MOST_SETS = 2000


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of one round.

  Attributes:
    values: per candidate (or set of them), in the criterion's unit.
    resampled: `[resamples]` per candidate, or empty.
    dead_channels: channels of the target left out in this round.
    base_entropy: of the model as it is, in nats, where it was measured.
    block_evaluations: blocks run per image.
  """

  values: dict
  resampled: dict = dataclasses.field(default_factory=dict)
  dead_channels: tuple[int, ...] = ()
  base_entropy: float | None = None
  block_evaluations: int = 0


class Criterion(Protocol):
  """Scores candidates; the least score is removed next."""

  def __call__(self, removed: Trial, candidates: Sequence[int]) -> Scores:
    """Scores each candidate, with `removed` gone already."""
    ...


OnProgress = Callable[[int, int], None]


class _Measured(abc.ABC):
  """Moments of variants on images, against those of the model as it is."""

  def __init__(
    self,
    runner: TrialRunner,
    resamples: int,
    seed: int,
    on_progress: OnProgress | None = None,
  ):
    self._runner = runner
    self._resamples = resamples
    self._seed = seed
    self._on_progress = on_progress
    self._base: HostMoments | None = None

  def __call__(self, removed: Trial, candidates: Sequence[int]) -> Scores:
    variants = {tuple(sorted((*removed, block))): block for block in candidates}
    scores = self.score_sets(list(variants))

    def by_block(values: dict) -> dict:
      return {variants[variant]: value for variant, value in values.items()}

    return dataclasses.replace(
      scores,
      values=by_block(scores.values),
      resampled=by_block(scores.resampled),
    )

  def score_sets(self, variants: Sequence[Trial]) -> Scores:
    """Scores sets of blocks as a whole."""
    wanted = list(variants)
    if self._base is None:
      wanted.append(())
    before = self._runner.block_evaluations
    found = self._runner.evaluate(wanted, self._on_progress)
    if self._base is None:
      self._base = found[()]
    trials = {variant: found[variant] for variant in variants}
    kept = self._base.count > 0
    weights = bootstrap.resample_weights(
      int(kept.sum()), self._resamples, self._seed
    )
    scores = self._score(
      _shards(self._base, kept),
      {variant: _shards(trial, kept) for variant, trial in trials.items()},
      weights,
    )
    return dataclasses.replace(
      scores,
      block_evaluations=self._runner.block_evaluations - before,
    )

  @abc.abstractmethod
  def _score(
    self,
    base: HostMoments,
    trials: dict[Trial, HostMoments],
    weights: np.ndarray | None,
  ) -> Scores:
    """Scores from moments per shard of the base and of every trial."""


def _shards(moments: HostMoments, kept: np.ndarray) -> HostMoments:
  return HostMoments(moments.count[kept], moments.mean[kept], moments.m2[kept])


class TransferEntropy(_Measured):
  """`H(target | all attention) - H(target | layers left out)`, in nats."""

  def _score(
    self,
    base: HostMoments,
    trials: dict[Trial, HostMoments],
    weights: np.ndarray | None,
  ) -> Scores:
    found = entropy.transfer_entropy(
      base.pooled(),
      {variant: trial.pooled() for variant, trial in trials.items()},
    )
    resampled = {}
    if weights is not None:
      dense = bootstrap.resampled_entropy(base, weights, found.excluded)
      resampled = {
        variant: dense
        - bootstrap.resampled_entropy(trial, weights, found.excluded)
        for variant, trial in trials.items()
      }
    dead = tuple(int(channel) for channel in np.flatnonzero(found.excluded))
    return Scores(found.values, resampled, dead, found.base_entropy)


class LossIncrease(_Measured):
  """Rise of the mean cross-entropy on labelled images, in nats per image."""

  def _score(
    self,
    base: HostMoments,
    trials: dict[Trial, HostMoments],
    weights: np.ndarray | None,
  ) -> Scores:
    loss = float(base.pooled().mean[0])
    values = {
      variant: float(trial.pooled().mean[0]) - loss
      for variant, trial in trials.items()
    }
    resampled = {}
    if weights is not None:
      dense = bootstrap.resampled_statistics(base, weights)[0][:, 0]
      resampled = {
        variant: bootstrap.resampled_statistics(trial, weights)[0][:, 0] - dense
        for variant, trial in trials.items()
      }
    return Scores(values, resampled)


def measured_target(criterion: str, target: Target) -> Target:
  """What a measured criterion takes the moments of."""
  return 'loss' if criterion == 'loss_increase' else target


def measured(
  criterion: str,
  runner: TrialRunner,
  resamples: int,
  seed: int,
  on_progress: OnProgress | None = None,
) -> _Measured:
  """A criterion of `MEASURED` on `runner`, with its `measured_target`."""
  kind = TransferEntropy if criterion == 'transfer_entropy' else LossIncrease
  return kind(runner, resamples, seed, on_progress)


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Scores that do not depend on what has been removed.

  Attributes:
    per_block: score of every block that may be chosen.
  """

  per_block: dict[int, float]

  def __call__(self, removed: Trial, candidates: Sequence[int]) -> Scores:
    del removed
    return Scores({block: self.per_block[block] for block in candidates})


def blind_scores(
  criterion: str, candidates: Sequence[int], layers: Sequence[int], seed: int
) -> Fixed:
  """Scores of the criteria that look at no image.

  Args:
    criterion: `random`, `first`, `last` or `given`.
    candidates: blocks with attention.
    layers: the list of `given`, in its order.
    seed: of `random`.
  """
  if criterion == 'random':
    order = np.random.default_rng(seed).permutation(len(candidates))
    return Fixed(
      {
        block: float(rank)
        for block, rank in zip(candidates, order, strict=True)
      }
    )
  if criterion == 'given':
    return Fixed({block: float(rank) for rank, block in enumerate(layers)})
  sign = -1.0 if criterion == 'last' else 1.0
  return Fixed({block: sign * block for block in candidates})


def layer_scores(
  criterion: str, model: Model, images: ImageSet, memory_gib: float | None
) -> Fixed:
  """Scores of each attention by itself, in the model as it is.

  Args:
    criterion: `cosine`: one minus the mean cosine of x and x + attn; or
      `affine`: the share of the attention's variance that no affine map of
      its input explains.
    model: what is searched.
    images: see `images.read_images`.
    memory_gib: activations held at a time, per device.
  """
  if criterion == 'affine':
    return Fixed(affine_score.affine_residual(model, images, memory_gib))
  cosines = profile.cosine_similarity(model, images, memory_gib)
  return Fixed({block: 1.0 - cosine for block, cosine in cosines.items()})


def check_criterion(criterion: str) -> tuple[str, str]:
  """Splits `exhaustive:loss_increase`; the score is the criterion otherwise.

  Raises:
    UsageError: not known.
  """
  name, _, score = criterion.partition(':')
  if name == 'probe':
    raise UsageError(
      'select.criterion=probe trains, which this function cannot: use the '
      'stage `select`, or `lambda_vit_jax.selection.probe`'
    )
  if name not in CRITERIA:
    raise UsageError(
      f'select.criterion={criterion!r} is not known'
      f'{nearest(name, CRITERIA)} (known: {", ".join(CRITERIA)}, probe)'
    )
  if name != 'exhaustive':
    score = score or name
  score = score or 'transfer_entropy'
  if score != name and (name != 'exhaustive' or score not in MEASURED):
    raise UsageError(
      f'select.criterion={criterion!r}: only exhaustive takes a score, '
      'exhaustive:transfer_entropy or exhaustive:loss_increase'
    )
  return name, score


def all_sets(candidates: Sequence[int], number: int) -> list[Trial]:
  """Every set of `number` candidates, in lexicographic order.

  Raises:
    UsageError: too many.
  """
  count = math.comb(len(candidates), number)
  if count > MOST_SETS:
    raise UsageError(
      f'select.criterion=exhaustive: {number} of {len(candidates)} layers are '
      f'{count} sets, more than {MOST_SETS}; choose fewer layers or another '
      'criterion'
    )
  return list(itertools.combinations(sorted(candidates), number))
