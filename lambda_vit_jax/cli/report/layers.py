"""The part of the page about the layers of the dense model: `analysis.json`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lambda_vit_jax.cli.report import html, plots
from lambda_vit_jax.cli.report.html import number
from lambda_vit_jax.cli.report.results import Results


def section(results: Results) -> list[str]:
  """Entropy, cosine and spectrum by depth, with the removed blocks marked."""
  profile = results.analysis.get('profile')
  if not profile:
    return []
  removed = results.without_attention
  figures = [_entropy(profile, removed)]
  cosine = profile.get('cosine_similarity')
  if cosine:
    figures.append(_cosine(cosine, removed))
  spectrum = results.analysis.get('spectrum', {})
  frequencies = spectrum.get('frequencies', [])
  rows = spectrum.get('relative_log_amplitude', [])
  if rows and all(len(row) == len(frequencies) > 0 for row in rows):
    figures.append(_spectrum(frequencies, rows))
  images = profile.get('num_images')
  said = f'Of the dense model, on {images:,} held-out images.' if images else ''
  return [
    '<h2>Entropy per layer</h2>',
    *([html.soft(said)] if said else []),
    f'<div class="figures">{"".join(figures)}</div>',
  ]


def _entropy(profile: Mapping[str, Any], removed: Sequence[int]) -> str:
  attention, mlp = profile['attention_entropy'], profile['mlp_entropy']
  rows = [
    (str(k), number(a), number(m), 'removed' * (k in removed))
    for k, (a, m) in enumerate(zip(attention, mlp, strict=True))
  ]
  return html.figure(
    plots.layer_entropy(attention, mlp, removed),
    'Gaussian entropy of each attention and MLP output of the dense model.',
    ('block', 'attention (nats)', 'MLP (nats)', 'attention'),
    rows,
  )


def _cosine(cosine: Sequence[float | None], removed: Sequence[int]) -> str:
  return html.figure(
    plots.over_blocks(cosine, removed, 'cosine'),
    'Cosine of the stream before and after each attention layer; 1 where the '
    'layer turns nothing.',
    ('block', 'cosine', 'attention'),
    [
      (str(k), number(value), 'removed' * (k in removed))
      for k, value in enumerate(cosine)
    ],
  )


def _spectrum(
  frequencies: Sequence[float], rows: Sequence[Sequence[float]]
) -> str:
  """The first, the middle and the last block; all of them in numbers."""
  last = len(rows) - 1
  drawn = {f'block {k}': rows[k] for k in dict.fromkeys((0, last // 2, last))}
  return html.figure(
    plots.spectrum(frequencies, drawn),
    'Amplitude of spatial frequencies in the output of a block, relative to that '
    'of the mean over the tokens, as a difference of natural logarithms.',
    ('block', *(f'{f / math.pi:.2f}π' for f in frequencies)),
    [(str(k), *map(number, row)) for k, row in enumerate(rows)],
  )
