"""Options of a search, and the reports it makes while it runs."""

import dataclasses
from collections.abc import Callable
from typing import Literal

from lambda_vit_jax.selection.record import Selection

Sign = Literal['signed', 'absolute']

NUM_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class SearchOptions:
  """What to search for; the fields are the config keys `select.*`.

  At most one of `num_layers`, `removal_ratio` and `target_speedup` is given;
  without any, five layers are removed.

  Attributes:
    criterion: one of `criteria.CRITERIA`. `exhaustive` may name its score:
      `exhaustive:loss_increase`.
    target: `logits` or `features`, for `transfer_entropy`.
    sign: `signed` removes the layer of least transfer entropy, `absolute` of
      least magnitude.
    trial: what replaces a candidate's attention while it is scored by a
      criterion of `criteria.MEASURED`: `skip` leaves it out, `linear` fits an
      affine map for it (`linear_trials`).
    num_layers: layers to remove.
    removal_ratio: layers to remove as a share of the blocks, in [0, 1).
    target_speedup: ratio of multiply-accumulates to reach, at least 1.
    layers: blocks to remove with `criterion='given'`, in this order. Their
      number is the budget.
    memory_gib: memory for activations per device; by default a share of what
      the device has.
    seed: for `random` and the bootstrap.
    resamples: bootstrap resamples, 0 for none.
  """

  criterion: str = 'transfer_entropy'
  target: str = 'logits'
  sign: Sign = 'signed'
  trial: str = 'skip'
  num_layers: int | None = None
  removal_ratio: float | None = None
  target_speedup: float | None = None
  layers: tuple[int, ...] = ()
  memory_gib: float | None = None
  seed: int = 0
  resamples: int = NUM_RESAMPLES


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a search is.

  Attributes:
    round_index: the current round, from 0.
    num_rounds: rounds in all.
    candidates: layers scored in this round.
    images_done: images seen in this round.
    images: images per round.
  """

  round_index: int
  num_rounds: int
  candidates: int
  images_done: int
  images: int


OnRound = Callable[[Selection], None]
OnProgress = Callable[[Progress], None]
OnImages = Callable[[int, int], None]
"""Takes the images done in a round and the images in all."""


def round_listener(
  on_progress: OnProgress | None,
  round_index: int,
  num_rounds: int,
  candidates: int,
) -> OnImages | None:
  """Adds the round to the counts of images that a criterion reports."""
  if on_progress is None:
    return None

  def listen(images_done: int, images: int) -> None:
    on_progress(
      Progress(round_index, num_rounds, candidates, images_done, images)
    )

  return listen
