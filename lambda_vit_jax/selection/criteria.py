"""Criteria: functions from the layers removed so far to a score per candidate.

The search removes the candidate of least score (`choose`). NOSE's criterion is
`transfer_entropy`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from lambda_vit_jax.analysis import entropy, profile
from lambda_vit_jax.analysis.images import ImageSet
from lambda_vit_jax.analysis.moments import HostMoments
from lambda_vit_jax.core.errors import UsageError, nearest, not_finite
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection import affine_score, bootstrap
from lambda_vit_jax.selection.options import OnImages, canonical
from lambda_vit_jax.selection.trials import Trial, TrialRunner

OF_SETS = ('transfer_entropy', 'loss_increase')
"""Scores that an exhaustive search can take."""

MEASURED = (*OF_SETS, 'output')
"""Criteria that run the network without the layers in question."""

NEEDS_IMAGES = (*MEASURED, 'cosine', 'affine', 'canonical', 'exhaustive')

CRITERIA = (*NEEDS_IMAGES, 'random', 'first', 'last', 'given')

Candidate = TypeVar('Candidate', int, Trial)


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
    shards: of the images, which the bootstrap resamples.
  """

  values: dict[Any, float]
  resampled: dict[Any, np.ndarray] = dataclasses.field(default_factory=dict)
  dead_channels: tuple[int, ...] = ()
  base_entropy: float | None = None
  block_evaluations: int = 0
  shards: int = 0


Criterion = Callable[[Trial, Sequence[int], OnImages | None], Scores]
"""Scores each candidate, given the layers that are removed already."""


def choose(
  scores: Mapping[Candidate, float], sign: str = 'signed'
) -> Candidate:
  """The candidate with the least (absolute) score, the first on a tie."""
  size = abs if sign == 'absolute' else float
  return min(sorted(scores), key=lambda candidate: size(scores[candidate]))


@dataclasses.dataclass
class TrialCriterion:
  """A criterion of `MEASURED`: runs the model without the layers in question.

  Attributes:
    criterion: one of `MEASURED`.
    runner: of the model and the images; its target is `loss` for
      `loss_increase`.
    resamples: bootstrap resamples, 0 for none.
    seed: for the bootstrap.
  """

  criterion: str
  runner: TrialRunner
  resamples: int
  seed: int
  _base: HostMoments | None = dataclasses.field(default=None, init=False)

  def __call__(
    self,
    removed: Trial,
    candidates: Sequence[int],
    on_images: OnImages | None = None,
  ) -> Scores:
    trials = {tuple(sorted((*removed, block))): block for block in candidates}
    scores = self.score_sets(list(trials), on_images)

    return dataclasses.replace(
      scores,
      values={trials[key]: value for key, value in scores.values.items()},
      resampled={trials[key]: row for key, row in scores.resampled.items()},
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
    kept = self._base.count > 0
    shards = int(kept.sum())
    weights = bootstrap.resample_weights(shards, self.resamples, self.seed)
    score = (
      _transfer_entropy
      if self.criterion == 'transfer_entropy'
      else _mean_increase
    )
    scores = score(
      _shards(self._base, kept),
      {trial: _shards(found[trial], kept) for trial in trials},
      weights,
    )
    return dataclasses.replace(
      scores,
      block_evaluations=self.runner.block_evaluations - before,
      shards=shards,
    )


def _shards(moments: HostMoments, kept: np.ndarray) -> HostMoments:
  return HostMoments(moments.count[kept], moments.mean[kept], moments.m2[kept])


def _transfer_entropy(
  base: HostMoments,
  trials: dict[Trial, HostMoments],
  weights: np.ndarray | None,
) -> Scores:
  """`H(target | all attention) - H(target | layers left out)`, in nats."""
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


def _mean_increase(
  base: HostMoments,
  trials: dict[Trial, HostMoments],
  weights: np.ndarray | None,
) -> Scores:
  """Increase of the mean loss or error, per image."""

  def increase(mean: Callable[[HostMoments], Any]) -> dict[Trial, Any]:
    dense = mean(base)
    return {trial: mean(moments) - dense for trial, moments in trials.items()}

  values = increase(lambda moments: float(moments.pooled().mean[0]))
  if weights is None:
    return Scores(values)
  return Scores(
    values,
    increase(lambda m: bootstrap.resampled_statistics(m, weights)[0][:, 0]),
  )


def _fixed(per_block: Mapping[int, float]) -> Criterion:
  """Scores that do not depend on the layers removed so far."""
  return lambda removed, candidates, on_images: Scores(
    {block: per_block[block] for block in candidates}
  )


def blind_scores(
  criterion: str, candidates: Sequence[int], seed: int
) -> Criterion:
  """Scores of the criteria that use no images.

  Args:
    criterion: `random`, `first`, `last` or `given`.
    candidates: blocks with attention; for `given` those to remove, in order.
    seed: for `random`.
  """
  ranks: Iterable[float] = range(len(candidates))
  if criterion == 'random':
    ranks = np.random.default_rng(seed).permutation(len(candidates))
  elif criterion == 'first':
    ranks = candidates
  elif criterion == 'last':
    ranks = [-float(block) for block in candidates]
  return _fixed(
    {block: float(rank) for block, rank in zip(candidates, ranks, strict=True)}
  )


def layer_scores(
  criterion: str, model: Model, images: ImageSet, memory_gib: float | None
) -> Criterion:
  """Scores of each attention layer by itself, in the unmodified model.

  Args:
    criterion: `cosine`: one minus the mean cosine similarity of x and
      x + attn(x); or `affine`: the share of the attention output's variance
      that no affine map of its input explains; or `canonical`, see
      `affine_score`.
    model: the model to search.
    images: see `images.read_images`.
    memory_gib: memory for activations per device.
  """
  if criterion == 'affine':
    return _fixed(affine_score.affine_residual(model, images, memory_gib))
  if criterion == 'canonical':
    return _fixed(affine_score.canonical_residual(model, images, memory_gib))
  cosines = profile.cosine_similarity(model, images, memory_gib)
  for block, cosine in cosines.items():
    if not math.isfinite(cosine):
      raise not_finite(f'block {block}')
  return _fixed({block: 1.0 - cosine for block, cosine in cosines.items()})


def check_criterion(criterion: str) -> tuple[str, str]:
  """Splits `exhaustive:loss_increase` into the search and its score.

  `nose` is taken for `transfer_entropy` (`options.canonical`).

  Returns:
    The criterion and its score: the same name, except that `exhaustive` has
    `transfer_entropy` by default.

  Raises:
    UsageError: an unknown name.
  """
  name, _, score = canonical(criterion).partition(':')
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
  score = score or (name if name != 'exhaustive' else 'transfer_entropy')
  if score != name and (name != 'exhaustive' or score not in OF_SETS):
    raise UsageError(
      f'select.criterion={criterion!r}: only exhaustive takes a score, '
      'exhaustive:transfer_entropy or exhaustive:loss_increase'
    )
  return name, score
