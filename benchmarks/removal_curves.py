r"""Accuracy against operations as attention layers go, for every criterion.

The network, probe and images of real_backbone.py. Each criterion orders eight of the
twelve layers; of each beginning of that order, maps of token, mean and class token
(`stream`) take the place. `--kinds` takes other stand-ins, of the criteria that
`--choices` names. Sets that several criteria choose are fitted once.

  python benchmarks/removal_curves.py --name=caltech101 --draws 0 \
    --weights=DIR/dinov2_vits14.safetensors --data=image_folder:DIR/caltech101 \
    --cache=DIR/cache

Finished rows are kept, so the script resumes where it was stopped. Writes
docs/benchmarks/removal_curves.json, one entry per name.
"""

import argparse
from typing import Any

import common
import real_backbone
from real_backbone import CHOICES, KINDS

OUTPUT = common.RESULTS / 'removal_curves.json'
MOST = 8
# The options of `lv.nose`.
CRITERIA: dict[str, Any] = {
  **{
    name: how
    for name, how in CHOICES.items()
    if name not in ('given', 'output mixing')
  },
  # Of those that see images, the only one that sees labels.
  'loss_increase': {'criterion': 'loss_increase'},
  **{f'random {i}': {'criterion': 'random', 'seed': i} for i in range(5)},
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  real_backbone.add_arguments(parser)
  parser.add_argument('--counts', nargs='+', type=int, default=range(1, 9))
  parser.add_argument('--kinds', nargs='+', choices=KINDS, default=['stream'])
  parser.add_argument(
    '--choices', nargs='+', choices=CRITERIA, default=CRITERIA
  )
  options = parser.parse_args()
  table, _ = real_backbone.open_table(options, OUTPUT)
  for draw in options.draws:
    # The orders come first: what they share is known then.
    orders = [
      real_backbone.searched(table, draw, name, CRITERIA[name], MOST)
      for name in options.choices
    ]
    for count in options.counts:
      for order in orders:
        layers = sorted(order[:count])
        for kind in options.kinds:
          names = ' '.join(map(str, layers))
          table.row(
            f'{draw} {kind}: {names}',
            lambda layers=layers, kind=kind, draw=draw: real_backbone.fitted(
              table, draw, layers, kind
            ),
          )


if __name__ == '__main__':
  main()
