"""The sections of docs/results.md, one function per table."""

import statistics
from collections.abc import Callable
from typing import Any

from tables import compression, evidence, real_backbone
from tables.parts import layers, origin, percent, span, table

HEAD = """# Results

Made by [`docs/make_tables.py`](make_tables.py) from the figures in
[`docs/benchmarks`](benchmarks). None of them is for ImageNet: the published
accuracies for it are in [evidence.md](evidence.md) and not verified by us.
The details of maps, refits and dropped blocks on small networks are in
[results_training_free.md](results_training_free.md).
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


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
  'compress': compression.compression_tables,
  'real_backbone': real_backbone.real_backbone_tables,
  'digits_table': digits_table,
  'fashion_mnist_table': fashion_table,
  'method_table': method_tables,
  'segmentation_table': segmentation_table,
  'camvid': evidence.scenes_table,
  'selection_quality': quality_tables,
}

# After the head, with what they show in words.
PICTURES = ('frontier.svg', 'changes.svg')
