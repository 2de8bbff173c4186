r"""Speed on one GPU: inference, training, attention kernels, NOSE, input.

  python benchmarks/gpu.py [--minutes=9] [--only=TEXT] [--toy]

One command for whoever has a GPU: it needs no network and no data, and with
JAX >= 0.11 and Python 3.12 stops before `--minutes` are over. Each row is
written to docs/benchmarks/gpu.json when it is measured; the same command again,
on the same device with the same versions, measures the rows that are left.
`--only` chooses rows by a part of their names. `--toy` runs everything at a size
for tests, on any device, and prints instead of writing.

Rows, the most important first, all in bfloat16 at 224 px with random weights:

  infer VARIANT BATCH   dense, without 5 and 6 attention layers, with merged
                        tokens, and cut to 1 / 1.6 of its operations; timm
                        eager and compiled, if PyTorch has this GPU
  train VARIANT BATCH   a training step of dense and of the pruned ones; timm's
  attention BATCH       attention kernels, forward and with gradients
  nose VARIANT          seconds of a search over 2,048 images
  pipeline              images per second and core of the input pipeline

Programs of a row are timed in turn, A B C A B C …, and `fraction_of_matmul` is
of a large matrix product that has its turn among them.
"""

import argparse
import dataclasses
import functools
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Of what it holds, PyTorch beside it must find some free.
os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np

from benchmarks import common

OUTPUT = common.RESULTS / 'gpu.json'
FIVE = (0, 1, 3, 4, 6)
SIX = (*FIVE, 9)
RESERVE = 60.0
"""Seconds that a row may take: none begins later than so long before the end."""

Calls = dict[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Size:
  """How large everything is.

  Attributes:
    variants: of the models, the most important first.
    batches: of inference.
    training_batch: images per step.
    removed: the two sets of layers.
    merge: tokens that each block merges.
    matmul: side of the matrices that rates are relative to.
    rounds: that count, of each row.
    nose_images: that a search reads.
    photographs: files of the input pipeline.
    pixels: (width, height) of each.
    image_size: of the input pipeline's batches.
  """

  variants: Sequence[str]
  batches: Sequence[int]
  training_batch: int
  removed: tuple[tuple[int, ...], tuple[int, ...]]
  merge: int
  matmul: int
  rounds: int
  nose_images: int
  photographs: int
  pixels: tuple[int, int]
  image_size: int


FULL = Size(
  variants=(
    'deit_base_patch16_224',
    'deit_small_patch16_224',
    'vit_small_patch14_dinov2',
  ),
  batches=(256, 64, 1),
  training_batch=128,
  removed=(FIVE, SIX),
  merge=8,
  matmul=8192,
  rounds=15,
  nose_images=2048,
  photographs=128,
  pixels=(500, 375),
  image_size=224,
)
TOY = Size(
  variants=('vit_nano_patch2_8',),
  batches=(2,),
  training_batch=8,
  removed=((0,), (0, 1)),
  merge=1,
  matmul=64,
  rounds=1,
  # Fewer are warned about.
  nose_images=128,
  photographs=4,
  pixels=(40, 30),
  image_size=16,
)


def make_model(variant: str, trains: bool = False) -> Any:
  """A random model in bfloat16, at 224 pixels unless it is for smaller ones."""
  import jax
  import jax.numpy as jnp

  from lambda_vit_jax.models.model import create_model
  from lambda_vit_jax.models.variants import get_variant

  pixels = min(get_variant(variant).image_size, 224)
  model = create_model(
    variant, num_classes=1000, image_size=pixels, dtype=jnp.bfloat16
  )
  if trains:
    return model
  # As it would be deployed; training keeps its parameters in float32.
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)
  return model.replace(params=params)


def matmul_call(side: int) -> Callable[[], Any]:
  """A square matrix product in bfloat16."""
  import jax
  import jax.numpy as jnp

  square = jnp.ones((side, side), jnp.bfloat16)
  multiply = jax.jit(lambda x, y: x @ y)
  return lambda: multiply(square, square)


def images_for(model: Any, batch: int) -> np.ndarray:
  """Noise, as the model takes it."""
  module = model.module
  shape = (batch, *module.image_size, module.in_chans)
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def time_row(
  calls: Calls, operations: dict[str, int], batch: int, size: Size
) -> dict[str, Any]:
  """Times calls in turn, with a matrix product among them.

  Args:
    calls: of the row; the first is what the others are compared with.
    operations: of one image, where they are known.
    batch: images per call.
    size: of the product, and how many rounds.
  """
  from lambda_vit_jax.evaluation import programs, timing

  calls = calls | {'matmul': matmul_call(size.matmul)}
  seconds = timing.time_in_turn(calls, size.rounds)
  peak = 2 * size.matmul**3 / float(np.median(seconds.pop('matmul')))
  first = seconds[next(iter(calls))]
  rows: dict[str, Any] = {'matmul_flops_per_second': peak}
  for name, times in seconds.items():
    row = rows[name] = programs.speed(batch, times, first)
    if name in operations:
      done = operations[name] * row['images_per_second']['median']
      row['fraction_of_matmul'] = done / peak
  return rows


def networks(model: Any, size: Size) -> dict[str, Any]:
  """Dense and what it is compared with."""
  from lambda_vit_jax.models.edits import merge_tokens, prune

  five, six = size.removed
  return {
    'dense': model,
    f'without_{len(five)}': prune(model, five),
    f'without_{len(six)}': prune(model, six),
    'merged': merge_tokens(model, size.merge),
    'plan': common.planned(model, five),
  }


def infer(variant: str, batch: int, size: Size) -> dict[str, Any]:
  """Forward passes."""
  import jax.numpy as jnp

  from lambda_vit_jax.evaluation import benchmark

  model = make_model(variant)
  images = images_for(model, batch)
  calls: Calls = {}
  operations = {}
  for name, network in networks(model, size).items():
    calls[name], sizes = benchmark.compile_model(network, jnp.asarray(images))
    operations[name] = 2 * sizes['macs_executed']
  # Compiling takes half a minute: where it matters most.
  compiles = batch == size.batches[0]
  other, problem = timm_calls(variant, images, compiles, trains=False)
  # It computes every token of the last block.
  operations |= dict.fromkeys(other, 2 * model.macs())
  row = time_row(calls | other, operations, batch, size)
  return row | ({'timm': problem} if problem else {})


def train(variant: str, batch: int, size: Size) -> dict[str, Any]:
  """Training steps, plain: cross-entropy with smoothing, and AdamW."""
  model = make_model(variant, trains=True)
  images = images_for(model, batch)
  calls: Calls = {}
  operations = {}
  for name, network in networks(model, size).items():
    calls[name] = training_call(network, images)
    # Backward takes twice the operations of forward.
    operations[name] = 3 * 2 * network.macs(executed=True)
  other, problem = timm_calls(variant, images, compiles=True, trains=True)
  operations |= dict.fromkeys(other, 3 * 2 * model.macs())
  row = time_row(calls | other, operations, batch, size)
  return row | ({'timm': problem} if problem else {})


def training_call(model: Any, images: np.ndarray) -> Callable[[], Any]:
  """A call that takes one step."""
  import jax

  from lambda_vit_jax.runtime import sharding
  from lambda_vit_jax.training import optim, step
  from lambda_vit_jax.training.dilution import Dilution

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
  state = step.init_state(model.params, optimizer, with_ema=False)
  shardings = sharding.tree_shardings(state, mesh)
  take_step = step.make_train_step(
    model.module,
    optimizer,
    step.LossSettings(label_smoothing=0.1),
    Dilution(),
    0,
    mesh,
    shardings,
  )
  labels = np.arange(len(images), dtype=np.int32) % model.num_classes
  batch = sharding.put_batch({'image': images, 'label': labels}, mesh)
  # The step donates its state, and models share parameters.
  holder = {'state': jax.device_put(jax.tree.map(np.array, state), shardings)}

  def call() -> Any:
    holder['state'], metrics = take_step(holder['state'], batch, None)
    return metrics['loss']

  return call


def timm_calls(
  variant: str, images: np.ndarray, compiles: bool, trains: bool
) -> tuple[Calls, str]:
  """The network of timm in bfloat16, and the reason if there is none."""
  try:
    import timm
    import torch
  except ImportError as error:
    return {}, f'not measured: {error}'
  if not torch.cuda.is_available():
    return {}, 'not measured: PyTorch has no GPU'
  name = variant if variant in timm.list_models() else ''
  if not name:
    return {}, f'not measured: timm has no {variant}'
  torch.manual_seed(0)
  batch = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).cuda()
  kind = torch.bfloat16

  def make() -> Any:
    network = timm.create_model(
      name, num_classes=1000, img_size=images.shape[1]
    )
    # As ours: parameters in bfloat16, or in float32 for training.
    return network.cuda().train() if trains else network.cuda().eval().to(kind)

  def forward(network: Any) -> Callable[[], Any]:
    def call() -> None:
      with torch.inference_mode():
        network(batch.to(kind))
      torch.cuda.synchronize()

    return call

  def steps(network: Any, run: Any) -> Callable[[], Any]:
    optimizer = torch.optim.AdamW(
      network.parameters(), lr=1e-4, weight_decay=0.05, fused=True
    )
    labels = torch.arange(len(images)).cuda() % 1000

    def call() -> None:
      optimizer.zero_grad()
      with torch.autocast('cuda', kind):
        loss = torch.nn.functional.cross_entropy(
          run(batch), labels, label_smoothing=0.1
        )
      loss.backward()
      optimizer.step()
      torch.cuda.synchronize()

    return call

  calls: Calls = {}
  for title, wrap in (('timm', None), ('timm_compile', torch.compile)):
    if wrap is not None and not compiles:
      continue
    network = make()
    run = network if wrap is None else wrap(network)
    calls[title] = steps(network, run) if trains else forward(run)
  return calls, ''


def attention(batch: int, size: Size) -> dict[str, Any]:
  """Attention kernels on the shapes of the first variant."""
  import jax
  import jax.numpy as jnp

  module = make_model(size.variants[0]).module
  heads, tokens = module.num_heads, module.num_tokens
  shape = (batch, heads, tokens, module.embed_dim // heads)
  rng = np.random.default_rng(0)
  arrays = tuple(
    jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for _ in range(3)
  )
  calls: Calls = {}
  problems = {}
  for name, kernel in kernels().items():
    forward = jax.jit(kernel)

    def loss(*qkv: Any, kernel: Callable[..., Any] = kernel) -> Any:
      return kernel(*qkv).astype(jnp.float32).sum()

    backward = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    for title, run in ((name, forward), (f'{name}_gradients', backward)):
      try:
        jax.block_until_ready(run(*arrays))
      except Exception as error:
        # Each kernel has its own ways to say that it does not run here.
        problems[title] = one_line(error)
        continue
      calls[title] = functools.partial(run, *arrays)
  row = time_row(calls, {}, batch, size)
  return row | {'shape': shape, 'not_run': problems}


def kernels() -> dict[str, Callable[..., Any]]:
  """By name, functions of q, k and v `[batch, heads, tokens, head_dim]`."""
  import jax.numpy as jnp

  from lambda_vit_jax.models.attention import dot_product_attention

  def other(call: Callable[..., Any]) -> Callable[..., Any]:
    """For kernels that take `[batch, tokens, heads, head_dim]`."""
    return lambda *qkv: call(*(jnp.swapaxes(x, 1, 2) for x in qkv))

  def tokamax(*qkv: Any) -> Any:
    import tokamax

    return tokamax.dot_product_attention(*qkv)

  def pallas(query: Any, key: Any, value: Any) -> Any:
    from jax.experimental.pallas.ops.gpu import attention

    scale = query.shape[-1] ** -0.5
    return attention.mha(query, key, value, None, sm_scale=scale)

  return {
    'explicit': dot_product_attention,
    'xla': functools.partial(dot_product_attention, kernel='xla'),
    'cudnn': functools.partial(dot_product_attention, kernel='cudnn'),
    'pallas': other(pallas),
    'tokamax': other(tokamax),
  }


def nose(variant: str, size: Size) -> dict[str, Any]:
  """Seconds of a search, with compiling and without."""
  from lambda_vit_jax.selection.nose import nose as search

  model = make_model(variant)
  images = images_for(model, size.nose_images)
  step = min(256, size.nose_images)
  batches = [images[i : i + step] for i in range(0, len(images), step)]
  seconds = []
  for _ in range(2):
    began = time.perf_counter()
    selection = search(model, batches, num_layers=len(size.removed[0]))
    seconds.append(time.perf_counter() - began)
  return {
    'images': len(images),
    'layers': len(selection.removed),
    'seconds_with_compilation': seconds[0],
    'seconds': seconds[1],
  }


def pipeline(size: Size) -> dict[str, Any]:
  """Images per second of CPU time: decoding, DeiT's recipe, normalisation."""
  from absl import flags
  from PIL import Image

  from lambda_vit_jax.core.preprocessing import Preprocessing
  from lambda_vit_jax.data import pipeline as inputs
  from lambda_vit_jax.data.augment import RECIPES
  from lambda_vit_jax.data.sources.image_folder import FolderSource

  # Grain's workers read absl's flags.
  flags.FLAGS.mark_as_parsed()
  rng = np.random.default_rng(0)
  names = [f'{k:04d}.jpg' for k in range(size.photographs)]
  with tempfile.TemporaryDirectory() as folder:
    for name in names:
      # As smooth as photographs are, about: noise, enlarged.
      noise = Image.fromarray(rng.integers(0, 256, (40, 53, 3), np.uint8))
      noise.resize(size.pixels).save(f'{folder}/{name}', quality=95)
    source = FolderSource(folder, tuple(names), (0,) * len(names))
    edge = (size.image_size, size.image_size)
    batches: Iterator[Any] = inputs.train_batches(
      source,
      np.arange(len(source)),
      Preprocessing(edge, (0.5,) * 3, (0.25,) * 3, 0.875, 'bicubic'),
      RECIPES['deit'],
      inputs.Loading(min(64, len(names))),
      seed=0,
    )
    # Threads start, and read ahead.
    next(batches)
    count, cpu, wall = 0, time.process_time(), time.perf_counter()
    while count < 4 * len(names):
      count += len(next(batches)['label'])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    close = getattr(batches, 'close', None)
    if close:
      close()
  return {
    'pixels': size.pixels,
    'images_per_cpu_second': count / cpu,
    'images_per_second': count / wall,
    'cores': os.cpu_count(),
  }


def rows(size: Size) -> dict[str, Callable[[], dict[str, Any]]]:
  """Every row by name, the most important first."""
  found: dict[str, Callable[[], dict[str, Any]]] = {}
  largest, *smaller = size.batches
  main, *others = size.variants

  def add(kind: Callable[..., Any], *arguments: Any) -> None:
    name = ' '.join(map(str, (kind.__name__, *arguments)))
    found[name] = functools.partial(kind, *arguments, size)

  add(infer, main, largest)
  add(train, main, size.training_batch)
  add(attention, largest)
  add(nose, others[0] if others else main)
  for variant in others:
    add(infer, variant, largest)
  for variant in others:
    add(train, variant, size.training_batch)
  add(pipeline)
  for batch in smaller:
    for variant in size.variants:
      add(infer, variant, batch)
    add(attention, batch)
  return found


def one_line(error: Exception) -> str:
  """An error in a few words."""
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


def measure(
  size: Size,
  results: dict[str, Any],
  seconds: float,
  only: str = '',
  save: Callable[[dict[str, Any]], None] = lambda results: None,
  clock: Callable[[], float] = time.monotonic,
) -> list[str]:
  """Measures the rows that `results` lacks, while there is time.

  Args:
    size: of everything.
    results: has, and gets, the rows.
    seconds: until when; no row begins within `RESERVE` of it.
    only: a part of the names of the rows to measure.
    save: called after each row.
    clock: tells the time.

  Returns:
    The names of the rows that are left.
  """
  began = clock()
  wanted = {n: run for n, run in rows(size).items() if only in n}
  found = results.setdefault('rows', {})
  for name, run in wanted.items():
    if name in found:
      continue
    if clock() - began > seconds - RESERVE:
      break
    start = clock()
    try:
      found[name] = run()
    except Exception as error:
      # One row that does not run here is not to cost the others.
      found[name] = {'error': one_line(error)}
    found[name]['took_seconds'] = round(clock() - start, 1)
    print(f'{name}: {found[name]["took_seconds"]} s', flush=True)
    save(results)
  return [name for name in wanted if name not in found]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--minutes', type=float, default=9.0)
  parser.add_argument('--only', default='')
  parser.add_argument('--toy', action='store_true')
  options = parser.parse_args()

  import jax

  from lambda_vit_jax.runtime import startup

  startup.use_cache()
  if options.toy:
    results: dict[str, Any] = {}
    left = measure(TOY, results, 60 * options.minutes, options.only)
    print(results['rows'])
    return int(bool(left))
  if jax.default_backend() != 'gpu':
    print(
      f'JAX runs on {jax.devices()[0].device_kind}: install jax[cuda13], or '
      'take --toy',
      file=sys.stderr,
    )
    return 2
  now = common.provenance()
  results = common.read(OUTPUT)
  same = all(results.get(key) == now[key] for key in ('device', 'versions'))
  results = results if same else now
  save = functools.partial(common.write, OUTPUT)
  left = measure(FULL, results, 60 * options.minutes, options.only, save)
  if left:
    print(f'left: {", ".join(left)}; run the same command again')
  return 0


if __name__ == '__main__':
  sys.exit(main())
