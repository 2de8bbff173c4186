"""How far a network's output is from the dense one's.

  output            mean over images of KL(dense logits ‖ logits), in nats; for
                    the target `features` the mean squared difference
  transfer_entropy  H(dense target) - H(target), in nats

The dense network has the score 0. Labels are not used.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from lambda_vit_jax.analysis import entropy
from lambda_vit_jax.analysis.moments import ChannelStatistics
from lambda_vit_jax.compression.streams import Streams
from lambda_vit_jax.core.errors import UsageError, nearest, not_finite
from lambda_vit_jax.models.model import Model

Score = Callable[[np.ndarray, np.ndarray], float]
"""Of the dense network's outputs and another's, `[images, channels]` each."""


def divergence(dense: np.ndarray, found: np.ndarray) -> float:
  """KL(dense ‖ found) of logits, the mean over images, in nats."""
  wanted, given = (_log_softmax(rows) for rows in (dense, found))
  each = (np.exp(wanted) * (wanted - given)).sum(axis=1)
  return float(each.mean())


def _log_softmax(rows: np.ndarray) -> np.ndarray:
  shifted = rows - rows.max(axis=1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def squared_error(dense: np.ndarray, found: np.ndarray) -> float:
  """The mean squared difference."""
  return float(((found - dense) ** 2).mean())


def entropy_lost(dense: np.ndarray, found: np.ndarray) -> float:
  """`H(dense) - H(found)` of Gaussian channels, in nats."""
  base, other = (
    ChannelStatistics(len(rows), rows.mean(axis=0), rows.std(axis=0))
    for rows in (dense, found)
  )
  return entropy.transfer_entropy(base, {0: other}).values[0]


CRITERIA: dict[str, dict[str, Score]] = {
  'output': {'logits': divergence, 'features': squared_error},
  'transfer_entropy': {'logits': entropy_lost, 'features': entropy_lost},
}
"""By criterion and target."""


def check_names(criterion: str, target: str) -> None:
  """Refuses an unknown criterion or target, with a `UsageError`."""
  if criterion not in CRITERIA:
    raise UsageError(
      f'compress.criterion={criterion!r} is not known'
      f'{nearest(criterion, CRITERIA)} (known: {", ".join(CRITERIA)})'
    )
  known = CRITERIA[criterion]
  if target not in known:
    raise UsageError(
      f'compress.target={target!r} is not known; use {" or ".join(known)}'
    )


@dataclasses.dataclass
class Scorer:
  """Scores networks on the images of some streams.

  Attributes:
    streams: of the network that is compressed.
    dense: the dense network's logits or features, `[images, channels]`.
    score: compares them with another's.
    by_logits: whether those are logits.
  """

  streams: Streams
  dense: np.ndarray
  score: Score
  by_logits: bool

  @classmethod
  def make(
    cls, streams: Streams, dense: Streams, criterion: str, target: str
  ) -> 'Scorer':
    """The scorer of a criterion.

    A network without a head has its features, and one of a single class, too:
    its softmax is 1 whatever the logit.
    """
    by_logits = target == 'logits' and dense.model.num_classes > 1
    score = CRITERIA[criterion]['logits' if by_logits else 'features']
    found = cls(streams, np.zeros(()), score, by_logits)
    return dataclasses.replace(
      found, dense=found._outputs(dense, dense.model, 0)
    )

  def __call__(self, model: Model, first: int) -> float:
    """The score of a network that is the present one before a block.

    Raises:
      ModelError: outputs that are NaN or infinite.
    """
    found = self._outputs(self.streams, model, first)
    if not np.isfinite(found).all():
      raise not_finite('the output', ' with parts of the network left out')
    return self.score(self.dense, found)

  def _outputs(self, streams: Streams, model: Model, first: int) -> np.ndarray:
    logits, features = streams.outputs_of(model, first)
    return np.asarray(logits if self.by_logits else features, np.float64)
