r"""Speed of matrix products on one CPU core, with and without our compiler options.

  python benchmarks/products.py [--rounds=15]

Products of the shapes that a ViT has, float32, timed in turn, in billions of
operations per second of CPU time:

  default   `jax.jit`, as XLA chooses (YNNPACK)
  whole     with `compilation.compiler_options`, in one piece
  used      the same, in the pieces that the package uses

The last row is a softmax attention of DeiT-S, which is not split. Writes
docs/benchmarks/products.json.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import common

OUTPUT = common.RESULTS / 'products.json'
SHAPES = (
  # Rows, inputs, outputs: qkv, projection, and the MLP's two, of T, S, B, L.
  (3152, 192, 576),
  (3152, 192, 768),
  (3152, 768, 192),
  (3152, 384, 1152),
  (3152, 384, 1536),
  (3152, 1536, 384),
  (3152, 768, 2304),
  (3152, 768, 3072),
  (3152, 3072, 768),
  (1576, 1024, 1024),
  (1576, 1024, 4096),
  (1576, 4096, 1024),
  (197, 768, 3072),
  (197, 1024, 4096),
)


def calls_of(
  rows: int, inputs: int, outputs: int
) -> dict[str, Callable[[], Any]]:
  """The product in its three forms."""
  import jax.numpy as jnp
  import numpy as np

  from lambda_vit_jax.models import quantization
  from lambda_vit_jax.models.quantization import Matrix

  rng = np.random.default_rng(0)
  left = jnp.asarray(rng.normal(size=(rows, inputs)), jnp.float32)
  right = jnp.asarray(rng.normal(size=(inputs, outputs)), jnp.float32)
  return forms(
    jnp.matmul,
    lambda x, y: quantization.product(x, Matrix(y)),
    (left, right),
  )


def forms(
  whole: Callable[..., Any],
  used: Callable[..., Any],
  arguments: tuple[Any, ...],
) -> dict[str, Callable[[], Any]]:
  """Calls that wait for their results."""
  import jax

  from lambda_vit_jax.runtime import compilation

  programs = {
    'default': jax.jit(whole),
    'whole': compilation.Program(whole),
    'used': compilation.Program(used),
  }
  return {
    name: lambda program=program: jax.block_until_ready(program(*arguments))
    for name, program in programs.items()
  }


def attention_calls() -> tuple[dict[str, Callable[[], Any]], int]:
  """Softmax attention of a DeiT-S, 16 images, and its multiply-accumulates."""
  import jax.numpy as jnp
  import numpy as np

  from lambda_vit_jax.models.attention import dot_product_attention

  shape = (16, 6, 197, 64)
  rng = np.random.default_rng(0)
  arguments = tuple(
    jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3)
  )
  macs = 2 * 16 * 6 * 197 * 197 * 64
  return forms(dot_product_attention, dot_product_attention, arguments), macs


def time_forms(
  calls: dict[str, Callable[[], Any]], macs: int, rounds: int
) -> dict[str, dict[str, float]]:
  """Billions of operations a second of each form: best and median."""
  seconds: dict[str, list[float]] = {name: [] for name in calls}
  for call in calls.values():
    call()
  for _ in range(rounds):
    for name, call in calls.items():
      began = time.process_time()
      call()
      seconds[name].append(time.process_time() - began)
  return {
    name: {
      'best': 2e-9 * macs / min(times),
      'median': 2e-9 * macs / statistics.median(times),
    }
    for name, times in seconds.items()
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=15)
  options = parser.parse_args()
  # Before JAX starts: its pool has as many threads as there are cores.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])

  from lambda_vit_jax.runtime import compilation, startup

  startup.keep_memory()
  found: dict[str, Any] = {}
  for shape in SHAPES:
    rows, inputs, outputs = shape
    name = ' x '.join(map(str, shape))
    found[name] = time_forms(
      calls_of(*shape), rows * inputs * outputs, options.rounds
    )
    print(name, found[name], flush=True)
  calls, macs = attention_calls()
  found['attention of DeiT-S, 16 images'] = time_forms(
    calls, macs, options.rounds
  )
  common.write(
    OUTPUT,
    {
      'gflops': found,
      'compiler_options': compilation.compiler_options(),
      'rounds': options.rounds,
      **common.provenance(),
    },
  )


if __name__ == '__main__':
  main()
