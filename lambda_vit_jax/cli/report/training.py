"""The part of the page about training: `metrics.jsonl`."""

from collections.abc import Mapping, Sequence
from typing import Any

from lambda_vit_jax.cli.report import html, plots
from lambda_vit_jax.cli.report.html import escape, number
from lambda_vit_jax.cli.report.results import Results

# Stages that are to be compared share their axes.
_GROUPS = (('pretrain',), ('linearize',), ('dilute', 'baseline'))

# What a row must have to be drawn.
_CURVES = {'loss', 'lambda'}

# Most rows in the tables that go with the plots.
_MOST_ROWS = 60

_UNITS = {'loss': 'loss (nats)', 'accuracy': 'accuracy (%)'}


def section(results: Results) -> list[str]:
  """Loss and accuracy of every stage that trained, from step 0."""
  parts = []
  for group in _GROUPS:
    curves = {stage: _rows(results, stage) for stage in group}
    curves = {stage: rows for stage, rows in curves.items() if rows}
    together = [row for rows in curves.values() for row in rows]
    for stage, rows in curves.items():
      parts += _stage(stage, rows, together)
  return parts


def _rows(results: Results, stage: str) -> list[dict[str, Any]]:
  return [
    row
    for row in results.metrics
    if row['stage'] == stage and row.keys() >= _CURVES
  ]


def _stage(
  stage: str,
  rows: Sequence[Mapping[str, Any]],
  together: Sequence[Mapping[str, Any]],
) -> list[str]:
  """Loss, and accuracy where there are labels, over the steps of a stage."""
  drawn = []
  for key in ('loss', 'accuracy'):
    curve = [row for row in rows if key in row]
    if curve:
      drawn.append(_figure(stage, curve, key, together))
  return [
    f'<h2>Training: {escape(stage)}</h2>',
    f'<div class="figures">{"".join(drawn)}</div>',
  ]


def _figure(
  stage: str,
  curve: Sequence[Mapping[str, Any]],
  key: str,
  together: Sequence[Mapping[str, Any]],
) -> str:
  every = -(-len(curve) // _MOST_ROWS)
  held = f'holdout_{key}'
  scale = 100.0 if key == 'accuracy' else 1.0
  # Rows with a held-out figure are the ones to look for.
  kept = [row for k, row in enumerate(curve) if k % every == 0 or held in row][
    : 2 * _MOST_ROWS
  ]
  cells = [
    (
      str(row['step']),
      number(scale * row[key]),
      number(scale * row[held]) if held in row else '–',
      number(row['lambda']),
    )
    for row in kept
  ]
  return html.figure(
    plots.training_curves(curve, key, plots.training_limits(together, key)),
    f'{key} on training batches and on held-out images, and λ (dashed), over '
    f'the steps of {stage}.',
    ('step', _UNITS[key], 'held out', 'λ'),
    cells,
  )
