"""Writes docs/results.md and docs/performance.md from docs/benchmarks/*.json.

  python docs/make_tables.py

Every table names the script that measured it, the hardware and the date. A
file that is not there has no section. A test says when a page is not current.
"""

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

DOCS = pathlib.Path(__file__).parent
FIGURES = DOCS / 'benchmarks'

_RESULTS = """# Results

Made by [`docs/make_tables.py`](make_tables.py) from the figures in
[`docs/benchmarks`](benchmarks). Nothing here is of ImageNet: the published
accuracies for it are in the [README](../README.md) and not verified by us.
"""

_PERFORMANCE = """# Performance

Made by [`docs/make_tables.py`](make_tables.py) from the figures in
[`docs/benchmarks`](benchmarks). Both sides of a ratio were measured in turn
in one run; figures are medians, with the extremes of the rounds' ratios in
brackets. No accelerator was at hand for any of them: nothing here says how fast
a GPU or a TPU is.
"""


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
  """A Markdown table; the first column to the left, the others to the right."""
  header = list(header)
  lines = [
    '| ' + ' | '.join(header) + ' |',
    '|---' + '|---:' * (len(header) - 1) + '|',
  ]
  lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
  return '\n'.join(lines)


def origin(name: str, script: str, found: dict[str, Any]) -> str:
  """The line under a table: script, figures, hardware, date."""
  hardware = found.get('device') or found.get('processor')
  if hardware is None:
    place = found['hardware']
    hardware = f'{place["cores"]} x {place["processor"]}'
  return (
    f'[`{script}`](../benchmarks/{script}), '
    f'[`{name}.json`](benchmarks/{name}.json); {hardware}; {found["date"]}.'
  )


def percent(value: float, digits: int = 2) -> str:
  """A fraction in per cent."""
  return f'{100 * value:.{digits}f}'


def span(value: dict[str, float], digits: int = 2) -> str:
  """A ratio with its extremes."""
  return (
    f'{value["median"]:.{digits}f} '
    f'[{value["min"]:.{digits}f}, {value["max"]:.{digits}f}]'
  )


def layers(blocks: Iterable[int]) -> str:
  """Block numbers, a dash for none."""
  return ' '.join(map(str, blocks)) or '–'


def digits_table(found: dict[str, Any]) -> str:
  """Dense and pruned on the digits."""
  rows = [
    (
      name,
      layers(row['removed']),
      f'{percent(row["top1"]["mean"])} ± {percent(row["top1"]["half"])}',
      f'{row["loss"]["mean"]:.4f}',
      f'{percent(row["minus_dense"]["mean"])} ± '
      f'{percent(row["minus_dense"]["half"])}',
    )
    for name, row in found['rows'].items()
  ]
  return '\n\n'.join(
    [
      '## Digits\n\n'
      f'{found["num_images"]} test images, five seeds, 95% intervals over '
      'seeds; `dense` trains as many further steps as the pruned rows.',
      table(
        ('row', 'removed', 'top-1 %', 'loss', 'difference to dense, points'),
        rows,
      ),
      origin('digits_table', 'digits_table.py', found),
    ]
  )


def fashion_table(found: dict[str, Any]) -> str:
  """Dense and pruned on Fashion-MNIST."""
  rows = [
    (
      name,
      '; '.join(layers(each) for each in row['removed']),
      percent(row['top1']),
      ' '.join(percent(each) for each in row['by_seed']),
      f'{row["loss"]:.4f}',
      f'{percent(row["minus_dense"]["mean"])} ± '
      f'{percent(row["minus_dense"]["half"])}',
    )
    for name, row in found['rows'].items()
  ]
  return '\n\n'.join(
    [
      '## Fashion-MNIST\n\n'
      'A ViT of 12 blocks, width 48, patches of 7 pixels, trained from scratch '
      f'on 10,000 of the 60,000 training images; all {found["num_images"]:,} '
      'test images; three seeds. '
      f'{found["settings"][-1].capitalize()}: `dense` and the pruned rows have '
      'seen the same number of epochs, `start` is what the pruned rows start '
      'from. The interval (95%) is of the paired difference over test images.',
      table(
        (
          'row',
          'removed, by seed',
          'top-1 %',
          'by seed',
          'loss',
          'difference to dense, points',
        ),
        rows,
      ),
      origin('fashion_mnist_table', 'fashion_mnist_table.py', found),
    ]
  )


def quality_tables(of_sets: dict[str, Any]) -> str:
  """Every criterion's sets on each data set."""

  def section(name: str, found: dict[str, Any]) -> str:
    dense = found['dense']
    parts = [
      f'## Which criterion chooses well: {name}\n\n'
      'Three networks trained from scratch (seeds 0, 1, 2), '
      f'{found["num_images"]:,} test images. Straight after removal, with the '
      'branch left out (`skip`) or the best affine map in its place '
      '(`linear`), and after a short dilution of '
      f'{found["dilution_steps"]} steps, the same batches and schedule for '
      'every set. Top-1 in % and, after dilution, the loss; mean ± standard '
      'deviation over the networks. Dense: '
      f'{percent(dense["top1"]["mean"])} ± '
      f'{percent(dense["top1"]["deviation"])}, loss '
      f'{dense["loss"]["mean"]:.4f}.'
    ]
    sizes = sorted({row['num_layers'] for row in found['rows']})
    for size in sizes:
      of_size = [row for row in found['rows'] if row['num_layers'] == size]
      of_size.sort(key=lambda row: row['diluted loss']['mean'])
      parts.append(f'{size} of 12 removed, least loss after dilution first:')
      parts.append(
        table(
          ('criterion', 'skip', 'linear', 'diluted', 'loss, diluted'),
          (
            (
              row['criterion'],
              *(
                f'{percent(row[f"{form} top1"]["mean"], 1)} ± '
                f'{percent(row[f"{form} top1"]["deviation"], 1)}'
                for form in ('skip', 'linear', 'diluted')
              ),
              f'{row["diluted loss"]["mean"]:.4f} ± '
              f'{row["diluted loss"]["deviation"]:.4f}',
            )
            for row in of_size
          ),
        )
      )
    parts.append(
      f'{found["sets_run"]} different sets were run. '
      + origin('selection_quality', 'selection_quality.py', found)
    )
    return '\n\n'.join(parts)

  return '\n\n'.join(section(*item) for item in of_sets.items())


def method_tables(of_sets: dict[str, Any]) -> str:
  """Every way to remove attention, and every criterion, on each data set."""

  def section(name: str, found: dict[str, Any]) -> str:
    def accuracy(row: dict[str, Any]) -> tuple[str, ...]:
      return (
        '; '.join(layers(each) for each in row['removed']),
        percent(row['top1']),
        ' '.join(percent(each) for each in row['by_seed']),
        f'{percent(row["minus_dense"]["mean"])} ± '
        f'{percent(row["minus_dense"]["half"])}',
      )

    shown = [
      (
        row_name,
        *accuracy(found['rows'][row_name])[1:],
        f'{row["parameters"] / 1e3:.1f}',
        f'{row["macs"] / 1e6:.3f}',
        f'{row["weight_bytes"] / 1e3:.0f}',
        f'{row["images_per_second"]:.0f}',
        span(row['over_dense']),
      )
      for row_name, row in found['speed'].items()
    ]
    criteria = [
      (row_name, *accuracy(row))
      for row_name, row in sorted(
        found['rows'].items(), key=lambda item: -item[1]['top1']
      )
      if row_name == 'dense' or row_name.endswith('+ dilution')
    ]
    return '\n\n'.join(
      [
        f'## Ways to remove attention: {name}\n\n'
        f'{found["num_layers"]} of 12 attention layers removed, '
        f'{found["num_images"]:,} test images, three seeds; every trained row '
        'has seen the same number of steps. Differences to `dense` are paired '
        'over the test images (95%). `transfer_entropy` is NOSE; '
        '`training-free` fits affine maps to 512 unlabeled images; `merging` '
        f'merges {found["merge"]["r"]} of 17 tokens behind each attention '
        f'from block {found["merge"]["start"]} on, at evaluation alone. Speed '
        f'is of the first seed, {found["speed_batch"]} images a call, in turn.',
        table(
          (
            'row',
            'top-1 %',
            'by seed',
            'difference, points',
            'k parameters',
            'MMACs',
            'kB',
            'images/s',
            'times as fast',
          ),
          shown,
        ),
        ('Not every' if found['settings'].get('static') else 'Every')
        + ' criterion after full dilution, the best first:',
        table(
          ('row', 'removed, by seed', 'top-1 %', 'by seed', 'difference'),
          criteria,
        ),
        origin('method_table', 'method_table.py', found),
      ]
    )

  return '\n\n'.join(section(*item) for item in of_sets.items())


def training_free_tables(of_sets: dict[str, Any]) -> str:
  """Affine maps in place of attention, by criterion, input and order."""
  every = ('token', 'token+mean', 'token+class', 'token+mean+class')

  def section(name: str, found: dict[str, Any]) -> str:
    rows = found['rows']
    kinds = [
      kind for kind in every if any(f'linear {kind} at' in key for key in rows)
    ]
    dense = rows['dense']['top1']

    def cells(key: str) -> list[str]:
      in_turn = (
        percent(rows[f'{key} linear {kind} {how}']['top1'])
        for kind in kinds
        for how in ('sequential', 'at once')
      )
      return [
        percent(rows[f'{key} skip']['top1']),
        percent(rows[f'{key} identity']['top1']),
        *in_turn,
      ]

    gains = [
      100 * (row['top1'] - rows[key.replace('sequential', 'at once')]['top1'])
      for key, row in rows.items()
      if key.endswith(' sequential')
    ]
    keys = [key.removesuffix(' skip') for key in rows if key.endswith(' skip')]
    keys.sort(key=lambda key: (int(key.split()[-1]), key))
    header = ['criterion, layers', 'skip', 'identity']
    header += [
      f'{kind}, {how}' for kind in kinds for how in ('in sequence', 'at once')
    ]
    return '\n\n'.join(
      [
        f'## Without training: {name}\n\n'
        f'One trained network (top-1 {percent(dense)}%), '
        f'{found["images"]} unlabeled images, all test images. Attention is '
        'left out, taken for the identity, or replaced by an affine map of '
        'the token, of the mean of the image as well, with a map of its own '
        'for the class token, or of all three; fitted in sequence or at once. '
        'Top-1 in %. In sequence less at once, over all rows: '
        f'{sum(gains) / len(gains):+.2f} points on average, from '
        f'{min(gains):+.2f} to {max(gains):+.2f}.',
        table(header, [[key, *cells(key)] for key in keys]),
        origin('training_free', 'training_free.py', found),
      ]
    )

  return '\n\n'.join(section(*item) for item in of_sets.items())


def block_tables(of_sets: dict[str, Any]) -> str:
  """Maps in place of whole blocks and of attention alone."""

  def section(name: str, found: dict[str, Any]) -> str:
    rows = [
      (
        row_name,
        layers(row['blocks']),
        percent(row['top1']),
        f'{row["macs"] / 1e6:.3f}',
      )
      for row_name, row in found['rows'].items()
    ]
    return '\n\n'.join(
      [
        f'## Whole blocks or attention alone: {name}\n\n'
        f'One trained network, {found["images"]} unlabeled images, '
        f'{found["num_images"]:,} test images, no training. An affine map of '
        'each token takes the place of consecutive blocks (the idea of TOAST, '
        'written from its description; the span is the best of its length by '
        'test accuracy), or of the attention of blocks that criterion `affine` '
        'chooses.',
        table(('replaced', 'blocks', 'top-1 %', 'MMACs'), rows),
        origin('block_maps', 'block_maps.py', found),
      ]
    )

  return '\n\n'.join(section(*item) for item in of_sets.items())


def fitting_table(found: dict[str, Any]) -> str:
  """What fitting affine maps costs."""
  ratio = found['ratio']
  return '\n\n'.join(
    [
      '## Fitting affine maps\n\n'
      f'`{found["variant"]}`, {len(found["layers"])} of 12 blocks, '
      f'{found["num_images"]} images: fitting in sequence takes '
      f'{ratio["sequential"]:.2f} times as long as evaluating the images, at '
      f'once {ratio["at_once"]:.2f} times (bound 8).',
      origin('training_free_cost', 'training_free_cost.py', found),
    ]
  )


def nose_table(found: dict[str, Any]) -> str:
  """The search against plain loops."""
  median = found['median_seconds']
  rows = [
    (
      label,
      f'{median[name]:.1f}',
      f'{median[name] / median["wavefront"]:.2f}',
      ' '.join(f'{value:.1f}' for value in found['seconds'][name]),
    )
    for name, label in (
      ('wavefront', 'one pass a round'),
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
      table(('search', 'seconds', 'times the first', 'every run'), rows),
      origin('nose_speed', 'nose_speed.py', found),
    ]
  )


def _counted(threads: str) -> str:
  return f'{threads} thread' + 's' * (threads != '1')


def timm_table(found: dict[str, Any]) -> str:
  """Inference and training beside PyTorch."""
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
      '## Beside PyTorch and timm\n\n'
      'DeiT at 224 pixels, float32, images per second. The fraction of the '
      'matrix product relates executed multiply-accumulates to a product of '
      "the MLP's shape in the same run: as XLA takes it by itself, and as this "
      'package has it taken (next section). Pruned over dense is given beside '
      'the ratio of their multiply-accumulates. Where the ratio is below 1 we '
      'are slower than the better of eager PyTorch and `torch.compile`.',
      table(
        (
          'case',
          'the better reference',
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
  """Matrix products with and without the options of `compilation`."""
  forms = ('default', 'whole', 'used')
  return '\n\n'.join(
    [
      '## Matrix products on a CPU\n\n'
      'Billions of operations a second on one core, float32: the median, and '
      'the best in brackets. `default` is what XLA chooses (YNNPACK). `whole` '
      'is with the options that every large program of this package is '
      'compiled with (Eigen with the kernels of oneDNN; reductions stay). '
      '`used` is what the package takes: the same, in pieces where the rows '
      'of a matrix are a multiple of 4 KiB long and would share their places '
      'in the cache.',
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


def merging_table(found: dict[str, Any]) -> str:
  """Speed against the tokens that are merged."""
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
  return '\n\n'.join(
    [
      '## Token merging\n\n'
      f'`{found["variant"]}`, attention removed from blocks '
      f'{layers(found["removed"])} but for the row `dense`; r tokens merged '
      f'behind each attention from block {found["merge_start"]} on, fewer '
      'where fewer are left. Float32, '
      f'{found["batch_size"]} images a call. Ratios are to `{first}`; the last '
      'column is what the executed multiply-accumulates promise. Accuracy is '
      'not measured here.',
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


def pipeline_table(found: dict[str, Any]) -> str:
  """The input pipeline beside timm's."""
  rows = [
    (name.replace('_', ' '), span(rate, 1))
    for name, rate in found['images_per_cpu_second'].items()
  ]
  return '\n\n'.join(
    [
      '## Input pipeline\n\n'
      'JPEG photographs of '
      f'{found["photographs"]["size"][0]} x '
      f'{found["photographs"]["size"][1]} pixels to 224, full DeiT '
      'augmentation, images per second of one core. Ratio to '
      f'{found["compared_with"].replace("_", " ")}: {span(found["ratio"])}.',
      table(('pipeline', 'images per CPU second'), rows),
      origin('pipeline', 'pipeline.py', found),
    ]
  )


def int8_table(found: dict[str, Any]) -> str:
  """8-bit integers beside float32: accuracy, bytes, speed."""
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
      f'images; {found["batch_size"]} images a call. `int8 weights` reads the '
      'integers as floats, one matrix at a time; `int8 dynamic` quantises '
      'every token and multiplies integers. The difference is the largest of '
      'any logit.',
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


def startup_table(found: dict[str, Any]) -> str:
  """How long commands take to start, and what the compile cache saves."""
  rows = [
    (
      name.replace('_', ' '),
      span(seconds['wall']),
      span(seconds['processor']),
      str(found['bounds'].get(name, '')),
    )
    for name, seconds in found['seconds'].items()
  ]
  cache = found['first_call']
  ratio = cache['ratio']
  return '\n\n'.join(
    [
      '## Start-up\n\n'
      '`lambda-vit --help`, `models`, and `predict` of one image on the digits '
      'export, first and later starts; fresh processes. Compiling and the '
      f'first call of {cache["variant"]} are {ratio["wall"]:.1f} times as fast '
      f'with the compile cache ({ratio["processor"]:.1f} times by processor '
      'time), tracing included.',
      table(('command', 'seconds', 'processor seconds', 'bound'), rows),
      origin('startup', 'startup.py', found),
    ]
  )


def dilution_table(found: dict[str, Any]) -> str:
  """What a step costs while λ falls, and after the switch."""
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
      'Training steps by CPU time on one core, programs in turn: with λ at '
      'work against plain training, and after the switch at λ = 0 against '
      'training of the pruned model from the start.',
      table(
        ('model', 'ratio', 'of minima', 'median', 'operations', 'bound'), rows
      ),
      origin('dilution_cost', 'dilution_cost.py', next(iter(found.values()))),
    ]
  )


def loading_table(found: dict[str, Any]) -> str:
  """How long a safetensors file takes, and how much memory."""
  peak = found['peak_over_file']
  return '\n\n'.join(
    [
      '## Loading\n\n'
      f'{found["variant"]} from safetensors, {found["file_bytes"] / 1e6:.0f} '
      f'MB: {span(found["seconds"])} s; the peak of memory that loading adds '
      f'is {peak["added_by_loading"]:.2f} times the file, of the whole process '
      f'{peak["whole_process"]:.2f} times.',
      origin('loading', 'loading.py', found),
    ]
  )


RESULTS: dict[str, Callable[[dict[str, Any]], str]] = {
  'digits_table': digits_table,
  'fashion_mnist_table': fashion_table,
  'method_table': method_tables,
  'selection_quality': quality_tables,
  'training_free': training_free_tables,
  'block_maps': block_tables,
}
PERFORMANCE: dict[str, Callable[[dict[str, Any]], str]] = {
  'timm_speed': timm_table,
  'products': products_table,
  'nose_speed': nose_table,
  'token_merging': merging_table,
  'training_free_cost': fitting_table,
  'int8': int8_table,
  'pipeline': pipeline_table,
  'dilution_cost': dilution_table,
  'startup': startup_table,
  'loading': loading_table,
}
PAGES = {
  'results.md': (_RESULTS, RESULTS),
  'performance.md': (_PERFORMANCE, PERFORMANCE),
}


def make_page(name: str) -> str:
  """The text of one of `PAGES`."""
  head, sections = PAGES[name]
  parts = [head.strip()]
  for figures, section in sections.items():
    path = FIGURES / f'{figures}.json'
    if path.exists():
      parts.append(section(json.loads(path.read_text())))
  return '\n\n'.join(parts) + '\n'


def main() -> None:
  """Writes every page."""
  for name in PAGES:
    (DOCS / name).write_text(make_page(name))


if __name__ == '__main__':
  main()
