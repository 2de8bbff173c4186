"""Gaussian entropy of features, and the transfer entropy of a layer, in nats.

With σ_c the standard deviation of channel c over all pooled samples:

  H(F)  = Σ_c [ log σ_c + ½ log 2π + ½ ]
  TE(S) = H(target | all attention) - H(target | without attention of S)

Dead channels (σ = 0 up to rounding) are left out, so that no entropy is −inf.
`moments` computes σ from batches.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lambda_vit_jax.analysis.moments import ChannelStatistics
from lambda_vit_jax.core.errors import DataError

NATS_PER_CHANNEL = 0.5 * math.log(2.0 * math.pi) + 0.5
"""Entropy of a Gaussian of standard deviation 1, in nats."""


def gaussian_entropy(std: np.ndarray, exclude: np.ndarray | None = None) -> Any:
  """`Σ_c [log σ_c + ½ log 2π + ½]` in nats, over the channels kept.

  Args:
    std: `[..., channels]`.
    exclude: `[channels]` bool, channels to leave out.

  Returns:
    A float, or `[...]` float64.

  Raises:
    DataError: no channel is left, or one that is left has σ = 0 or NaN.
  """
  std = np.asarray(std, np.float64)
  if exclude is not None:
    std = std[..., ~np.asarray(exclude, bool)]
  if not std.shape[-1]:
    raise DataError(
      'every channel is constant over the images: the entropy is undefined; '
      'use more, and different, images'
    )
  if not (std > 0.0).all():
    raise DataError(
      f'{int((~(std > 0.0)).sum())} channels have deviation 0 or NaN; '
      'leave dead channels out'
    )
  value = (np.log(std) + NATS_PER_CHANNEL).sum(axis=-1)
  return value if value.ndim else float(value)


@dataclasses.dataclass(frozen=True)
class TransferEntropy:
  """Transfer entropies of trials against one base, in nats.

  Attributes:
    base_entropy: of the base, over the channels kept.
    values: `H(base) - H(trial)` per trial.
    excluded: `[channels]` bool: dead in the base or in any trial.
  """

  base_entropy: float
  values: dict[Any, float]
  excluded: np.ndarray


def transfer_entropy(
  base: ChannelStatistics, trials: Mapping[Any, ChannelStatistics]
) -> TransferEntropy:
  """`TE = H(base) - H(trial)` per trial.

  Channels that are dead in the base or in any trial are left out of all, so
  that the constants cancel.

  Args:
    base: of the network with all its attention layers.
    trials: of the networks that lack some.

  Raises:
    DataError: no channel is left.
  """
  excluded = np.any([base.dead, *(t.dead for t in trials.values())], axis=0)
  entropy = gaussian_entropy(base.std, excluded)
  values = {
    key: entropy - gaussian_entropy(trial.std, excluded)
    for key, trial in trials.items()
  }
  return TransferEntropy(entropy, values, excluded)
