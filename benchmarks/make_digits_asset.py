"""Write the dense digits model that the quickstart starts from.

  lambda-vit pretrain --config=configs/digits.py:scratch --workdir=runs/dense
  python benchmarks/make_digits_asset.py --workdir=runs/dense

Writes `lambda_vit_jax/checkpoints/builtin/vit_mini_patch2_8_digits.safetensors`
and a JSON file with the config, the seed and the accuracy.
"""

import argparse
import pathlib

import common
from safetensors.numpy import save_file

from lambda_vit_jax.checkpoints import convert
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core import files
from lambda_vit_jax.core.schema import Object
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.runtime.progress import Reporter

ASSETS = common.ROOT / 'lambda_vit_jax/checkpoints/builtin'
NAME = 'vit_mini_patch2_8_digits'


def write_asset() -> None:
  """Evaluates the workdir's dense model and writes it into the package."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', default='runs/dense')
  workdir = pathlib.Path(parser.parse_args().workdir)
  config = files.read_json(workdir / 'config.json', Object())
  run = Run(config, str(workdir), Reporter())
  model = run.load('pretrain')
  scores = accuracy.evaluate_model(
    model, run.eval_batches(model.preprocessing), run.mesh
  )
  save_file(convert.encode(model.params), ASSETS / f'{NAME}.safetensors')
  about = {
    'command': 'lambda-vit pretrain --config=configs/digits.py:scratch',
    'seed': config['seed'],
    'evaluation': scores,
    **common.provenance(),
    'config': config,
  }
  common.write(ASSETS / f'{NAME}.json', about)
  print(scores)


if __name__ == '__main__':
  write_asset()
