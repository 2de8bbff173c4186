"""The sections of docs/results.md, one function per table."""

import statistics
from collections.abc import Callable
from typing import Any

from tables.parts import layers, origin, percent, span, table

HEAD = """# Results

Made by [`docs/make_tables.py`](make_tables.py) from the figures in
[`docs/benchmarks`](benchmarks). None of them is for ImageNet: the published
accuracies for it are in the [README](../README.md) and not verified by us.
"""


def digits_table(found: dict[str, Any]) -> str:
  """Dense and pruned models on the digits."""
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
      'seeds; `dense` trains for as many further steps as the pruned rows.',
      table(
        ('row', 'removed', 'top-1 %', 'loss', 'difference to dense, points'),
        rows,
      ),
      origin('digits_table', 'digits_table.py', found),
    ]
  )


def fashion_table(found: dict[str, Any]) -> str:
  """Dense and pruned models on Fashion-MNIST."""
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
      'trained for the same number of epochs, `start` is what the pruned rows '
      'start from. The 95% interval is that of the difference paired over test '
      'images.',
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
  """The sets of every criterion on each data set."""

  def section(name: str, found: dict[str, Any]) -> str:
    dense = found['dense']
    parts = [
      f'## Which criterion chooses well: {name}\n\n'
      'Three networks trained from scratch (seeds 0, 1, 2), '
      f'{found["num_images"]:,} test images. Directly after removal, with the '
      'branch left out (`skip`) or replaced by the best affine map '
      '(`linear`), and after a short dilution of '
      f'{found["dilution_steps"]} steps, with the same batches and schedule '
      'for every set. Top-1 in % and, after dilution, the loss; mean ± '
      'standard deviation over the networks. Dense: '
      f'{percent(dense["top1"]["mean"])} ± '
      f'{percent(dense["top1"]["deviation"])}, loss '
      f'{dense["loss"]["mean"]:.4f}.'
    ]
    sizes = sorted({row['num_layers'] for row in found['rows']})
    for size in sizes:
      of_size = [row for row in found['rows'] if row['num_layers'] == size]
      of_size.sort(key=lambda row: row['diluted loss']['mean'])
      parts.append(f'{size} of 12 removed, by loss after dilution:')
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
      f'{found["sets_run"]} different sets were evaluated. '
      + origin('selection_quality', 'selection_quality.py', found)
    )
    return '\n\n'.join(parts)

  return '\n\n'.join(section(*item) for item in of_sets.items())


def segmentation_table(found: dict[str, Any]) -> str:
  """Ways to remove attention from a network that segments."""
  rows = [
    (
      name,
      percent(statistics.mean(found['rows'][name]['mean_iou'])),
      ' '.join(map(percent, found['rows'][name]['mean_iou'])),
      f'{row["parameters"] / 1e3:.1f}',
      f'{row["macs"] / 1e6:.2f}',
      f'{row["weight_bytes"] / 1e3:.0f}',
      f'{row["images_per_second"]:.0f}',
      span(row['over_dense']),
    )
    for name, row in found['speed'].items()
  ]
  return '\n\n'.join(
    [
      '## Ways to remove attention: segmentation\n\n'
      'Digits on textures, two classes and the background, 360 test images; a '
      'ViT of 4 blocks and 144 tokens with the decoder `linear`, three seeds. '
      f'{found["num_layers"]} of 4 attention layers removed, or '
      f'{found["num_dropped"]} whole block; every trained row has trained for '
      f'{found["steps"]:,} steps. `transfer_entropy` is NOSE on the mean of '
      'the patches; `training-free` fits affine maps of the token to 128 '
      'unlabelled images of the dense network; `refit` refits its MLPs to '
      f'compensate; `merging` merges {found["merge"]} tokens after each '
      'attention layer, at evaluation only. Speed is that of the first seed, '
      f'{found["speed_batch"]} images per call, in alternation.',
      table(
        (
          'row',
          'mean IoU %',
          'by seed',
          'k parameters',
          'MMACs',
          'kB',
          'images/s',
          'times as fast',
        ),
        rows,
      ),
      origin('segmentation_table', 'segmentation_table.py', found),
    ]
  )


def method_tables(of_sets: dict[str, Any]) -> str:
  """Ways to remove attention, and every criterion, on each data set."""

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
        'has trained for the same number of steps. Differences to `dense` are '
        'paired over the test images (95%). `transfer_entropy` is NOSE; '
        '`training-free` fits affine maps to 512 unlabelled images; `blocks '
        f'dropped` has {found["num_dropped"]} whole blocks fewer than the '
        'dense network, and MLPs refitted to the same images; `merging` '
        f'merges {found["merge"]["r"]} of 17 tokens after each attention layer '
        f'from block {found["merge"]["start"]} on, at evaluation only. Speed '
        f'is that of the first seed, {found["speed_batch"]} images per call, '
        'in alternation.',
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
        'All criteria after full dilution, best first:',
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
  hows = ('sequential', 'at once', 'refit')

  def spread_of(gains: list[float]) -> str:
    mean = sum(gains) / len(gains)
    extremes = f'from {min(gains):+.2f} to {max(gains):+.2f}'
    return f'{mean:+.2f} points on average, {extremes}'

  def section(name: str, found: dict[str, Any]) -> str:
    rows = found['rows']
    kinds = [
      kind for kind in every if any(f'linear {kind} at' in key for key in rows)
    ]
    dense = rows['dense']['top1']

    def cells(key: str) -> list[str]:
      names = ['identity', 'skip', 'skip refit']
      names += [f'linear {kind} {how}' for kind in kinds for how in hows]
      return [percent(rows[f'{key} {name}']['top1']) for name in names]

    def gain(key: str, other: str) -> float:
      return 100 * (rows[key]['top1'] - rows[other]['top1'])

    in_turn = [key for key in rows if key.endswith(' sequential')]
    gains = [gain(key, key.replace('sequential', 'at once')) for key in in_turn]
    added = {
      how: spread_of(
        [gain(key.replace('sequential', how), key) for key in in_turn]
      )
      for how in ('recentred', 'refit')
    }
    keys = [key.removesuffix(' skip') for key in rows if key.endswith(' skip')]
    keys.sort(key=lambda key: (int(key.split()[-1]), key))
    bare = [gain(f'{key} skip refit', f'{key} skip') for key in keys]
    header = ['criterion, layers', 'identity', 'left out', 'left out, refit']
    header += [
      f'{kind}, {how}'
      for kind in kinds
      for how in ('in sequence', 'at once', 'refit')
    ]
    return '\n\n'.join(
      [
        f'## Without training: {name}\n\n'
        f'One trained network (top-1 {percent(dense)}%), '
        f'{found["images"]} unlabelled images, all test images. Attention is '
        'replaced by the identity, left out, or replaced by an affine map: of '
        "the token, also of the mean of the image's tokens, with a separate "
        'map for the class token, or all three; fitted in sequence or at once. '
        '`refit`: later MLPs are refitted to compensate (maps fitted in '
        f'sequence). Top-1 in %. A refit adds {spread_of(bare)} where '
        f'attention is left out, {added["refit"]} to maps. Re-centred norms '
        f'instead add {added["recentred"]} to maps. In sequence minus at once, '
        f'over all rows: {spread_of(gains)}.',
        table(header, [[key, *cells(key)] for key in keys]),
        origin('training_free', 'training_free.py', found),
      ]
    )

  return '\n\n'.join(section(*item) for item in of_sets.items())


def block_tables(of_sets: dict[str, Any]) -> str:
  """Affine maps in place of whole blocks and of attention alone."""

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
        f'One trained network, {found["images"]} unlabelled images, '
        f'{found["num_images"]:,} test images, no training. An affine map of '
        'each token replaces consecutive blocks (`mapped`: the idea of TOAST, '
        'written from its description; the span is the best of its length by '
        'test accuracy); or blocks are dropped, those with the smallest angle '
        'between input and output (or the best by test accuracy), and MLPs '
        'refitted to compensate; or maps replace the attention of the blocks '
        'that criterion `affine` chooses.',
        table(('replaced', 'blocks', 'top-1 %', 'MMACs'), rows),
        origin('block_maps', 'block_maps.py', found),
      ]
    )

  return '\n\n'.join(section(*item) for item in of_sets.items())


def neighbourhood_tables(of_sets: dict[str, Any]) -> str:
  """The gain of further inputs and corrected norms for affine maps."""
  additions = (
    'depthwise',
    'separable',
    'local mean',
    'all eight',
    're-centred',
  )

  def section(name: str, found: dict[str, Any]) -> str:
    rows = found['rows']

    def addition(key: str, kind: str) -> str:
      row = rows.get(f'{key}, {kind}')
      if row is None:
        return ''
      return f'{100 * row["gain"]:+.2f} ± {100 * row["interval"]:.2f}'

    lines = [
      (
        key,
        layers(row['blocks']),
        percent(row['top1']),
        *(addition(key, kind) for kind in additions),
      )
      for key, row in rows.items()
      if 'gain' not in row and row['blocks'] and 'whole' not in key
    ]
    return '\n\n'.join(
      [
        f'## Neighbours and re-centred norms: {name}\n\n'
        f'One trained network with a grid of {found["grid"][0]} x '
        f'{found["grid"][1]} (dense {percent(rows["dense"]["top1"])}%), '
        f'{found["images"]} unlabelled images, {found["num_images"]:,} test '
        'images. Top-1 in % with maps fitted in sequence, and the gain in '
        'points, with the 95% interval over paired images, from a depthwise or '
        'separable 3 x 3 term, the mean of the 3 x 3 tokens or all eight '
        'neighbours as further inputs, and from correcting the later norms. '
        'Blank cells were not measured.',
        table(
          ('criterion, layers, inputs', 'blocks', 'top-1 %', *additions), lines
        ),
        origin('neighbourhood', 'neighbourhood.py', found),
      ]
    )

  return '\n\n'.join(section(*item) for item in of_sets.items())


def narrow_tables(of_sets: dict[str, Any]) -> str:
  """Every block narrowed (the idea of CORP)."""

  def section(name: str, found: dict[str, Any]) -> str:
    rows = found['rows']
    lines = [
      (
        key,
        percent(row['top1']),
        percent(rows[f'{key}, left out']['top1']) if key != 'dense' else '',
        f'{row["macs"] / 1e6:.3f}',
      )
      for key, row in rows.items()
      if not key.endswith('left out')
    ]
    return '\n\n'.join(
      [
        f'## Every block narrowed: {name}\n\n'
        'The idea of CORP, written from its description, on the network of '
        'the previous table: a share of the channels of MLPs, or of queries '
        'and keys, is removed from every block without training; removed '
        'channels are predicted from the remaining ones by ridge regression, '
        'or left out.',
        table(('removed', 'top-1 %', 'left out', 'MMACs'), lines),
        origin('narrow_layers', 'narrow_layers.py', found),
      ]
    )

  return '\n\n'.join(section(*item) for item in of_sets.items())


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
  'digits_table': digits_table,
  'fashion_mnist_table': fashion_table,
  'method_table': method_tables,
  'segmentation_table': segmentation_table,
  'selection_quality': quality_tables,
  'training_free': training_free_tables,
  'block_maps': block_tables,
  'neighbourhood': neighbourhood_tables,
  'narrow_layers': narrow_tables,
}
