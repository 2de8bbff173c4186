"""Tables of models changed without training."""

from collections.abc import Callable
from typing import Any

from tables import real_backbone
from tables.parts import layers, origin, percent, table

HEAD = """# Results without training, in detail

Made by [`docs/make_tables.py`](make_tables.py). A real backbone as its attention goes,
layer after layer (its other rows are in
[results.md](results.md#without-training-a-real-backbone-caltech101)); below, small
networks, for a look at one effect at a time.
"""


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
  'removal_curves': real_backbone.curve_tables,
  'training_free': training_free_tables,
  'block_maps': block_tables,
  'neighbourhood': neighbourhood_tables,
  'narrow_layers': narrow_tables,
}

# After the head, with what it shows in words.
PICTURES = ('removal.svg',)
