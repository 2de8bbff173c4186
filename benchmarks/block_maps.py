r"""Accuracy without whole blocks or attention layers, without training.

The comparison for the training-free mode is TOAST (arXiv 2410.04941), which
replaces consecutive blocks, MLPs included, with one linear map. It is written
here from its description: a map per token, from the stream before the first
block to the stream after the last, is fitted by least squares to the unlabeled
images that `linearize` gets. Of all spans of a length, the one with the best
test accuracy is taken, which favours TOAST.

The other rows: dropped blocks (`drop_blocks`), as they are and with refitted
MLPs (`refit`), for the span chosen without labels (`choose_blocks`) and, as for
TOAST, by test accuracy; and 3, 5 and 6 attention layers replaced by `linearize`
(criterion `affine`, maps of the token alone, and with the mean and a map for
the class token), chosen without labels.

  python benchmarks/block_maps.py --name=fashion_mnist \
    --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

The workdir needs a finished `pretrain`. Writes docs/benchmarks/block_maps.json.
"""

import functools
from collections.abc import Callable
from typing import Any

import common
import jax
import numpy as np

from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.edits import drop_blocks
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.selection.nose import nose
from lambda_vit_jax.training_free import block_spans, linear_maps
from lambda_vit_jax.training_free.mlp_refit import refit

OUTPUT = common.RESULTS / 'block_maps.json'
IMAGES = 512
SPANS = (1, 2, 3, 4, 5, 6)
COUNTS = (3, 5, 6)
INPUTS = {
  'token': ('token',),
  'token+mean+class': ('token', 'mean', 'class_map'),
}


class Network:
  """A dense network that runs block by block."""

  def __init__(self, model: Model):
    self.depth = model.depth
    self._params = model.params
    self._stem = pieces.stem_of(model.module)
    self._outer = pieces.stem_params(model.params, model.depth)
    self._block = jax.jit(
      functools.partial(
        pieces.run_block, pieces.block_of(model.module, 0, 'full')
      )
    )

  def streams(self, images: Any) -> list[Any]:
    """The stream before every block, and after the last."""
    found = [pieces.embed(self._stem, self._outer, images)]
    for index in range(self.depth):
      found.append(self.block(index, found[-1]))
    return found

  def block(self, index: int, x: Any) -> Any:
    return self._block(pieces.block_params(self._params, index), x)[0]

  def logits(self, x: Any) -> Any:
    return pieces.readout(self._stem, self._outer, x)[0]


def fit(before: np.ndarray, after: np.ndarray) -> np.ndarray:
  """The least-squares affine map, `[inputs + 1, outputs]`, bias last."""
  inputs = before.reshape(-1, before.shape[-1]).astype(np.float64)
  inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
  outputs = after.reshape(-1, after.shape[-1]).astype(np.float64)
  return np.linalg.lstsq(inputs, outputs, rcond=None)[0].astype(np.float32)


def without_blocks(
  network: Network, first: int, length: int, affine: np.ndarray
) -> Callable[[Any], Any]:
  """A function to logits, with a map for blocks `first … first + length - 1`."""

  def predict(images: Any) -> Any:
    x = network.streams(images)[first] @ affine[:-1] + affine[-1]
    for index in range(first + length, network.depth):
      x = network.block(index, x)
    return network.logits(x)

  return jax.jit(predict)


def block_rows(model: Model, images: list, test: list) -> dict[str, Any]:
  """Rows of mapped spans: the best of every length, with all others."""
  network = Network(model)
  parts = [network.streams(b['image'][b['mask']]) for b in images]
  streams = [np.concatenate(part) for part in zip(*parts, strict=True)]
  module = model.module
  tokens, width = module.num_tokens, module.embed_dim
  hidden = int(width * module.mlp_ratio)
  each = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
  rows = {}
  for length in SPANS:
    top1 = {}
    for first in range(network.depth - length + 1):
      affine = fit(streams[first], streams[first + length])
      predict = without_blocks(network, first, length, affine)
      top1[first] = accuracy.evaluate_program(predict, test)['top1']
      print(f'{length} from {first}: {top1[first]:.4f}', flush=True)
    best = max(top1, key=top1.__getitem__)
    rows[f'{length} blocks mapped, best span by test accuracy'] = {
      'blocks': list(range(best, best + length)),
      'top1': top1[best],
      'macs': model.macs() - length * each + tokens * width**2,
      'by_first': top1,
    }
    print(length, best, top1[best], flush=True)
  return rows


def dropped_rows(run: Run, model: Model, images: list, test: list) -> Any:
  """Rows of dropped spans: chosen without labels, and the best of every length.

  `by_first` is measured after `refit`.
  """

  def score(one: Model) -> float:
    found = accuracy.evaluate_model(one, iter(test), run.mesh)
    return float(found['top1'])

  rows = {}
  for length in SPANS:
    span = block_spans.choose_blocks(model, images, length)
    short = drop_blocks(model, span)
    top1 = {}
    for first in range(model.depth - length + 1):
      candidate = drop_blocks(model, range(first, first + length))
      top1[first] = score(refit(candidate, model, images))
      print(f'{length} from {first}: {top1[first]:.4f}', flush=True)
    best = max(top1, key=top1.__getitem__)
    chosen = {'blocks': list(span), 'macs': short.macs()}
    name = f'{length} blocks dropped'
    plain = score(short)
    rows[name] = chosen | {'top1': plain}
    rows[f'{name}, refit'] = chosen | {'top1': top1[span[0]]}
    rows[f'{name}, refit, best span by test accuracy'] = {
      'blocks': list(range(best, best + length)),
      'macs': short.macs(),
      'top1': top1[best],
      'by_first': top1,
    }
    print(length, span, plain, top1[span[0]], flush=True)
  return rows


def attention_rows(run: Run, model: Model, images: list, test: list) -> Any:
  """Rows of `linearize`, with layers chosen by `affine`."""
  order = nose(model, images, criterion='affine', num_layers=max(COUNTS)).order
  rows = {}
  for count in COUNTS:
    for kind, inputs in INPUTS.items():
      layers = order[:count]
      fitted = linear_maps.linearize(model, images, layers, inputs=inputs)
      rows[f'{count} attention layers, {kind}'] = {
        'blocks': sorted(layers),
        'top1': accuracy.evaluate_model(fitted, iter(test), run.mesh)['top1'],
        'macs': fitted.macs(),
      }
      print(count, kind, rows[f'{count} attention layers, {kind}'], flush=True)
  return rows


def main() -> None:
  name, run = common.named_run(__doc__)
  model = run.load('pretrain')
  images = list(run.holdout_batches(model.preprocessing, IMAGES))
  test = list(run.eval_batches(model.preprocessing))
  dense = accuracy.evaluate_model(model, iter(test), run.mesh)
  result = {
    **common.provenance(),
    'num_images': dense['num_images'],
    'images': IMAGES,
    'rows': {
      'dense': {'blocks': [], 'top1': dense['top1'], 'macs': model.macs()},
      **block_rows(model, images, test),
      **dropped_rows(run, model, images, test),
      **attention_rows(run, model, images, test),
    },
  }
  common.write_entry(OUTPUT, name, result)


if __name__ == '__main__':
  main()
