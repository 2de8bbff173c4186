"""The sections of docs/performance_deployed.md, and bfloat16 on CPUs."""

from collections.abc import Callable
from typing import Any

from tables.parts import origin, percent, span, table

HEAD = """# Performance where it is deployed

Made by [`docs/make_tables.py`](make_tables.py) from the figures in
[`docs/benchmarks`](benchmarks). How to take an export to each of these programs is in
[deploy.md](deploy.md).
"""

NOT_MEASURED = {
  'gpu': """
## One GPU

Not measured yet: no GPU was at hand. `python benchmarks/gpu.py` measures
inference and training beside timm, attention kernels, the search and the input
pipeline in at most nine minutes, and this section is made from what it writes.
""",
  'runtimes': """
## Runtimes

Not measured yet. `python benchmarks/runtimes.py` measures DeiT in JAX,
onnxruntime, OpenVINO and PyTorch, dense and pruned, in turn on one thread; how to
deploy an export is in [deploy.md](deploy.md).
""",
}
"""By the name of the file, the section until it is there."""


def bfloat16_table(found: dict[str, Any]) -> str:
  """Products and a network in bfloat16 on a CPU."""
  products = [
    (name, span(rates['float32'], 0), span(rates['bfloat16'], 0))
    for name, rates in found['products'].items()
  ]
  network = [
    (
      name,
      f'{row["images_per_second"]["median"]:.2f}',
      f'{row["speedup"]:.2f}',
    )
    for name, row in found['network'].items()
  ]
  has = ', '.join(found['instructions']) or 'no instructions for bfloat16'
  return '\n\n'.join(
    [
      '## Bfloat16 on a CPU\n\n'
      f'One thread of a processor with {has}: billions of operations per second '
      'of a product as XLA computes it, and DeiT-S, batch '
      f'{found["batch_size"]}. XLA does not reach the instructions for bfloat16 '
      '(runtimes that do are several times as fast, see '
      '[deploy.md](deploy.md)), so on CPUs a network with `dtype=bfloat16` '
      'is computed in float32.',
      table(('product', 'float32', 'bfloat16'), products),
      table(('DeiT-S', 'images/s', 'times float32'), network),
      origin('cpu_bfloat16', 'cpu_bfloat16.py', found),
    ]
  )


def runtimes_table(found: dict[str, Any]) -> str:
  """DeiT in every runtime, on a processor with AMX."""
  return _runtimes_table(found, 'Runtimes', 'runtimes')


def runtimes_without_amx(found: dict[str, Any]) -> str:
  """The same where neither bfloat16 nor int8 has instructions of its own."""
  heading = 'Runtimes on a processor without AMX'
  return _runtimes_table(found, heading, 'runtimes_without_amx')


def _runtimes_table(found: dict[str, Any], heading: str, name: str) -> str:
  """A row per setting, dense and pruned."""
  rows = []
  for row, measured in found['rows'].items():
    for setting, over_dense in measured['over_dense'].items():
      speed = measured['programs'][f'{setting} dense']
      rows.append(
        (
          row,
          *setting.split(),
          span(speed['images_per_second'], 1),
          f'{speed["speedup"]:.2f}',
          *_ratios(over_dense),
        )
      )
    operations = _ratios(measured['operations_over_dense'])
    rows.append((row, 'operations', '', '', '', *operations))
  head = (
    'row', 'runtime', 'computes in', 'images/s, dense', 'times the first',
    'without 5', 'without 6', 'plan 1.6',
  )  # fmt: skip
  return '\n\n'.join(
    [
      f'## {heading}\n\nThreads: {found["threads"]}. Random weights; a row is a '
      'size of DeiT and a batch, whose programs ran in turn. The first one is '
      'what the others are compared with; the last columns are networks without '
      '5 and 6 of 12 attention layers, and one of 1.6 times fewer operations '
      '(also narrower MLPs), over the dense one in the same runtime, '
      'and what executed operations promise. Median [least, largest]; where '
      'these are far apart, other work disturbed the row.',
      _in_short(found['rows']),
      table(head, rows),
      origin(name, 'runtimes.py', found),
    ]
  )


# Ratios of dense networks: what is said of them, and the two settings.
_COMPARED = (
  ('JAX over onnxruntime, float32', 'jax float32', 'onnxruntime float32'),
  ('OpenVINO over PyTorch, float32', 'openvino float32', 'torch float32'),
  ('OpenVINO, bfloat16 over float32', 'openvino bfloat16', 'openvino float32'),
  ('OpenVINO, int8 over float32', 'openvino int8', 'openvino float32'),
  ('onnxruntime, int8 over float32', 'onnxruntime int8', 'onnxruntime float32'),
)


def _in_short(rows: dict[str, Any]) -> str:
  """Ratios of medians of dense networks, for all rows."""
  found = []
  for label, one, other in _COMPARED:
    ratios = [
      f'{_rate(row, one) / _rate(row, other):.2f}'
      for row in rows.values()
      if {f'{one} dense', f'{other} dense'} <= row['programs'].keys()
    ]
    if ratios:
      found.append((label, *ratios))
  # Columns of what is missing in some rows would be of others.
  full = [row for row in found if len(row) == len(rows) + 1]
  return table(('dense networks', *rows), full)


def _rate(row: dict[str, Any], setting: str) -> float:
  return row['programs'][f'{setting} dense']['images_per_second']['median']


def _ratios(over_dense: dict[str, float]) -> list[str]:
  """Of the smaller networks, a dash for one that was not measured."""
  return [
    f'{over_dense[name]:.2f}' if name in over_dense else '–'
    for name in ('without_5', 'without_6', 'plan_1.6')
  ]


def accuracy_tables(of_sets: dict[str, Any]) -> str:
  """A real backbone's files in other runtimes."""
  return '\n\n'.join(
    _accuracy_table(name, found) for name, found in of_sets.items()
  )


def _accuracy_table(name: str, found: dict[str, Any]) -> str:
  rows = []
  for key, row in found['rows'].items():
    draw, *setting = key.split(' ', 2)
    change, half = row['change']
    rows.append(
      (
        *setting,
        draw,
        percent(row['top1']),
        f'{100 * change:+.2f} ± {100 * half:.2f}',
        f'{row["kl"]:.1e}',
        row['device'],
      )
    )
  head = (
    'runtime', 'computes in', 'draw', 'top-1 %', 'change', 'divergence',
    'hardware',
  )  # fmt: skip
  return '\n\n'.join(
    [
      f'## Accuracy of exported files: {name}\n\n'
      'DINOv2 ViT-S/14 at 112 pixels with a fixed linear probe, dense '
      f'({percent(found["dense_top1"])}% in JAX, float32), '
      f'{found["test_images"]} test images. Int8 is calibrated on half of '
      f'{found["images"]} unlabelled training images. Its weights have seven bits; '
      '`8 bits` is how files were before (commit c6f5e2a): the AMD EPYC, which has no '
      'VNNI, overflows with them. Change in points, with its '
      'paired 95% interval; divergence of the logits from those in float32, mean '
      'KL in nats.',
      table(head, rows),
      origin('deployed_accuracy', 'deployed_accuracy.py', found),
    ]
  )


def gpu_table(found: dict[str, Any]) -> str:
  """Inference and training on one GPU; the rest is in the file."""
  rows = []
  for name, measured in found['rows'].items():
    for model, speed in measured.items():
      if not isinstance(speed, dict) or 'images_per_second' not in speed:
        continue
      share = speed.get('fraction_of_matmul')
      rows.append(
        (
          name,
          model,
          f'{speed["images_per_second"]["median"]:.0f}',
          f'{speed["speedup"]:.2f}',
          '–' if share is None else percent(share, 0),
        )
      )
  head = ('row', 'program', 'images/s', 'times the first', '% of a product')
  return '\n\n'.join(
    [
      '## One GPU\n\nBfloat16, random weights, 224 pixels. Seconds of the search '
      'and of the input pipeline, and what did not run, are in the file.',
      table(head, rows),
      origin('gpu', 'gpu.py', found),
    ]
  )


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
  'runtimes': runtimes_table,
  'runtimes_without_amx': runtimes_without_amx,
  'deployed_accuracy': accuracy_tables,
  'gpu': gpu_table,
}
