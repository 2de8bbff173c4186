"""Tables of a DINOv2 backbone whose attention layers are replaced without training."""

from collections.abc import Iterable
from typing import Any

from tables.parts import layers, origin, percent, table

PROBE = 'with a fixed linear probe on its dense class token'
HEADS = {
  'cifar10_fine_tuned': (
    'after two epochs of fine-tuning on the 10,000 training images, as '
    '[`evidence.py`](../benchmarks/evidence.py) does it, with the head of that'
  )
}


def real_backbone_tables(of_sets: dict[str, Any]) -> str:
  """Attention layers of a DINOv2 backbone replaced without training."""

  def section(name: str, found: dict[str, Any]) -> str:
    dense = found['dense_macs']
    rows = []
    for key, row in found['rows'].items():
      if 'top1' not in row:
        continue
      draw, rest = key.split(' ', 1)
      change, half = row['change']
      rows.append(
        (
          rest,
          layers(row['layers']),
          draw,
          percent(row['top1']),
          f'{100 * change:+.2f} ± {100 * half:.2f}',
          f'{row["kl"]:.3f}',
          f'{row["feature_error"]:.3f}',
          f'{dense / row["macs_executed"]:.3f}',
          f'{row["parameters"] / 1e6:.2f}',
        )
      )
    return '\n\n'.join(
      [
        f'## Without training, a real backbone: {name}\n\n'
        f'DINOv2 ViT-S/14 at 112 pixels {HEADS.get(name, PROBE)} '
        f'(top-1 {percent(found["dense_top1"])}%, '
        f'{found["test_images"]} test images, {dense / 1e6:.0f} million '
        'multiply-accumulates executed). The weights are those of a package '
        'that tuned the backbone for finding what matters in an image; their '
        "features are weaker than the original's. Fits and choices see "
        f'{found["images"]} unlabelled training images. Rows: how the layers '
        'were chosen, how many, and what replaces them: `own output` are maps '
        "of token, mean and class token fitted to the attention's own output; "
        'the others aim at the dense stream, `stream` with the same inputs and '
        'the rest with further ones. `output` chooses with maps of token and mean, '
        '`output mixing` with those of `mixing positions`. `mirrored`: fitted to mirrored '
        'copies as well, `crops`: and to random crops; `polish`: 300 steps of it on '
        'the same images; `views`: so many steps with other crops in each. '
        'Divergence: of the logits from the dense '
        'ones, mean KL in nats. Error: of the class feature, as a share of its '
        'variance over images. Change in points, with its paired 95% interval.',
        table(
          (
            'row',
            'layers',
            'draw',
            'top-1 %',
            'change',
            'divergence',
            'error',
            'times fewer MACs',
            'M parameters',
          ),
          rows,
        ),
        origin('real_backbone', 'real_backbone.py', found),
      ]
    )

  return '\n\n'.join(section(*item) for item in of_sets.items())


def orders(found: dict[str, Any], draw: int = 0) -> dict[str, list[int]]:
  """Per criterion the layers in the order of their removal."""
  begin, end = f'{draw} ', ' order'
  return {
    key.removeprefix(begin).removesuffix(end): row['order']
    for key, row in found['rows'].items()
    if key.startswith(begin) and key.endswith(end)
  }


def rows_of(
  found: dict[str, Any], order: list[int], kind: str, draw: int = 0
) -> dict[int, dict[str, Any]]:
  """By number of layers, what was measured of the beginnings of an order."""
  keys = {
    count: f'{draw} {kind}: {" ".join(map(str, sorted(order[:count])))}'
    for count in range(1, len(order) + 1)
  }
  return {n: found['rows'][k] for n, k in keys.items() if k in found['rows']}


def curves(found: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
  """Per criterion, with maps of `stream`, its rows of the first draw."""
  measured = {
    name: rows_of(found, order, 'stream')
    for name, order in orders(found).items()
  }
  return {name: rows for name, rows in measured.items() if rows}


def kind_curves(found: dict[str, Any]) -> dict[str, dict[int, dict[str, Any]]]:
  """Per stand-in, for the layers of `output`, its rows of the first draw."""
  order = orders(found).get('output', [])
  kinds = {
    key.partition(':')[0].partition(' ')[2]: None
    for key in found['rows']
    if ':' in key
  }
  measured = {kind: rows_of(found, order, kind) for kind in kinds}
  return {kind: rows for kind, rows in measured.items() if rows}


def curve_tables(of_sets: dict[str, Any]) -> str:
  """Top-1 by number of layers, for criteria and for stand-ins."""

  def grid(
    what: tuple[str, str],
    measured: dict[str, dict[int, dict[str, Any]]],
    notes: Any,
  ) -> str:
    counts = sorted({count for rows in measured.values() for count in rows})

    def cells(name: str, rows: dict[int, dict[str, Any]]) -> Iterable[str]:
      yield f'`{name}`'
      yield notes(name, rows)
      for count in counts:
        yield percent(rows[count]['top1']) if count in rows else ''

    header = (what[0], what[1], *map(str, counts))
    return table(header, [cells(*item) for item in measured.items()])

  def section(name: str, found: dict[str, Any]) -> str:
    order = orders(found)
    dense = found['dense_macs']
    halves = [r['change'][1] for r in found['rows'].values() if 'change' in r]
    low, high = 100 * min(halves), 100 * max(halves)

    def fewer(_: str, rows: dict[int, dict[str, Any]]) -> str:
      most = max(rows)
      return f'{dense / rows[most]["macs_executed"]:.3f} at {most}'

    return '\n\n'.join(
      [
        f'## Layer after layer, a real backbone: {name}\n\n'
        'DINOv2 ViT-S/14 at 112 pixels with a fixed linear probe (top-1 '
        f'{percent(found["dense_top1"])}%, {found["test_images"]} test images); '
        f'{found["images"]} unlabelled images, the first draw. Top-1 in % after so many '
        'attention layers, in the order of each criterion, have become maps of token, '
        'mean and class token, fitted to the dense stream (`stream`); nothing else '
        'changes. `loss_increase` sees labels. The half width of the 95% interval of a '
        f"figure's difference to dense is {low:.1f} to {high:.1f} points.",
        grid(
          ('criterion', 'order'),
          curves(found),
          lambda criterion, rows: layers(order[criterion]),
        ),
        'The layers of `output`, and what replaces them:',
        grid(('stand-in', 'times fewer MACs'), kind_curves(found), fewer),
        origin('removal_curves', 'removal_curves.py', found),
      ]
    )

  return '\n\n'.join(section(*item) for item in of_sets.items())
