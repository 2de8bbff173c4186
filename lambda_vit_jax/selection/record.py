"""`Selection`: what a search found, and what `selection.json` holds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.tables import Shown, Table


@dataclasses.dataclass(frozen=True)
class Round:
  """One round of a search.

  Attributes:
    scores: per candidate; nats for `transfer_entropy` and `loss_increase`.
    chosen: the block that was removed.
    seconds: wall time.
    intervals: 95% interval per candidate, from the bootstrap; may be empty.
    indistinguishable: candidates that cannot be told from the chosen one.
    suggested_images: images that would tell them; None where unknown or more
      than ten million.
    dead_channels: channels of the target left out of this round's entropies.
    agreeing: resamples that choose alike, as the hexadecimal form of packed
      bits, so that a resumed search can count those that agree throughout.
  """

  scores: dict[int, float]
  chosen: int
  seconds: float
  intervals: dict[int, tuple[float, float]] = dataclasses.field(
    default_factory=dict
  )
  indistinguishable: tuple[int, ...] = ()
  suggested_images: int | None = None
  dead_channels: tuple[int, ...] = ()
  agreeing: str = ''

  @property
  def transfer_entropy(self) -> dict[int, float]:
    """The scores, by the paper's name."""
    return self.scores

  def to_json(self) -> dict[str, Any]:
    """A plain dict, as in `selection.json`; keys of blocks are texts."""
    fields = dataclasses.asdict(self)
    for name in ('scores', 'intervals'):
      fields[name] = {
        str(block): value for block, value in fields[name].items()
      }
    return _listed(fields)

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'Round':
    """Inverse of `to_json`."""
    return cls(
      scores={int(k): float(v) for k, v in fields['scores'].items()},
      chosen=int(fields['chosen']),
      seconds=float(fields['seconds']),
      intervals={
        int(k): (float(low), float(high))
        for k, (low, high) in fields.get('intervals', {}).items()
      },
      indistinguishable=tuple(fields.get('indistinguishable', ())),
      suggested_images=fields.get('suggested_images'),
      dead_channels=tuple(fields.get('dead_channels', ())),
      agreeing=fields.get('agreeing', ''),
    )


def _listed(fields: dict[str, Any]) -> dict[str, Any]:
  """Tuples as lists, which is what they are when read back."""
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in fields.items()
  }


@dataclasses.dataclass(frozen=True)
class Selection(Shown):
  """The layers to remove, and why (METHOD, section 4).

  Attributes:
    criterion: `transfer_entropy`, or another name of the config's
      `select.criterion`.
    target: `logits` or `features`.
    sign: `signed` or `absolute`.
    num_samples: images behind the scores, 0 where none were looked at.
    base_entropy: H of the target of the model as it is, in nats, or None.
    order: blocks as they were chosen.
    removed: the same, ascending.
    rounds: one per block of `order` (none for `exhaustive`).
    set_scores: score per set of blocks, for `exhaustive` only.
    resamples: of the bootstrap, 0 for none.
    block_evaluations: blocks run per image.
    trial: what a trial puts in place of a candidate's attention: `skip`
      nothing, `linear` an affine map that is fitted for it.
  """

  criterion: str
  target: str
  sign: str
  num_samples: int
  base_entropy: float | None
  order: tuple[int, ...] = ()
  removed: tuple[int, ...] = ()
  rounds: tuple[Round, ...] = ()
  set_scores: dict[tuple[int, ...], float] = dataclasses.field(
    default_factory=dict
  )
  resamples: int = 0
  block_evaluations: int = 0
  trial: str = 'skip'

  def with_round(
    self,
    row: Round,
    base_entropy: float | None = None,
    block_evaluations: int = 0,
  ) -> 'Selection':
    """Adds a finished round; the base entropy is that of the first one."""
    order = (*self.order, row.chosen)
    return dataclasses.replace(
      self,
      base_entropy=(
        base_entropy if self.base_entropy is None else self.base_entropy
      ),
      order=order,
      removed=tuple(sorted(order)),
      rounds=(*self.rounds, row),
      block_evaluations=self.block_evaluations + block_evaluations,
    )

  @property
  def agreement(self) -> float | None:
    """Share of resamples that choose alike in every round; None if unknown."""
    if not self.rounds or not all(row.agreeing for row in self.rounds):
      return None
    bits = [
      np.unpackbits(np.frombuffer(bytes.fromhex(row.agreeing), np.uint8))
      for row in self.rounds
    ]
    return float(np.all(bits, axis=0)[: self.resamples].mean())

  def to_json(self) -> dict[str, Any]:
    """The content of `selection.json` (METHOD, section 7)."""
    return {
      'criterion': self.criterion,
      'target': self.target,
      'sign': self.sign,
      'num_samples': self.num_samples,
      'base_entropy': self.base_entropy,
      'order': list(self.order),
      'removed': list(self.removed),
      'rounds': [row.to_json() for row in self.rounds],
      'set_scores': {
        ','.join(map(str, blocks)): value
        for blocks, value in self.set_scores.items()
      },
      'resamples': self.resamples,
      'agreement': self.agreement,
      'block_evaluations': self.block_evaluations,
      'trial': self.trial,
    }

  @classmethod
  def from_json(cls, fields: Mapping[str, Any]) -> 'Selection':
    """Inverse of `to_json`; fields beyond METHOD's may be missing.

    Raises:
      CheckpointError: not the content of a `selection.json`.
    """
    try:
      return cls(
        criterion=fields['criterion'],
        target=fields['target'],
        sign=fields['sign'],
        num_samples=int(fields['num_samples']),
        base_entropy=fields['base_entropy'],
        order=tuple(int(block) for block in fields['order']),
        removed=tuple(int(block) for block in fields['removed']),
        rounds=tuple(Round.from_json(row) for row in fields['rounds']),
        set_scores={
          tuple(int(block) for block in key.split(',')): float(value)
          for key, value in fields.get('set_scores', {}).items()
        },
        resamples=int(fields.get('resamples', 0)),
        block_evaluations=int(fields.get('block_evaluations', 0)),
        trial=fields.get('trial', 'skip'),
      )
    except (
      AttributeError,
      KeyError,
      OverflowError,
      TypeError,
      ValueError,
    ) as error:
      raise CheckpointError(
        f'not a selection ({error!r}); delete selection.json to select again'
      ) from error

  def table(self) -> Table:
    """One row per round."""
    rows = []
    for index, row in enumerate(self.rounds):
      interval = row.intervals.get(row.chosen)
      rows.append(
        (
          str(index + 1),
          str(row.chosen),
          f'{row.scores[row.chosen]:.4g}',
          '[{:.4g}, {:.4g}]'.format(*interval) if interval else '',
          ' '.join(map(str, row.indistinguishable)),
          f'{row.seconds:.1f}',
        )
      )
    agreement = self.agreement
    return Table(
      title=f'{self.criterion} on {self.target}: removed {list(self.removed)}',
      header=('round', 'block', 'score', '95%', 'as good as', 'seconds'),
      rows=rows,
      caption=f'{self.num_samples} images'
      + ('' if self.trial == 'skip' else f'; {self.trial} trials')
      + (
        f'; {agreement:.0%} of {self.resamples} resamples choose alike'
        if agreement is not None
        else ''
      ),
    )

  def plot(self) -> Any:
    """Scores of every round over the blocks, as a matplotlib `Figure`."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(6.4, 3.6), layout='constrained')
    axes = figure.add_subplot()
    for index, row in enumerate(self.rounds):
      blocks = sorted(row.scores)
      values = [row.scores[block] for block in blocks]
      color = f'C{index}'
      label = f'{index + 1}: block {row.chosen}'
      axes.plot(blocks, values, marker='.', lw=0.8, color=color, label=label)
      axes.plot(row.chosen, row.scores[row.chosen], marker='o', color=color)
      if row.intervals:
        low, high = zip(
          *(row.intervals[block] for block in blocks), strict=True
        )
        axes.fill_between(blocks, low, high, alpha=0.15, color=color, lw=0)
    axes.set_xlabel('block')
    axes.set_ylabel(self.criterion.replace('_', ' '))
    if self.rounds:
      axes.legend(title='round', frameon=False)
    return figure
