r"""Make a selection that ships with the package, `lv.load_selection(NAME)`.

NOSE on 512 unlabelled images of the table in real_backbone.py, as far as eight
of twelve attention layers. The scores are those of a linear probe's logits.

  python benchmarks/stored_selection.py --name=caltech101 \
    --weights=DIR/dinov2_vits14.safetensors --data=image_folder:DIR/caltech101 \
    --cache=DIR/cache

Writes lambda_vit_jax/selection/stored_files/VARIANT.json.
"""

import argparse
import pathlib

import common
import real_backbone

import lambda_vit_jax as lv

FOLDER = common.ROOT / 'lambda_vit_jax' / 'selection' / 'stored_files'


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  real_backbone.add_arguments(parser)
  parser.add_argument('--num-layers', type=int, default=8)
  parser.add_argument('--folder', type=pathlib.Path, default=FOLDER)
  options = parser.parse_args()
  table, _ = real_backbone.open_table(options, real_backbone.OUTPUT)
  found = lv.nose(table.dense, [table.draw(0)], num_layers=options.num_layers)
  print(found)
  common.write(options.folder / f'{options.variant}.json', found.to_json())


if __name__ == '__main__':
  main()
