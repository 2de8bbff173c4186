"""Options of a search, and the progress that it reports."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from lambda_vit_jax.selection.record import Selection

Sign = Literal['signed', 'absolute']

NUM_RESAMPLES = 1000


def canonical(criterion: str) -> str:
  """The name of a criterion; `nose` is the search that takes `transfer_entropy`.

  >>> canonical('exhaustive:nose')
  'exhaustive:transfer_entropy'
  """
  words = criterion.split(':')
  return ':'.join(
    'transfer_entropy' if w.lower() == 'nose' else w for w in words
  )


@dataclasses.dataclass(frozen=True)
class SearchOptions:
  """What to search for: keywords of `nose.nose`, config keys `select.*`."""

  criterion: str = 'transfer_entropy'
  target: str = 'logits'
  sign: Sign = 'signed'
  trial: str = 'skip'
  inputs: tuple[str, ...] = ('token',)
  num_layers: int | None = None
  removal_ratio: float | None = None
  target_speedup: float | None = None
  layers: tuple[int, ...] = ()
  memory_gib: float | None = None
  seed: int = 0
  resamples: int = NUM_RESAMPLES

  @property
  def budget(self) -> dict[str, Any]:
    """The arguments of `budget.resolve_num_layers`."""
    names = ('num_layers', 'removal_ratio', 'target_speedup')
    return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Progress:
  """Progress of a search.

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
  on_progress: OnProgress | None, *counts: int
) -> OnImages | None:
  """Adds the first three counts of `Progress` to those of images."""
  if on_progress is None:
    return None
  return lambda *images: on_progress(Progress(*counts, *images))
