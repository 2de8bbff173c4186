"""The sections of docs/performance.md, one function per table."""

from collections.abc import Callable
from typing import Any

from tables import deployed, input_and_startup
from tables.parts import layers, origin, percent, span, table

HEAD = """# Performance

Made by [`docs/make_tables.py`](make_tables.py) from the figures in
[`docs/benchmarks`](benchmarks). Both sides of a ratio were measured in
alternation in one run; figures are medians, with the extremes over the rounds
in brackets. None is of an accelerator. Exports in onnxruntime, OpenVINO and
PyTorch: [performance_deployed.md](performance_deployed.md).
"""


def nose_table(found: dict[str, Any]) -> str:
  """NOSE against plain loops."""
  median = found['median_seconds']
  rows = [
    (
      label,
      f'{median[name]:.1f}',
      f'{median[name] / median["wavefront"]:.2f}',
      ' '.join(f'{value:.1f}' for value in found['seconds'][name]),
    )
    for name, label in (
      ('wavefront', 'one pass per round'),
      ('plain_loop', 'plain loop, this package'),
      ('timm_eager', 'plain loop, PyTorch and timm, eager'),
    )
    if name in median
  ]
  return '\n\n'.join(
    [
      '## NOSE against plain loops\n\n'
      f'DeiT-T at 224 pixels, 5 of 12, {found["num_images"]} images, all '
      'rounds, compilation excluded. Largest difference of an entropy: '
      f'{found["largest_difference_nats_per_channel"]:.1g} nats per channel.',
      table(('search', 'seconds', 'times the first', 'all runs'), rows),
      origin('nose_speed', 'nose_speed.py', found),
    ]
  )


def _counted(threads: str) -> str:
  return f'{threads} thread' + 's' * (threads != '1')


def timm_table(found: dict[str, Any]) -> str:
  """Inference and training compared with PyTorch and timm."""
  rows = []
  for name, case in found['cases'].items():
    kind, size, batch, threads = name.split('-')
    rates = case['images_per_second']
    best = case['best_reference']
    rows.append(
      (
        f'{kind} {size}, batch {batch}, {_counted(threads[:-1])}',
        f'{rates[best]:.2f} ({best})',
        f'{rates["dense"]:.2f}',
        span(case['dense_over_timm']),
        span(case['fraction_of_matmul'])
        if 'fraction_of_matmul' in case
        else '',
        span(case['fraction_of_product'])
        if 'fraction_of_product' in case
        else '',
        f'{span(case["pruned_over_dense"])} of {case["macs_ratio"]:.3f}'
        if 'macs_ratio' in case
        else '',
      )
    )
  first = next(iter(found['cases'].values()))
  return '\n\n'.join(
    [
      '## Compared with PyTorch and timm\n\n'
      'DeiT at 224 pixels, float32, images per second. The fraction of a '
      'matrix product is the rate of executed multiply-accumulates over that '
      "of a product of the MLP's shape in the same run: as XLA computes it by "
      'default, and as this package has it computed (next section). Pruned '
      'over dense is followed by the ratio of their multiply-accumulates. '
      'Where the ratio is below 1 we are slower than the better of eager '
      'PyTorch and `torch.compile`.',
      table(
        (
          'case',
          'better reference',
          'dense',
          'ratio',
          "fraction of XLA's product",
          'of ours',
          'pruned over dense',
        ),
        rows,
      ),
      origin('timm_speed', 'timm_speed.py', first | found),
    ]
  )


def products_table(found: dict[str, Any]) -> str:
  """Matrix products with and without our compiler options."""
  forms = ('default', 'whole', 'used')
  return '\n\n'.join(
    [
      '## Matrix products on a CPU\n\n'
      'Billions of operations per second on one core, float32: the median, '
      'and the best in brackets. `default` is what XLA chooses (YNNPACK). '
      '`whole` uses the options that programs of wide networks are '
      'compiled with (Eigen with the kernels of oneDNN; reductions are not '
      'affected). `used` is what the package does: the same, in pieces where '
      'the rows of a matrix are a multiple of 4 KiB long and would compete for '
      'the same cache sets. (In a network, rows longer than 4 KiB are avoided '
      'as well: see '
      '[`runtime/compilation.py`](../lambda_vit_jax/runtime/compilation.py).)',
      table(
        ('product', *forms),
        (
          (
            name,
            *(
              f'{row[form]["median"]:.0f} ({row[form]["best"]:.0f})'
              for form in forms
            ),
          )
          for name, row in found['gflops'].items()
        ),
      ),
      origin('products', 'products.py', found),
    ]
  )


def options_table(found: dict[str, Any]) -> str:
  """Whole networks with and without our compiler options."""
  return '\n\n'.join(
    [
      '## Compiler options by size\n\n'
      'The forward pass of whole networks without the options of the section '
      'above and with them, in milliseconds, in turn; the options pay where '
      'the ratio is above 1. They are used where a matrix is at least 256 wide '
      'both ways. How much they gain depends on the processor: on the one of '
      'the section above, products of DeiT-S were faster by a quarter to a '
      'half.',
      table(
        ('network', 'width', 'without', 'with', 'ratio, 95%'),
        (
          (
            name,
            str(row['width']),
            f'{row["milliseconds"]["without"]:.3g}',
            f'{row["milliseconds"]["with"]:.3g}',
            f'{row["ratio"]:.2f} [{row["interval"][0]:.2f}, '
            f'{row["interval"][1]:.2f}]',
          )
          for name, row in found['rows'].items()
        ),
      ),
      origin('compiler_options', 'compiler_options.py', found),
    ]
  )


def scaling_table(found: dict[str, Any]) -> str:
  """Growth of the cost with tokens, depth and batch, and over devices."""
  rows = []
  for series in ('tokens', 'depth', 'batch'):
    for row in found[series]:
      for name in ('dense', 'pruned'):
        cell = row[name]
        rows.append(
          (
            series,
            name,
            f'{row["tokens"]}',
            f'{row["depth"]}',
            f'{row["batch"]}',
            f'{1e3 * cell["seconds"]:.0f}',
            f'{cell["growth"]:.2f}',
            f'{cell["macs_growth"]:.2f}',
            f'{cell["temp_bytes"] / 2**20:.1f}',
            f'{cell["compile_seconds"]:.1f}',
          )
        )
  steps = ', '.join(
    f'{row["devices"]}: {row["seconds"]:.2f} s '
    f'[{row["min"]:.2f}, {row["max"]:.2f}]'
    for row in found['devices']
  )
  return '\n\n'.join(
    [
      '## How cost grows\n\n'
      'DeiT-T, float32, dense and without the attention of every third block. '
      'Growth is relative to the first row of a series, of the time and of the '
      'executed multiply-accumulates. Compiled without a cache.',
      table(
        (
          'series',
          'model',
          'tokens',
          'depth',
          'images',
          'ms',
          'growth',
          'of operations',
          'temporary MiB',
          'compile s',
        ),
        rows,
      ),
      'A training step on 16 images, by the number of virtual devices on the '
      f'same cores, which shows what splitting costs: {steps}.',
      origin('scaling', 'scaling.py', found),
    ]
  )


def merging_tables(of_tasks: dict[str, Any]) -> str:
  """Speed against merged tokens, for each kind of network."""
  return '\n\n'.join(map(_merging_table, of_tasks.values()))


def _merging_table(found: dict[str, Any]) -> str:
  rows = [
    (
      name,
      str(row['tokens_left']),
      f'{row["macs"] / 1e9:.2f}',
      f'{row["macs_executed"] / 1e9:.2f}',
      span(row['images_per_second']),
      span(row['over_first']),
      f'{row["macs_ratio"]:.2f}',
    )
    for name, row in found['rows'].items()
  ]
  first = next(name for name in found['rows'] if name != 'dense')
  title, decoder = 'Token merging', ''
  if found.get('segment'):
    title = 'Token merging in segmentation'
    decoder = f', {found["image_size"]} pixels, decoder `{found["segment"]}`'
  return '\n\n'.join(
    [
      f'## {title}\n\n'
      f'`{found["variant"]}`{decoder}, attention removed from blocks '
      f'{layers(found["removed"])} except in the row `dense`; r tokens merged '
      f'after each attention layer from block {found["merge_start"]} on, fewer '
      'where fewer are left. Float32, '
      f'{found["batch_size"]} images per call. Ratios are relative to '
      f'`{first}`; the last column is the ratio of executed '
      'multiply-accumulates. Accuracy is not measured here.',
      table(
        (
          'program',
          'tokens left',
          'GMACs',
          'executed',
          'images/s',
          'times as fast',
          'by MACs',
        ),
        rows,
      ),
      origin('token_merging', 'token_merging.py', found),
    ]
  )


def fitting_table(found: dict[str, Any]) -> str:
  """The cost of fitting affine maps."""
  ratio = found['ratio']
  auto = refit = ''
  if 'auto' in ratio:
    auto = f' With `auto` inputs it takes {ratio["auto"]:.2f} times as long.'
  if 'refit' in ratio:
    refit = (
      ' Leaving the attention layers out and refitting the MLPs of all blocks '
      f'from the first on takes {ratio["refit"]:.1f} times as long; choosing '
      f'{len(found["dropped"])} whole blocks, dropping them from the middle and '
      f'refitting the MLPs before and after, {ratio["drop"]:.1f} times.'
    )
  return '\n\n'.join(
    [
      '## Fitting affine maps\n\n'
      f'`{found["variant"]}`, {len(found["layers"])} of 12 blocks, '
      f'{found["num_images"]} images: fitting in sequence takes '
      f'{ratio["sequential"]:.2f} times as long as evaluating the images, '
      f'fitting at once {ratio["at_once"]:.2f} times (bound 8).' + auto + refit,
      origin('training_free_cost', 'training_free_cost.py', found),
    ]
  )


def int8_table(found: dict[str, Any]) -> str:
  """8-bit integers against float32: accuracy, bytes, speed."""
  rows = [
    (
      name,
      percent(row['top1']),
      f'{row["loss"]:.5f}',
      f'{row["largest_difference"]:.1e}',
      f'{row["weight_bytes"] / 1e3:.0f}',
      f'{row["temp_bytes"] / 1e3:.0f}',
      span(row['images_per_second'], 0),
      span(row['over_float32']),
    )
    for name, row in found['rows'].items()
  ]
  return '\n\n'.join(
    [
      '## 8-bit integers\n\n'
      f'The dense digits model of the package, all {found["num_images"]} test '
      f'images; {found["batch_size"]} images per call. `int8 weights` reads '
      'the integers as floats, one matrix at a time; `int8 dynamic` quantises '
      'every token and multiplies integers. The difference is the largest over '
      'all logits.',
      table(
        (
          'program',
          'top-1 %',
          'loss',
          'difference',
          'weights kB',
          'temporary kB',
          'images/s',
          'times as fast',
        ),
        rows,
      ),
      origin('int8', 'int8.py', found),
    ]
  )


def dilution_table(found: dict[str, Any]) -> str:
  """The cost of a step while λ falls, and after the switch."""
  rows = [
    (
      f'{case["variant"]}, batch {case["batch_size"]}',
      name.replace('_over_', ' / '),
      f'{ratio["cpu_minima"]:.3f}',
      span(ratio['cpu'], 3),
      f'{ratio["flops"]:.4f}',
      str(case['bounds'][name]),
    )
    for case in found.values()
    for name, ratio in case['ratios'].items()
  ]
  return '\n\n'.join(
    [
      '## Cost of dilution\n\n'
      'CPU time of training steps on one core, programs in alternation: steps '
      'that dilute against plain training, and steps after the switch at λ = 0 '
      'against training of the pruned model from the start.',
      table(
        ('model', 'ratio', 'of minima', 'median', 'operations', 'bound'), rows
      ),
      origin('dilution_cost', 'dilution_cost.py', next(iter(found.values()))),
    ]
  )


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
  'timm_speed': timm_table,
  'products': products_table,
  'compiler_options': options_table,
  'scaling': scaling_table,
  'nose_speed': nose_table,
  'token_merging': merging_tables,
  'training_free_cost': fitting_table,
  'int8': int8_table,
  'cpu_bfloat16': deployed.bfloat16_table,
  'pipeline': input_and_startup.pipeline_table,
  'dilution_cost': dilution_table,
  'startup': input_and_startup.startup_table,
  'loading': input_and_startup.loading_table,
}
