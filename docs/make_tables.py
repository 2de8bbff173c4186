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


def timm_table(found: dict[str, Any]) -> str:
  """Inference and training beside PyTorch."""
  rows = []
  for name, case in found['cases'].items():
    kind, size, batch, threads = name.split('-')
    rates = case['images_per_second']
    best = case['best_reference']
    rows.append(
      (
        f'{kind} {size}, batch {batch}, {threads[:-1]} threads',
        f'{rates[best]:.2f} ({best})',
        f'{rates["dense"]:.2f}',
        span(case['dense_over_timm']),
        span(case['fraction_of_matmul'])
        if 'fraction_of_matmul' in case
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
      "the MLP's shape in the same run. Pruned over dense is given beside the "
      'ratio of their multiply-accumulates.',
      table(
        (
          'case',
          'the better reference',
          'dense',
          'ratio',
          'fraction of matrix product',
          'pruned over dense',
        ),
        rows,
      ),
      origin('timm_speed', 'timm_speed.py', first | found),
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
  'selection_quality': quality_tables,
}
PERFORMANCE: dict[str, Callable[[dict[str, Any]], str]] = {
  'timm_speed': timm_table,
  'nose_speed': nose_table,
  'token_merging': merging_table,
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
