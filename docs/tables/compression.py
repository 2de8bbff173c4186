"""A real backbone under one budget: the table of compress.json."""

from typing import Any

from tables.parts import origin, percent, table

_LEVERS = {
  'joint': '`lv.compress`: attention, neurons, blocks',
  'everything': '`lv.compress`: these and tokens',
  'neurons_tokens': '`lv.compress`: neurons and tokens',
  'attention': 'attention alone',
  'neurons': 'neurons alone',
  'blocks': 'blocks alone',
  'uniform': 'every MLP narrowed alike (the idea of CORP)',
  'merging': 'tokens merged (ToMe)',
  'span': 'blocks as one affine map (the idea of TOAST)',
  'dropped': 'consecutive blocks dropped, by angle',
}


def compression_tables(of_sets: dict[str, Any]) -> str:
  """One budget over every part, and each lever alone."""
  return '\n\n'.join(_section(name, found) for name, found in of_sets.items())


def _section(name: str, found: dict[str, Any]) -> str:
  rows = []
  for key, row in found['rows'].items():
    if not row.get('speedup'):
      continue
    draw, lever, _, *after = key.split(' ')
    change, half = row['change']
    rows.append(
      (
        ', '.join([_LEVERS[lever], *after]),
        draw,
        f'{row["speedup"]:.2f}',
        percent(row['top1']),
        f'{100 * change:+.2f} ± {100 * half:.2f}',
        f'{row["kl"]:.3f}',
        f'{row["parameters"] / 1e6:.2f}',
      )
    )
  text = (
    f'## One budget, a real backbone: {name}\n\n'
    'DINOv2 ViT-S/14 at 112 pixels with a fixed linear probe on its dense class '
    f'token (top-1 {percent(found["dense_top1"])}%, {found["test_images"]} test '
    f'images), nothing trained; {found["images"]} unlabelled training images for '
    'every choice and fit. Times fewer: multiply-accumulates that are executed. '
    'Divergence: of the logits from the dense ones, mean KL in nats. Change in '
    'points, with its paired 95% interval. `refit`: all MLPs refitted to all '
    'images at the end; `polish`: 300 steps of `lv.polish` (`finetune=300`) '
    'towards the dense network instead. The probe has seen the labels of all '
    'training images, so that its answers on these are nearly right.'
  )
  header = (
    'what', 'draw', 'times fewer', 'top-1 %', 'change', 'divergence',
    'M parameters',
  )  # fmt: skip
  return '\n\n'.join(
    [text, table(header, rows), origin('compress', 'compress.py', found)]
  )
