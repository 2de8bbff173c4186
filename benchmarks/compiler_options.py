"""Where our XLA options for CPUs pay: whole networks with and without them.

  python benchmarks/compiler_options.py [--seconds=20] [--toy]

A forward pass of random weights, float32, in turn; the ratio of the medians has
a 95% interval, which a busy machine widens but does not shift. Writes
docs/benchmarks/compiler_options.json, row by row: a run that was stopped resumes,
and a complete one is repeated. `runtime/compilation.py` has the rule that follows.
`--toy` times the smallest network for a moment and writes nothing.
"""

import argparse

import common
import jax
import jax.numpy as jnp
import numpy as np

from lambda_vit_jax.evaluation import timing
from lambda_vit_jax.models.build import apply_module
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.runtime import compilation

# The network and the images of a call.
CASES = (
  ('vit_mini_patch2_8', 1),
  ('vit_mini_patch2_8', 16),
  ('vit_mini_patch2_8', 64),
  ('vit_mini_patch4_32', 16),
  ('deit_tiny_patch16_224', 4),
  ('deit_small_patch16_224', 1),
  ('deit_small_patch16_224', 4),
  ('deit_base_patch16_224', 1),
)
OUTPUT = common.RESULTS / 'compiler_options.json'


def measure(variant: str, batch: int, limits: timing.Limits) -> dict:
  """Times one network; the ratio is above 1 where the options pay."""
  model = create_model(variant)
  module = model.module
  shape = (batch, *module.image_size, module.in_chans)
  images = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

  def logits(params, images):
    return apply_module(module, params, images, capture=False)[0]

  programs = {
    'without': jax.jit(logits),
    'with': compilation.Program(logits),
  }
  compiled = {
    name: program.lower(model.params, images).compile()
    for name, program in programs.items()
  }
  seconds = timing.measure(
    {
      name: lambda run=run: run(model.params, images)
      for name, run in compiled.items()
    },
    limits,
    ('without', 'with'),
  )
  ratio = timing.ratio(seconds['without'], seconds['with'])
  return {
    'width': module.embed_dim,
    'tokens': module.num_tokens,
    'batch': batch,
    'rounds': len(seconds['with']),
    'milliseconds': {
      name: 1e3 * float(np.median(times)) for name, times in seconds.items()
    },
    'ratio': ratio.value,
    'interval': ratio.interval,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--seconds', type=float, default=20.0)
  parser.add_argument('--toy', action='store_true', help='tries the script')
  options = parser.parse_args()
  if not compilation.compiler_options():
    parser.error('this processor or compiler has no options to measure')
  # So that small networks are compiled with the options, too.
  compilation._LEAST_WIDTH = 1
  limits = timing.Limits(seconds=0.1 if options.toy else options.seconds)
  before = common.read(OUTPUT)
  # Without a date it is not complete.
  rows = {} if options.toy or 'date' in before else before.get('rows', {})
  for variant, batch in CASES[:1] if options.toy else CASES:
    name = f'{variant}, {batch} images'
    if name not in rows:
      rows[name] = measure(variant, batch, limits)
      print(name, rows[name], flush=True)
    if not options.toy:
      common.write(OUTPUT, {'rows': rows})
  if not options.toy:
    common.write(OUTPUT, {'rows': rows, **common.provenance()})


if __name__ == '__main__':
  main()
