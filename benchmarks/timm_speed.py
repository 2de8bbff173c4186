r"""Inference and training speed against PyTorch and timm, timed in turn.

  python benchmarks/timm_speed.py [--case=infer-small-16 ...] [--rounds=7]
    [--compile] [--threads=2]

Needs the extra `[parity]`. A case is `infer-SIZE-BATCH` or `train-SIZE-BATCH`
for DeiT tiny, small or base at 224 pixels, float32. In turn, A B C A B C …:

  timm        eager; with --compile also `timm_compile`, torch.compile
  dense       this package
  pruned      this package, the paper's larger set removed (inference)
  matmul      XLA's own product of the MLP's shape (up-projection)
  product     the same product as this package computes it, see `compilation`

Memory that a call frees is kept for the next one, of either side (as the
command line does, see `startup.keep_memory`). Medians over the rounds; a ratio
is the median of the rounds' ratios, with their extremes. With --threads=1 both
sides run on one core, and CPU time decides. Each case is written to
docs/benchmarks/timm_speed.json when it is done; other cases stay.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import common

OUTPUT = common.RESULTS / 'timm_speed.json'
REMOVED = {
  'tiny': (0, 2, 4, 6),
  'small': (0, 2, 4, 6),
  'base': (0, 1, 3, 4, 6, 9),
}
CASES = (
  'infer-tiny-1',
  'infer-tiny-16',
  'infer-small-1',
  'infer-small-16',
  'infer-base-1',
  'infer-base-16',
  'train-tiny-16',
)
WARM_UP = 2


def torch_calls(
  kind: str, variant: str, batch_size: int, compile_too: bool
) -> dict[str, Callable[[], Any]]:
  """Calls of timm's network: a forward pass, or a step with fused AdamW."""
  import timm
  import torch

  torch.manual_seed(0)
  images = torch.randn(batch_size, 3, 224, 224)
  if kind == 'infer':
    network = timm.create_model(variant, pretrained=False).eval()
    networks = {'timm': network}
    if compile_too:
      networks['timm_compile'] = torch.compile(network)

    def forward(network: Any) -> Callable[[], Any]:
      def call() -> Any:
        with torch.inference_mode():
          return network(images)

      return call

    return {name: forward(network) for name, network in networks.items()}

  network = timm.create_model(variant, pretrained=False).train()
  optimizer = torch.optim.AdamW(
    network.parameters(), lr=1e-4, weight_decay=0.05, fused=True
  )
  labels = torch.randint(0, 1000, (batch_size,))

  def step() -> Any:
    optimizer.zero_grad()
    logits = network(images)
    loss = torch.nn.functional.cross_entropy(
      logits, labels, label_smoothing=0.1
    )
    loss.backward()
    optimizer.step()
    return loss.item()

  return {'timm': step}


def jax_inference(
  size: str, variant: str, batch_size: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
  """Calls of the dense and the pruned model, and the sizes of both."""
  import jax.numpy as jnp
  import numpy as np

  from lambda_vit_jax.evaluation import benchmark
  from lambda_vit_jax.models.edits import prune
  from lambda_vit_jax.models.model import create_model

  rng = np.random.default_rng(0)
  images = jnp.asarray(rng.normal(size=(batch_size, 224, 224, 3)), jnp.float32)
  dense = create_model(variant)
  models = {'dense': dense, 'pruned': prune(dense, REMOVED[size])}
  calls, sizes = {}, {}
  for name, model in models.items():
    calls[name], sizes[name] = benchmark.compile_model(model, images)
  calls |= matmuls(dense, batch_size)
  return calls, sizes


def matmul_shape(module: Any, batch_size: int) -> tuple[int, int, int]:
  """Rows, inner size and columns of the MLP's up-projection."""
  return (
    batch_size * module.num_tokens,
    module.embed_dim,
    int(module.embed_dim * module.mlp_ratio),
  )


def matmuls(model: Any, batch_size: int) -> dict[str, Callable[[], Any]]:
  """Twelve up-projections per call, to take about as long as a network."""
  import jax
  import jax.numpy as jnp

  from lambda_vit_jax.models import quantization
  from lambda_vit_jax.runtime import compilation

  rows, inner, columns = matmul_shape(model.module, batch_size)
  left = jnp.ones((rows, inner), jnp.float32)
  right = jnp.ones((inner, columns), jnp.float32)

  def twelve(multiply: Callable[..., Any]) -> Callable[[], Any]:
    def call() -> Any:
      for _ in range(11):
        multiply(left, right)
      return multiply(left, right)

    return call

  ours = compilation.Program(
    lambda x, y: quantization.product(x, quantization.Matrix(y))
  )
  return {'matmul': twelve(jax.jit(jnp.matmul)), 'product': twelve(ours)}


def jax_training(
  variant: str, batch_size: int
) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
  """A call that takes one step of plain training."""
  import jax
  import numpy as np

  from lambda_vit_jax.models.model import create_model
  from lambda_vit_jax.runtime import sharding
  from lambda_vit_jax.training import optim
  from lambda_vit_jax.training.dilution import Dilution
  from lambda_vit_jax.training.step import (
    LossSettings,
    init_state,
    make_train_step,
  )

  model = create_model(variant)
  settings = {
    'weight_decay': 0.05,
    'b1': 0.9,
    'b2': 0.999,
    'clip_norm': 0.0,
    'layer_decay': 1.0,
    'frozen': '',
    'accumulate_steps': 1,
  }
  optimizer = optim.make_optimizer(settings, lambda _: 1e-4, model.depth)
  mesh = sharding.make_mesh(1)
  state = init_state(model.params, optimizer, with_ema=False)
  shardings = sharding.tree_shardings(state, mesh)
  step = make_train_step(
    model.module,
    optimizer,
    LossSettings(label_smoothing=0.1),
    Dilution(),
    0,
    mesh,
    shardings,
  )
  rng = np.random.default_rng(0)
  batch = sharding.put_batch(
    {
      'image': rng.normal(size=(batch_size, 224, 224, 3)).astype(np.float32),
      'label': rng.integers(0, 1000, batch_size).astype(np.int32),
    },
    mesh,
  )
  holder = {'state': jax.device_put(jax.tree.map(np.array, state), shardings)}

  def call() -> Any:
    holder['state'], metrics = step(holder['state'], batch, None)
    return metrics['loss']

  return {'dense': call}, {'dense': {'macs_executed': model.macs(True)}}


def time_in_turn(
  calls: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Wall and CPU seconds of every call in every round."""
  import jax

  wall: dict[str, list[float]] = {name: [] for name in calls}
  cpu: dict[str, list[float]] = {name: [] for name in calls}
  for index in range(WARM_UP + rounds):
    for name, call in calls.items():
      began, began_cpu = time.perf_counter(), time.process_time()
      jax.block_until_ready(call())
      if index >= WARM_UP:
        wall[name].append(time.perf_counter() - began)
        cpu[name].append(time.process_time() - began_cpu)
    print(
      {name: round(times[-1], 3) for name, times in wall.items() if times},
      flush=True,
    )
  return wall, cpu


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
  """How many times faster the second is, per round."""
  return common.spread(a / b for a, b in zip(over, under, strict=True))


def run_case(case: str, options: argparse.Namespace) -> dict[str, Any]:
  """Times one case; see the head of the module."""
  from lambda_vit_jax.models.model import create_model

  kind, size, batch = case.split('-')
  batch_size, variant = int(batch), f'deit_{size}_patch16_224'
  calls = torch_calls(kind, variant, batch_size, options.compile)
  if kind == 'infer':
    ours, sizes = jax_inference(size, variant, batch_size)
  else:
    ours, sizes = jax_training(variant, batch_size)
  calls |= ours
  wall, cpu = time_in_turn(calls, options.rounds)
  medians = {name: statistics.median(times) for name, times in wall.items()}
  references = [name for name in calls if name.startswith('timm')]
  best = min(references, key=medians.__getitem__)
  result: dict[str, Any] = {
    'threads': options.threads,
    'wall_seconds': wall,
    'cpu_seconds': cpu,
    'images_per_second': {
      name: batch_size / seconds
      for name, seconds in medians.items()
      if name not in ('matmul', 'product')
    },
    'best_reference': best,
    'dense_over_timm': ratio(wall[best], wall['dense']),
    'dense_over_timm_cpu': ratio(cpu[best], cpu['dense']),
    'sizes': sizes,
  }
  if kind == 'infer':
    macs = {name: row['macs_executed'] for name, row in sizes.items()}
    rows, inner, columns = matmul_shape(
      create_model(variant).module, batch_size
    )
    product = 12 * rows * inner * columns
    shares = {
      name: {
        key: value * batch_size * macs['dense'] / product
        for key, value in ratio(wall[name], wall['dense']).items()
      }
      for name in ('matmul', 'product')
    }
    result |= {
      'pruned_over_dense': ratio(wall['dense'], wall['pruned']),
      'macs_ratio': macs['dense'] / macs['pruned'],
      'fraction_of_matmul': shares['matmul'],
      'fraction_of_product': shares['product'],
    }
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--case', action='append', choices=CASES)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--threads', type=int, default=os.cpu_count())
  parser.add_argument('--compile', action='store_true')
  options = parser.parse_args()
  # Before JAX starts: its pool has as many threads as there are cores.
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

  import torch

  from lambda_vit_jax.runtime import startup

  startup.keep_memory()
  torch.set_num_threads(options.threads)
  found = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {'cases': {}}
  for case in options.case or CASES:
    print(case, flush=True)
    result = run_case(case, options)
    result |= common.provenance()
    result['versions']['torch'] = torch.__version__
    found['cases'][f'{case}-{options.threads}t'] = result
    common.write(OUTPUT, found)
    short = ('dense_over_timm', 'pruned_over_dense', 'fraction_of_matmul')
    print({key: result[key] for key in short if key in result}, flush=True)
    gc.collect()


if __name__ == '__main__':
  main()
