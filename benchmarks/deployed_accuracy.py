r"""Accuracy of a real backbone's files in the runtimes that open them.

The backbone, probe and test images of real_backbone.py; the probe is the head of
the exported network. Int8 is calibrated on half of the 512 unlabelled training
images of a draw; every file answers all test images.

  python benchmarks/deployed_accuracy.py --name=caltech101 \
    --weights=DIR/dinov2_vits14.safetensors --data=image_folder:DIR/caltech101 \
    --cache=DIR/cache [--draws 0]

Rows are `DRAW RUNTIME DTYPE`, kept when they are measured. Writes
docs/benchmarks/deployed_accuracy.json, one entry per name.
"""

import argparse
import functools
import pathlib
from typing import Any

import common
import real_backbone
from real_backbone import Table

import lambda_vit_jax as lv
from lambda_vit_jax.exporters import runtimes

OUTPUT = common.RESULTS / 'deployed_accuracy.json'
RUNTIMES = ('onnxruntime', 'openvino')


def export(table: Table, draw: int, dtype: str, folder: pathlib.Path) -> None:
  """Writes the files of both runtimes, whatever accuracy they cost."""
  if (folder / 'model.json').exists():
    return
  lv.export(
    table.dense,
    folder,
    formats=[runtimes.RUNTIMES[name].format for name in RUNTIMES],
    dtype=dtype,
    check_images=table.draw(draw),
    int8_arithmetic='static:1' if dtype == 'int8' else 'weights',
  )


def answers(
  table: Table, draw: int, name: str, dtype: str, cache: pathlib.Path
) -> dict[str, Any]:
  """What a file is worth in a runtime."""
  stored = 'int8' if dtype == 'int8' else 'float32'
  folder = cache / f'deployed_{draw}_{stored}'
  export(table, draw, stored, folder)
  found = table.answers(runtimes.open_export(name, folder, dtype))
  return found | {'device': common.provenance()['device']}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  real_backbone.add_arguments(parser)
  options = parser.parse_args()
  table, cache = real_backbone.open_table(options, OUTPUT)
  for draw in options.draws:
    for name in RUNTIMES:
      for dtype in runtimes.RUNTIMES[name].dtypes():
        compute = functools.partial(answers, table, draw, name, dtype, cache)
        table.row(f'{draw} {name} {dtype}', compute)


if __name__ == '__main__':
  main()
