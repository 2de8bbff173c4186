"""The results of a workdir: one self-contained page, and a table."""

import html
import sys
from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table
from etils import epath

from lambda_vit_jax import checkpoint, plots
from lambda_vit_jax.metrics import read_metrics

COLUMNS = (
  'model',
  'top-1 %',
  'images',
  'parameters',
  'MACs',
  'weights',
  'images/s',
)

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 0 auto; padding: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; text-align: right;
  border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; }
figure svg { max-width: 100%; height: auto; }
@media (prefers-color-scheme: dark) {
  figure svg { filter: invert(1) hue-rotate(180deg); }
}
code { overflow-wrap: anywhere; }
"""


def _read(workdir: epath.Path, name: str) -> Any | None:
  path = workdir / name
  return checkpoint.read_json(path) if path.exists() else None


def _si(value: float, unit: str = '') -> str:
  for factor, prefix in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= factor:
      return f'{value / factor:.2f} {prefix}{unit}'
  return f'{value:.0f} {unit}'.strip()


def results_rows(workdir: str | epath.Path) -> list[tuple[str, ...]]:
  """Rows of the results table, in the order of `COLUMNS`.

  A figure that no stage has measured yet is a dash.
  """
  workdir = epath.Path(workdir)
  evaluation = _read(workdir, 'evaluation.json') or {}
  measured = _read(workdir, 'benchmark.json') or {}
  rows: list[tuple[str, ...]] = []
  for name in ('dense', 'pruned', 'exported'):
    score, size = evaluation.get(name, {}), measured.get(name, {})
    speed = size.get('images_per_second')
    rows.append(
      (
        name,
        f'{100 * score["top1"]:.2f}' if score else '–',
        str(score['num_images']) if score else '–',
        _si(size['parameters']) if 'parameters' in size else '–',
        _si(size['macs']) if 'macs' in size else '–',
        _si(size['weight_bytes'], 'B') if 'weight_bytes' in size else '–',
        f'{speed["median"]:.1f}' if speed else '–',
      )
    )
  return rows


def print_results(workdir: str | epath.Path) -> None:
  """The results table and where the page is, on stdout."""
  console = rich.console.Console(file=sys.stdout, highlight=False)
  if not console.is_terminal:
    console.width = 100
  table = rich.table.Table(*COLUMNS)
  for column in table.columns[1:]:
    column.justify = 'right'
  for row in results_rows(workdir):
    table.add_row(*row)
  console.print(table)
  selected = _read(epath.Path(workdir), 'selection.json')
  if selected:
    console.print(f'attention removed from blocks {selected["removed"]}')
  console.print(
    f'report: {epath.Path(workdir) / "report.html"}', soft_wrap=True
  )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  head = ''.join(f'<th scope="col">{html.escape(c)}</th>' for c in columns)
  body = ''.join(
    '<tr>' + ''.join(f'<td>{html.escape(c)}</td>' for c in row) + '</tr>'
    for row in rows
  )
  return (
    f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def _figure(svg: str, caption: str) -> str:
  caption = html.escape(caption)
  labelled = svg.replace('<svg', f'<svg role="img" aria-label="{caption}"', 1)
  return f'<figure>{labelled}<figcaption>{caption}</figcaption></figure>'


def _sections(workdir: epath.Path) -> list[str]:
  parts = ['<h2>Results</h2>', _table(COLUMNS, results_rows(workdir))]
  measured = _read(workdir, 'benchmark.json')
  if measured:
    parts.append(
      f'<p>Pruned runs at {measured["speedup"]:.2f} times the images per '
      f'second of dense (batch {measured["batch_size"]}, {measured["dtype"]}, '
      f'{html.escape(measured["device"])}, {measured["date"]}).</p>'
    )
  selected = _read(workdir, 'selection.json')
  if selected:
    parts.append('<h2>Selection</h2>')
    parts.append(
      f'<p>Criterion <code>{html.escape(selected["criterion"])}</code> on '
      f'<code>{html.escape(str(selected["target"]))}</code>, '
      f'{selected["num_samples"]} images: attention removed from blocks '
      f'{selected["removed"]}, in the order {selected["order"]}.</p>'
    )
    scored = [row for row in selected['rounds'] if row['scores']]
    if scored:
      parts.append(
        _figure(
          plots.transfer_entropy_rounds(scored),
          'Score of every candidate block in every round; large marks are '
          'the blocks chosen.',
        )
      )
  analysis = _read(workdir, 'analysis.json')
  if analysis:
    profile = analysis['profile']
    parts.append('<h2>Entropy per layer</h2>')
    parts.append(
      _figure(
        plots.layer_entropy(
          profile['attention_entropy'], profile['mlp_entropy']
        ),
        'Gaussian entropy of each attention and MLP output of the dense model.',
      )
    )
  if (workdir / 'metrics.jsonl').exists():
    rows = read_metrics(workdir / 'metrics.jsonl')
    for stage in ('pretrain', 'dilute'):
      stage_rows = [row for row in rows if row['stage'] == stage]
      if stage_rows:
        parts.append(f'<h2>Training: {stage}</h2>')
        for key in ('loss', 'accuracy'):
          parts.append(
            _figure(
              plots.training_curves(stage_rows, key),
              f'{key} on training batches and λ over the steps of {stage}.',
            )
          )
  return parts


def write_report(workdir: str | epath.Path) -> epath.Path:
  """Writes `WORKDIR/report.html` from whatever stages have left there."""
  workdir = epath.Path(workdir)
  config = _read(workdir, 'config.json') or {}
  variant = config.get('model', {}).get('variant', '')
  title = html.escape(f'lambda_vit_jax: {variant}')
  page = '\n'.join(
    [
      '<!doctype html><html lang="en"><head><meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>{title}</title><style>{_STYLE}</style></head><body>',
      f'<h1>{title}</h1>',
      *_sections(workdir),
      '</body></html>',
    ]
  )
  path = workdir / 'report.html'
  temporary = workdir / '.report.html.part'
  temporary.write_text(page)
  temporary.replace(path)
  return path
