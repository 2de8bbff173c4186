"""`Selection`: the result of a search, and the content of `selection.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.core.figures import axes_to_draw_in, axis_label
from lambda_vit_jax.core.files import check_json
from lambda_vit_jax.core.schema import List, Nullable, Number, Object, Text
from lambda_vit_jax.core.tables import Shown, Table

_BLOCK = Number(0, 255, whole=True)
_COUNT = Number(0, 1 << 53, whole=True)
_SCORE = Number(-1e30, 1e30)
_INDEX = r'0|[1-9]\d{0,2}'

_ROUND = Object(
  {
    'scores': Object(others=_SCORE, names=_INDEX),
    'chosen': _BLOCK,
    'seconds': Number(0, 1e12),
  },
  {
    'intervals': Object(others=List(_SCORE, 2, 2), names=_INDEX),
    'indistinguishable': List(_BLOCK),
    'suggested_images': Nullable(_COUNT),
    'dead_channels': List(_COUNT),
    'agreeing': Text(1 << 20, '(?:[0-9a-f]{2})*', 'bytes in hexadecimal'),
  },
)

SCHEMA = Object(
  {
    'criterion': Text(100),
    'target': Text(100),
    'sign': Text(100),
    'num_samples': _COUNT,
    'base_entropy': Nullable(_SCORE),
    'order': List(_BLOCK, distinct=True),
    'removed': List(_BLOCK, distinct=True),
    'rounds': List(_ROUND),
  },
  {
    'set_scores': Object(
      others=_SCORE, names=rf'(?:{_INDEX})(?:,(?:{_INDEX}))*'
    ),
    'resamples': Number(0, 1 << 20, whole=True),
    'block_evaluations': _COUNT,
    'trial': Text(100),
    'removed_before': List(_BLOCK, distinct=True),
    'top1': List(Number(0, 1)),
    'inputs': List(Text(100), distinct=True),
    'seed': Nullable(_COUNT),
  },
)
"""Of `selection.json`."""

_REMEDY = 'delete it to select again'

# Rows of the table of a search over sets of layers.
_MOST_SETS_SHOWN = 10


@dataclasses.dataclass(frozen=True)
class Round:
  """One round of a search.

  Attributes:
    scores: per candidate; nats for `transfer_entropy` and `loss_increase`.
    chosen: the block that was removed.
    seconds: wall time.
    intervals: 95% interval per candidate, symmetric about the score (see
      `bootstrap.half_width`); may be empty.
    indistinguishable: candidates whose distance to the chosen one has a 95%
      interval that contains zero.
    suggested_images: images that would separate them; None where unknown or
      more than ten million.
    dead_channels: channels of the target left out of this round's entropies.
    agreeing: resamples that choose the same block, as packed bits in
      hexadecimal, so that a resumed search can count those that agree in all
      rounds.
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
    """A plain dict, as in `selection.json`; blocks as keys are strings."""
    return _listed(self) | {
      name: {str(block): value for block, value in getattr(self, name).items()}
      for name in ('scores', 'intervals')
    }

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


def _listed(record: Any) -> dict[str, Any]:
  """The fields, with tuples as the lists that JSON returns for them."""
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in vars(record).items()
  }


@dataclasses.dataclass(frozen=True, repr=False)
class Selection(Shown):
  """The layers to remove, and the scores behind the choice.

  Attributes:
    criterion: `transfer_entropy`, or another name of the config's
      `select.criterion`.
    target: `logits` or `features`; `loss` for `loss_increase` and `probe`.
    sign: `signed` or `absolute`, as the search ran: criteria other than
      `transfer_entropy` and `loss_increase` are always `signed`.
    num_samples: images that the scores were measured on, 0 for none.
    base_entropy: entropy of the unmodified model's target in nats, or None.
    order: blocks in the order in which they were chosen.
    removed: the same, ascending.
    rounds: one per block of `order`; none for `exhaustive` and `probe`.
    set_scores: score per set of blocks, for `exhaustive` and `probe` only.
    resamples: bootstrap resamples, 0 for none.
    block_evaluations: blocks run per image.
    trial: what replaced a candidate's attention while it was scored: nothing
      (`skip`) or an affine map fitted for it (`linear`).
    removed_before: blocks of the given model that had no attention already.
    top1: accuracy on the images of the search with the first 0, 1, … layers of
      `order` left out and nothing trained, where the stage `select` has labels;
      else empty.
    inputs: of the maps that were tried, with criterion `output`; else empty, as
      in files of earlier versions.
    seed: where chance has a part in the scores or their intervals, if known.
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
  removed_before: tuple[int, ...] = ()
  top1: tuple[float, ...] = ()
  inputs: tuple[str, ...] = ()
  seed: int | None = None

  @property
  def all_removed(self) -> tuple[int, ...]:
    """Blocks without attention once `removed` is gone too, ascending."""
    return tuple(sorted({*self.removed, *self.removed_before}))

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
      top1=(),
    )

  def first(self, count: int) -> 'Selection':
    """The search as it was after `count` rounds: fewer layers, chosen alike.

    One without rounds (`exhaustive`, `probe`) has all its layers, or none fewer.

    Raises:
      CheckpointError: fewer rounds, or a search of another kind.
    """
    if count == len(self.order):
      return self
    if not 0 <= count <= len(self.rounds):
      raise CheckpointError(
        f'num_layers={count}: the selection has {len(self.rounds)} rounds; give '
        'at most so many, or search again'
      )
    order = self.order[:count]
    return dataclasses.replace(
      self,
      order=order,
      removed=tuple(sorted(order)),
      rounds=self.rounds[:count],
      top1=self.top1[: count + 1],
    )

  @property
  def agreement(self) -> float | None:
    """Share of resamples with the same choice in every round, if known."""
    if not self.rounds or not all(row.agreeing for row in self.rounds):
      return None
    bits = [
      np.unpackbits(np.frombuffer(bytes.fromhex(row.agreeing), np.uint8))
      for row in self.rounds
    ]
    # Bytes are padded; a damaged file may hold too few.
    if not 0 < self.resamples <= min(map(len, bits)):
      return None
    return float(np.all([row[: self.resamples] for row in bits], axis=0).mean())

  def to_json(self) -> dict[str, Any]:
    """The content of `selection.json`; see docs/files.md."""
    return _listed(self) | {
      'rounds': [row.to_json() for row in self.rounds],
      'set_scores': {
        ','.join(map(str, blocks)): value
        for blocks, value in self.set_scores.items()
      },
      'agreement': self.agreement,
      'all_removed': list(self.all_removed),
    }

  @classmethod
  def from_json(
    cls, fields: Mapping[str, Any], where: str = 'selection.json'
  ) -> 'Selection':
    """Inverse of `to_json`; fields that old versions lack may be missing.

    Args:
      fields: parsed JSON.
      where: the file, for messages.

    Raises:
      CheckpointError: not the content of a `selection.json`.
    """
    check_json(fields, where, SCHEMA, _REMEDY)
    found = cls(
      criterion=fields['criterion'],
      target=fields['target'],
      sign=fields['sign'],
      num_samples=fields['num_samples'],
      base_entropy=fields['base_entropy'],
      order=tuple(fields['order']),
      removed=tuple(fields['removed']),
      rounds=tuple(Round.from_json(row) for row in fields['rounds']),
      set_scores={
        tuple(int(block) for block in key.split(',')): float(value)
        for key, value in fields.get('set_scores', {}).items()
      },
      resamples=fields.get('resamples', 0),
      block_evaluations=fields.get('block_evaluations', 0),
      trial=fields.get('trial', 'skip'),
      removed_before=tuple(fields.get('removed_before', ())),
      top1=tuple(map(float, fields.get('top1', ()))),
      inputs=tuple(fields.get('inputs', ())),
      seed=fields.get('seed'),
    )
    if problem := found.contradiction():
      raise CheckpointError(f'{where}: {problem}; {_REMEDY}')
    return found

  def contradiction(self) -> str:
    """What in the record does not fit the rest of it, or ''."""
    bits = {len(row.agreeing) for row in self.rounds}
    if len(bits) > 1 or 4 * max(bits, default=0) < self.resamples * any(bits):
      return '`agreeing` and `resamples` differ in length'
    for index, row in enumerate(self.rounds):
      if row.chosen not in row.scores:
        return f'`rounds[{index}].scores` has no block {row.chosen}'
    if self.top1 and len(self.top1) != len(self.order) + 1:
      return '`top1` and `order` differ in length'
    return ''

  def table(self) -> Table:
    """One row per round, or per set of layers: the best ones."""
    agreement = self.agreement
    captions = [f'{self.num_samples} images']
    if self.removed_before:
      captions.append(f'gone before: {list(self.removed_before)}')
    if self.trial != 'skip':
      captions.append(f'{self.trial} trials')
    if agreement is not None:
      captions.append(
        f'{agreement:.0%} of {self.resamples} resamples choose alike'
      )
    rows = self._set_rows() if self.set_scores else self._round_rows()
    header = ['round', 'block', 'score', '95%', 'as good as', 'seconds']
    if self.set_scores:
      header = ['layers', 'score']
      captions.append(f'{len(rows)} of {len(self.set_scores)} sets')
    return Table(
      title=f'{self.criterion} on {self.target}: removed {list(self.removed)}',
      header=header,
      rows=rows,
      caption='; '.join(captions),
    )

  def _round_rows(self) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
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
    return rows

  def _set_rows(self) -> list[tuple[str, ...]]:
    """The chosen set, and then those of least score."""
    size = abs if self.sign == 'absolute' else float
    scores = self.set_scores
    # In a probe, a set of a shorter rung may have a lower loss.
    ranking = sorted(
      scores, key=lambda blocks: (blocks != self.removed, size(scores[blocks]))
    )
    return [
      (' '.join(map(str, blocks)), f'{scores[blocks]:.4g}')
      for blocks in ranking[:_MOST_SETS_SHOWN]
    ]

  def plot(self, ax: Any = None) -> Any:
    """Scores of every round over the blocks, as a matplotlib `Figure`.

    Args:
      ax: axes to draw in; those of a new figure by default.
    """
    figure, (axes, *_) = axes_to_draw_in(ax)
    for index, row in enumerate(self.rounds):
      blocks = sorted(row.scores)
      values = [row.scores[block] for block in blocks]
      color = f'C{index}'
      label = f'{index + 1}: block {row.chosen}'
      axes.plot(blocks, values, marker='.', lw=0.8, color=color, label=label)
      axes.plot(row.chosen, row.scores[row.chosen], marker='o', color=color)
      known = [block for block in blocks if block in row.intervals]
      if known:
        low, high = zip(*(row.intervals[block] for block in known), strict=True)
        axes.fill_between(known, low, high, alpha=0.15, color=color, lw=0)
    axes.set_xlabel('block')
    axes.set_ylabel(axis_label(self.criterion))
    if self.rounds:
      axes.legend(title='round', frameon=False)
    return figure
