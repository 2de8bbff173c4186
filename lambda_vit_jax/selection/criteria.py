"""Criteria: functions from the layers removed so far to a score per candidate.

The search removes the candidate of least score. `TransferEntropy` is NOSE's.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lambda_vit_jax.analysis import entropy, profile
from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.analysis.moments import HostMoments
from lambda_vit_jax.core.errors import UsageError, nearest
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import affine_score, bootstrap
from lambda_vit_jax.selection.options import OnImages
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


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of one round.

  Attributes:
    values: score per candidate (a block, or a set of blocks), in the
      criterion's unit.
    resampled: bootstrap scores `[resamples]` per candidate, or empty.
    dead_channels: constant channels of the target, left out in this round.
    base_entropy: entropy of the unmodified model in nats, where measured.
    block_evaluations: blocks run per image.
  """

  values: dict[Any, float]
  resampled: dict[Any, np.ndarray] = dataclasses.field(default_factory=dict)
  dead_channels: tuple[int, ...] = ()
  base_entropy: float | None = None
  block_evaluations: int = 0


class Criterion(Protocol):
  """Scores candidates; the one of least score is removed."""

  def __call__(
    self,
    removed: Trial,
    candidates: Sequence[int],
    on_images: OnImages | None = None,
  ) -> Scores:
    """Scores each candidate, given that `removed` are removed already."""
    ...


class TrialCriterion(abc.ABC):
  """Scores sets of layers by running the model without them.

  Attributes:
    runner: runs the trials.
  """

  def __init__(self, runner: TrialRunner, resamples: int, seed: int):
    """Measures nothing yet.

    Args:
      runner: of the model and the images; its target is
        `measured_target`'s.
      resamples: bootstrap resamples, 0 for none.
      seed: for the bootstrap.
    """
    self.runner = runner
    self._resamples = resamples
    self._seed = seed
    self._base: HostMoments | None = None

  def __call__(
    self,
    removed: Trial,
    candidates: Sequence[int],
    on_images: OnImages | None = None,
  ) -> Scores:
    trials = {tuple(sorted((*removed, block))): block for block in candidates}
    scores = self.score_sets(list(trials), on_images)

    def by_block(values: dict[Trial, Any]) -> dict[int, Any]:
      return {trials[trial]: value for trial, value in values.items()}

    return dataclasses.replace(
      scores,
      values=by_block(scores.values),
      resampled=by_block(scores.resampled),
    )

  def score_sets(
    self, trials: Sequence[Trial], on_images: OnImages | None = None
  ) -> Scores:
    """Scores each set of blocks; the first call measures the base as well."""
    wanted = list(trials)
    if self._base is None:
      wanted.append(())
    before = self.runner.block_evaluations
    found = self.runner.evaluate(wanted, on_images)
    if self._base is None:
      self._base = found[()]
    measured = {trial: found[trial] for trial in trials}
    kept = self._base.count > 0
    weights = bootstrap.resample_weights(
      int(kept.sum()), self._resamples, self._seed
    )
    scores = self._score(
      _shards(self._base, kept),
      {trial: _shards(moments, kept) for trial, moments in measured.items()},
      weights,
    )
    return dataclasses.replace(
      scores, block_evaluations=self.runner.block_evaluations - before
    )

  @abc.abstractmethod
  def _score(
    self,
    base: HostMoments,
    trials: dict[Trial, HostMoments],
    weights: np.ndarray | None,
  ) -> Scores:
    """Scores from the moments per shard of the base and of every trial."""


def _shards(moments: HostMoments, kept: np.ndarray) -> HostMoments:
  return HostMoments(moments.count[kept], moments.mean[kept], moments.m2[kept])


class TransferEntropy(TrialCriterion):
  """`H(target | all attention) - H(target | layers left out)`, in nats."""

  def _score(
    self,
    base: HostMoments,
    trials: dict[Trial, HostMoments],
    weights: np.ndarray | None,
  ) -> Scores:
    found = entropy.transfer_entropy(
      base.pooled(),
      {trial: moments.pooled() for trial, moments in trials.items()},
    )
    resampled = {}
    if weights is not None:
      dense = bootstrap.resampled_entropy(base, weights, found.excluded)
      resampled = {
        trial: dense
        - bootstrap.resampled_entropy(moments, weights, found.excluded)
        for trial, moments in trials.items()
      }
    dead = tuple(int(channel) for channel in np.flatnonzero(found.excluded))
    return Scores(found.values, resampled, dead, found.base_entropy)


class LossIncrease(TrialCriterion):
  """Increase of the mean cross-entropy on labelled images, in nats per image."""

  def _score(
    self,
    base: HostMoments,
    trials: dict[Trial, HostMoments],
    weights: np.ndarray | None,
  ) -> Scores:
    loss = float(base.pooled().mean[0])
    values = {
      trial: float(moments.pooled().mean[0]) - loss
      for trial, moments in trials.items()
    }
    resampled = {}
    if weights is not None:
      dense = bootstrap.resampled_statistics(base, weights)[0][:, 0]
      resampled = {
        trial: bootstrap.resampled_statistics(moments, weights)[0][:, 0] - dense
        for trial, moments in trials.items()
      }
    return Scores(values, resampled)


def measured_target(criterion: str, target: Target) -> Target:
  """The output whose moments a criterion of `MEASURED` needs."""
  return 'loss' if criterion == 'loss_increase' else target


def measured(
  criterion: str, runner: TrialRunner, resamples: int, seed: int
) -> TrialCriterion:
  """A criterion of `MEASURED` on `runner`, with its `measured_target`."""
  kind = TransferEntropy if criterion == 'transfer_entropy' else LossIncrease
  return kind(runner, resamples, seed)


@dataclasses.dataclass(frozen=True)
class Fixed:
  """Scores that do not depend on the layers removed so far.

  Attributes:
    per_block: score of every block that may be chosen.
  """

  per_block: dict[int, float]

  def __call__(
    self,
    removed: Trial,
    candidates: Sequence[int],
    on_images: OnImages | None = None,
  ) -> Scores:
    del removed, on_images
    return Scores({block: self.per_block[block] for block in candidates})


def blind_scores(
  criterion: str, candidates: Sequence[int], layers: Sequence[int], seed: int
) -> Fixed:
  """Scores of the criteria that use no images.

  Args:
    criterion: `random`, `first`, `last` or `given`.
    candidates: blocks with attention.
    layers: the list of `given`, in its order.
    seed: for `random`.
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
  """Scores of each attention layer by itself, in the unmodified model.

  Args:
    criterion: `cosine`: one minus the mean cosine similarity of x and
      x + attn(x); or `affine`: the share of the attention output's variance
      that no affine map of its input explains.
    model: the model to search.
    images: see `images.read_images`.
    memory_gib: memory for activations per device.
  """
  if criterion == 'affine':
    return Fixed(affine_score.affine_residual(model, images, memory_gib))
  cosines = profile.cosine_similarity(model, images, memory_gib)
  return Fixed({block: 1.0 - cosine for block, cosine in cosines.items()})


def check_criterion(criterion: str) -> tuple[str, str]:
  """Splits `exhaustive:loss_increase` into the search and its score.

  Returns:
    The criterion's name and its score, which are the same but for
    `exhaustive`, whose score is `transfer_entropy` by default.

  Raises:
    UsageError: an unknown name.
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
