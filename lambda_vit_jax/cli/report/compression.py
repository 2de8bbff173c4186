"""The part of the report about a search over all parts: `compression.json`."""

from lambda_vit_jax.cli.report import html, plots
from lambda_vit_jax.cli.report.html import escape
from lambda_vit_jax.cli.report.speed_table import si
from lambda_vit_jax.compression.record import Compression


def unit_of(found: Compression) -> str:
  """The unit of the errors."""
  options = found.options
  squares = (options['criterion'], options['target']) == ('output', 'features')
  return 'mean square' if squares else 'nats'


def section(found: Compression) -> list[str]:
  """Shows the path of the search, and what is left of each block."""
  pairs = [(found.speedup(point), point.error) for point in found.points]
  rows = [
    (
      str(index + 1),
      step.part,
      str(step.block),
      f'{found.speedup(step):.3f}',
      f'{step.error:.4g}',
      si(step.macs),
      si(step.parameters),
    )
    for index, step in enumerate(found.steps)
  ]
  options = found.options
  unit = unit_of(found)
  columns = (
    'step',
    'part',
    'block',
    'speed-up (times)',
    f'error ({unit})',
    'MACs executed',
    'parameters',
  )
  curve = html.figure(
    plots.speed_against_error(pairs, found.target_speedup, unit),
    'Error of the output on held-out images over the speed-up, from the dense '
    'network to the last step; dashed: the speed-up asked for.',
    columns,
    rows,
  )
  left = html.figure(
    plots.strip(found.mlp_shares, found.attention_shares),
    'What is left of each block: above the width of its MLP, below its attention '
    'or the map in its place, each as a share of what it costs.',
    ('block', 'attention', 'neurons', 'tokens merged'),
    [
      (
        str(row.block),
        row.attention or 'gone',
        str(row.neurons or 'none'),
        str(row.merged),
      )
      for row in found.left()
    ],
  )
  return [
    '<h2>Compression</h2>',
    f'<p>{escape(f"{found.reached:.3f}")} times as fast in '
    f'{len(found.steps)} steps, by <code>{escape(options["criterion"])}</code> '
    f'per <code>{escape(options["cost"])}</code> on '
    f'{escape(found.num_images)} images.</p>',
    f'<div class="figures">{curve}{left}</div>',
  ]
