"""Read what the stages have left in a workdir, for the report.

A damaged file costs its own part of the report, never the rest: it counts as
missing, and `Results.problems` says so.
"""

import dataclasses
import struct
from collections.abc import Mapping
from typing import Any

from etils import epath

from lambda_vit_jax.cli import result_files, stage_table
from lambda_vit_jax.compression.record import Compression
from lambda_vit_jax.core.errors import CheckpointError
from lambda_vit_jax.training.metrics import read_lines

_PNG = b'\x89PNG\r\n\x1a\n'
_LARGEST_PICTURE = 1 << 24


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture of a test image.

  Attributes:
    index: of the image in the test set.
    png: the file.
    size: (width, height) in pixels.
  """

  index: int
  png: bytes
  size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Results:
  """The files of a workdir, each checked; empty where there is none.

  Attributes:
    workdir: of the run.
    config: `config.json`.
    journal: `stages.json`.
    analysis: `analysis.json`.
    selection: `selection.json`.
    linear: `linear/model.json`.
    compression: `compression.json`, None where there is none.
    evaluation: `evaluation.json`.
    benchmark: `benchmark.json`.
    metrics: rows of `metrics.jsonl`.
    pictures: in the order of the test images.
    problems: a line for every file that is left out, whole or in part.
  """

  workdir: epath.Path
  config: dict[str, Any]
  journal: dict[str, Any]
  analysis: dict[str, Any]
  selection: dict[str, Any]
  linear: dict[str, Any]
  compression: Compression | None
  evaluation: dict[str, Any]
  benchmark: dict[str, Any]
  metrics: list[dict[str, Any]]
  pictures: list[Picture]
  problems: tuple[str, ...]

  @property
  def score(self) -> str:
    """The key of the run's main score in a row of `evaluation`."""
    segments = any('mean_iou' in row for row in self.evaluation.values())
    return 'mean_iou' if segments else 'top1'

  @property
  def gone_before(self) -> list[int]:
    """Blocks whose attention was gone before the search."""
    return list(self.selection.get('removed_before', ()))

  @property
  def gone(self) -> list[int]:
    """All blocks whose attention is gone, ascending."""
    return sorted({*self.gone_before, *self.selection.get('removed', ())})

  @property
  def compresses(self) -> bool:
    """Whether the pruned model is the end of a search over all parts."""
    return _made_by(self.config, 'compress', 'compressed')

  @property
  def fits_maps(self) -> bool:
    """Whether the pruned model is the stage `linearize`'s, or led to it."""
    return _made_by(self.config, 'linearize', 'linear')

  @property
  def without_attention(self) -> list[int]:
    """Blocks whose attention the pruned network lacks, ascending."""
    if self.compression is not None and self.compresses:
      return [
        row.block for row in self.compression.left() if row.attention != 'full'
      ]
    return self.gone

  @property
  def dropped(self) -> list[int]:
    """The whole blocks that the pruned network leaves out."""
    if not self.fits_maps:
      return []
    return list(self.linear.get('linearize', {}).get('dropped', ()))


def _made_by(config: Mapping[str, Any], method: str, towards: str) -> bool:
  """Whether the pruned model is what a method makes, or was led towards it."""
  leads_to = config.get('dilute', {}).get('towards')
  made = config.get('method')
  return made == method or (made == 'dilute' and leads_to == towards)


def read_results(workdir: str | epath.Path) -> Results:
  """Reads the results of the stages so far; raises for none of them."""
  folder = epath.Path(workdir)
  problems: list[str] = []

  def read(name: str) -> dict[str, Any]:
    try:
      return result_files.read(folder, name) or {}
    except CheckpointError as error:
      problems.append(str(error))
      return {}

  def read_path() -> Compression | None:
    fields = read(stage_table.COMPRESSION)
    try:
      return Compression.from_json(fields) if fields else None
    except CheckpointError as error:
      problems.append(str(error))
      return None

  config = read(stage_table.CONFIG)
  # A search over all parts chose the network, whatever was selected before.
  searched = _made_by(config, 'compress', 'compressed')
  return Results(
    workdir=folder,
    config=config,
    journal=read(stage_table.JOURNAL),
    analysis=read(stage_table.ANALYSIS),
    selection={} if searched else read(stage_table.SELECTION),
    linear=read(stage_table.LINEAR),
    compression=read_path(),
    evaluation=read(stage_table.EVALUATION),
    benchmark=read(stage_table.BENCHMARK),
    metrics=_metrics(folder / stage_table.METRICS, problems),
    pictures=_pictures(folder / stage_table.PICTURES, problems),
    problems=tuple(problems),
  )


def _metrics(path: epath.Path, problems: list[str]) -> list[dict[str, Any]]:
  if not path.exists():
    return []
  try:
    rows, damaged = read_lines(path)
  except OSError as error:
    problems.append(f'{path}: cannot be read ({error.strerror or error})')
    return []
  if damaged:
    problems.append(
      f'{path}: {damaged} lines are damaged and left out; the curves lack '
      'their steps'
    )
  return rows


def _pictures(folder: epath.Path, problems: list[str]) -> list[Picture]:
  found = []
  for path in sorted(folder.glob('*.png')) if folder.is_dir() else ():
    try:
      png = path.read_bytes()
      header, size = png[:8], struct.unpack('>II', png[16:24])
      if header != _PNG or not path.stem.isdecimal() or 0 in size:
        raise ValueError('no picture of ours')
      if len(png) > _LARGEST_PICTURE:
        raise ValueError('too large')
    except (OSError, ValueError, struct.error) as error:
      problems.append(
        f'{path}: cannot be shown ({error}); delete it, or run the stage '
        '`evaluate` again'
      )
    else:
      found.append(Picture(int(path.stem), png, size))
  return found
