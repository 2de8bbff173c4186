"""The sections of docs/performance.md on input, loading and start-up."""

from typing import Any

from tables.parts import origin, span, table


def pipeline_table(found: dict[str, Any]) -> str:
  """The input pipeline compared with timm's."""
  rows = [
    (
      f'{row["size"][0]} x {row["size"][1]}',
      name.replace('_', ' '),
      span(rate, 1),
      span(row['ratios'][name]) if name in row['ratios'] else '',
    )
    for row in found['photographs']
    for name, rate in row['images_per_cpu_second'].items()
  ]
  return '\n\n'.join(
    [
      '## Input pipeline\n\n'
      'JPEG photographs to 224 pixels, full DeiT augmentation, images per '
      'second of one core, and how many times as fast ours is. timm in worker: '
      'ToTensor and Normalize in the DataLoader. timm collated: its own uint8 '
      'collation, batches normalised as a whole. All of them resize and warp '
      'with Pillow; ours decodes the crop of a large photograph at a fraction '
      'of its size.',
      table(
        ('pixels', 'pipeline', 'images per CPU second', 'ours over it'), rows
      ),
      origin('pipeline', 'pipeline.py', found),
    ]
  )


def startup_table(found: dict[str, Any]) -> str:
  """The start-up time of commands, and what the compile cache saves."""
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
      'export, first and later starts, each in a fresh process. Compiling and '
      f'the first call of {cache["variant"]} are {ratio["wall"]:.1f} times as '
      f'fast with the compile cache ({ratio["processor"]:.1f} times by '
      'processor time). Tracing, which is not cached, is not included; with '
      f'it, {ratio["wall_and_trace"]:.1f} times.',
      table(('command', 'seconds', 'processor seconds', 'bound'), rows),
      origin('startup', 'startup.py', found),
    ]
  )


def loading_table(found: dict[str, Any]) -> str:
  """The time and memory of loading a safetensors file."""
  peak = found['peak_over_file']
  return '\n\n'.join(
    [
      '## Loading\n\n'
      f'{found["variant"]} from safetensors, {found["file_bytes"] / 1e6:.0f} '
      f'MB: {span(found["seconds"])} s; the peak of memory that loading adds '
      f'is {peak["added_by_loading"]:.2f} times the file, that of the whole '
      f'process {peak["whole_process"]:.2f} times.',
      origin('loading', 'loading.py', found),
    ]
  )
