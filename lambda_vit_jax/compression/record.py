"""`Compression`: the result of `compress`, and the content of `compression.json`."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from lambda_vit_jax.compression.parts import Kind
from lambda_vit_jax.compression.schema import SCHEMA
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import CheckpointError, UsageError
from lambda_vit_jax.core.figures import axes_to_draw_in, axis_label
from lambda_vit_jax.core.files import check_json
from lambda_vit_jax.core.tables import Shown, Table
from lambda_vit_jax.models.model import Model

_REMEDY = 'delete it to search again'


@dataclasses.dataclass(frozen=True)
class BlockLeft:
  """What is left of a block.

  Attributes:
    block: index in the variant.
    attention: its mode, None for a block that is gone.
    neurons: width of its MLP, likewise.
    merged: patch tokens that merge with others after its attention.
  """

  block: int
  attention: str | None
  neurons: int | None
  merged: int = 0


@dataclasses.dataclass(frozen=True)
class Point:
  """A network on the way, by its size.

  Attributes:
    macs: multiply-accumulates of one image that are executed.
    parameters: their number.
    error: the score of `compression.scores`; the dense network has 0.
    ms: per image, with `cost='time'`.
  """

  macs: int
  parameters: int
  error: float
  ms: float | None = None


@dataclasses.dataclass(frozen=True)
class Step(Point):
  """One step: a part that went, and the network after it.

  Attributes:
    part: its kind, of `parts.KINDS`.
    block: its block, as the variant counts.
    attention: what the block has after it, see `BlockLeft`.
    neurons: likewise.
    merged: likewise.
    settled: whether all later MLPs were refitted after it, and `error` is that of
      the refitted network; None where that was not tried.
    scores: of the candidates that were scored for this step: block, kind, and
      the score of the network without that part.
    seconds: wall time.
  """

  part: Kind = 'attention'
  block: int = 0
  attention: str | None = None
  neurons: int | None = None
  merged: int = 0
  settled: bool | None = None
  scores: tuple[tuple[int, Kind, float], ...] = ()
  seconds: float = 0.0


@dataclasses.dataclass(frozen=True, repr=False)
class Compression(Shown):
  """A path from a network to smaller ones, each made from the one before.

  Attributes:
    options: how the search was run, as the keywords of `compress`.
    target_speedup: of the cost, against the dense network.
    num_images: those of the search, to fit on and to score.
    dense: the network that all are compared with.
    start: the network that the search began with; mostly the same.
    blocks: what the dense network has per block, and the start instead of it
      where a part was gone already.
    steps: in order.
    pending: how much the error grew by each part that is left when it was last
      scored; a resumed search goes on from these.
    timings: ms per image of each kind of block, with `cost='time'`.
    evaluations: what the search cost, in forward passes of the dense network
      over all images, without the sums that fits take; of a search that was
      interrupted, those of all its parts.
    models: the network at the start and after each step; none in a record that
      was read from a file.
  """

  options: Mapping[str, Any]
  target_speedup: float
  num_images: int
  dense: Point
  start: Point
  blocks: tuple[BlockLeft, ...]
  steps: tuple[Step, ...] = ()
  pending: tuple[tuple[int, Kind, float], ...] = ()
  timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
  evaluations: float = 0.0
  models: tuple[Model, ...] = dataclasses.field(default=(), compare=False)

  @property
  def model(self) -> Model:
    """The network after the last step.

    Raises:
      UsageError: a record without models.
    """
    return self._models[-1]

  @property
  def _models(self) -> tuple[Model, ...]:
    if not self.models:
      raise UsageError(
        'this Compression was read from a file, which holds no models; '
        'compress(model, batches, resume=…) makes them again'
      )
    return self.models

  @property
  def points(self) -> tuple[Point, ...]:
    """The start, and the network after each step."""
    return (self.start, *self.steps)

  def speedup(self, point: Point) -> float:
    """How many times less a network costs than the dense one."""
    if point.ms is not None and self.dense.ms is not None:
      return self.dense.ms / point.ms
    return self.dense.macs / point.macs

  @property
  def reached(self) -> float:
    """The speed-up at the end of the path."""
    return self.speedup(self.points[-1])

  @check_arguments
  def at(self, speedup: float) -> Model:
    """The first network of the path that is at least so many times as fast.

    Between two refits of all MLPs, one more brings it nearer to the dense
    network: `lv.refit(found.at(1.5), dense, batches)`.

    Raises:
      UsageError: the path does not reach it, or a record without models.
    """
    return self._models[self.steps_to(speedup)]

  @check_arguments
  def steps_to(self, speedup: float) -> int:
    """Steps to the first network that is at least so many times as fast.

    Raises:
      UsageError: the path does not reach it.
    """
    for number, point in enumerate(self.points):
      if self.speedup(point) >= speedup:
        return number
    raise UsageError(
      f'at({speedup:g}): the path ends at {self.reached:.3f}; '
      f'compress(model, batches, target_speedup={speedup:g}) goes further'
    )

  def frontier(self) -> tuple[tuple[float, float], ...]:
    """Pairs of speed-up and error, without networks that a faster one beats."""
    pairs = [(self.speedup(point), point.error) for point in self.points]
    found: list[tuple[float, float]] = []
    for speedup, error in reversed(pairs):
      if not found or error < found[-1][1]:
        found.append((speedup, error))
    return tuple(reversed(found))

  def left(self, steps: int | None = None) -> tuple[BlockLeft, ...]:
    """What is left of each block after some of the steps, by default all."""
    found = {row.block: row for row in self.blocks}
    for step in self.steps[:steps]:
      found[step.block] = BlockLeft(
        step.block, step.attention, step.neurons, step.merged
      )
    return tuple(found.values())

  def to_json(self) -> dict[str, Any]:
    """The content of `compression.json`; see docs/files.md."""
    return {
      'options': {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in self.options.items()
      },
      'target_speedup': self.target_speedup,
      'num_images': self.num_images,
      'dense': dataclasses.asdict(self.dense),
      'start': dataclasses.asdict(self.start),
      'blocks': [dataclasses.asdict(row) for row in self.blocks],
      'steps': [
        dataclasses.asdict(step) | {'scores': _listed(step.scores, 'score')}
        for step in self.steps
      ],
      'pending': _listed(self.pending, 'increase'),
      'timings': dict(self.timings),
      'evaluations': self.evaluations,
    }

  @classmethod
  def from_json(
    cls, fields: Mapping[str, Any], where: str = 'compression.json'
  ) -> 'Compression':
    """Inverse of `to_json`, without models.

    Args:
      fields: parsed JSON.
      where: the file, for messages.

    Raises:
      CheckpointError: not the content of a `compression.json`.
    """
    check_json(fields, where, SCHEMA, _REMEDY)
    found = cls(
      options={
        key: tuple(value) if isinstance(value, list) else value
        for key, value in fields['options'].items()
      },
      target_speedup=fields['target_speedup'],
      num_images=fields['num_images'],
      dense=_row(Point, fields['dense']),
      start=_row(Point, fields['start']),
      blocks=tuple(_row(BlockLeft, row) for row in fields['blocks']),
      steps=tuple(
        _row(Step, row | {'scores': _tuples(row['scores'], 'score')})
        for row in fields['steps']
      ),
      pending=_tuples(fields['pending'], 'increase'),
      timings=fields.get('timings', {}),
      evaluations=fields.get('evaluations', 0.0),
    )
    known = {row.block for row in found.blocks}
    for step in found.steps:
      if step.block not in known:
        raise CheckpointError(
          f'{where}: a step is about block {step.block}, which the network '
          f'does not have; {_REMEDY}'
        )
    return found

  def table(self) -> Table:
    """One row per step."""
    rows = [
      (
        str(index + 1),
        step.part,
        str(step.block),
        f'{self.speedup(step):.3f}',
        f'{step.macs / 1e6:,.1f}',
        f'{step.parameters / 1e6:,.2f}',
        f'{step.error:.4g}',
      )
      for index, step in enumerate(self.steps)
    ]
    captions = [f'{self.num_images} images']
    if self.evaluations:
      captions.append(f'{self.evaluations:.1f} evaluations of them')
    return Table(
      title=(
        f'{self.reached:.3f} times as fast, by {self.options["criterion"]} per '
        f'{self.options["cost"]}'
      ),
      header=(
        'step',
        'part',
        'block',
        'speed-up',
        'MACs (M)',
        'parameters (M)',
        'error',
      ),
      rows=rows,
      caption='; '.join(captions),
    )

  def plot(self, ax: Any = None) -> Any:
    """Error over speed-up, and what is left of each block, as a `Figure`.

    Args:
      ax: two axes to draw in; those of a new figure by default. Of one, only
        the first picture is drawn.
    """
    figure, (curve, *more) = axes_to_draw_in(ax, 2, (9.0, 3.6))
    pairs = [(self.speedup(point), point.error) for point in self.points]
    curve.plot(*zip(*pairs, strict=True), marker='.', lw=0.8)
    curve.set_xlabel('speed-up')
    curve.set_ylabel(axis_label(self.options['criterion']))
    if more:
      self._plot_strip(more[0])
    return figure

  @property
  def mlp_shares(self) -> list[float]:
    """Of each block, the share of the widest MLP's neurons that is left."""
    widest = max((row.neurons or 0 for row in self.blocks), default=0) or 1
    return [(row.neurons or 0) / widest for row in self.left()]

  @property
  def attention_shares(self) -> dict[str, list[float]]:
    """Per kind and for each block, about what is left of attention's cost."""
    rows = self.left()
    return {
      name: [share * (row.attention == mode) for row in rows]
      for name, mode, share in _ATTENTION
    }

  def _plot_strip(self, axes: Any) -> None:
    """Per block what is left of the MLP, and below that of its attention."""
    blocks = [row.block for row in self.left()]
    axes.bar(blocks, self.mlp_shares, label='MLP')
    for name, shares in self.attention_shares.items():
      axes.bar(blocks, [-share for share in shares], label=name)
    axes.axhline(0.0, color='black', lw=0.8)
    axes.set_xticks(blocks)
    axes.set_yticks([])
    axes.set_xlabel('block')
    axes.legend(frameon=False, fontsize='small')


# Name, mode, and share of the cost. A map takes about a quarter of it.
_ATTENTION = (('attention', 'full', 1.0), ('map', 'linear', 0.25))


def _row(cls: Any, fields: Mapping[str, Any]) -> Any:
  """A dataclass of its fields; other keys are passed over."""
  names = {field.name for field in dataclasses.fields(cls)}
  return cls(**{name: fields[name] for name in fields if name in names})


def _listed(
  rows: Iterable[tuple[int, Kind, float]], value: str
) -> list[dict[str, Any]]:
  """Block, kind and a value as JSON has them."""
  return [dict(zip(('block', 'part', value), row, strict=True)) for row in rows]


def _tuples(
  rows: Iterable[Mapping[str, Any]], value: str
) -> tuple[tuple[int, Kind, float], ...]:
  """Inverse of `_listed`."""
  return tuple((row['block'], row['part'], float(row[value])) for row in rows)
