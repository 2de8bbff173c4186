r"""Accuracy with every block narrowed without training, as in CORP.

Written from the description of CORP (arXiv 2602.05243): hidden channels of the
MLPs, and channels of queries and keys, are removed in equal share from every
block. The removed part is predicted from the kept part by ridge regression on
unlabeled images and folded into the weights. In the MLPs, the hidden channels
of least energy E[h²] are replaced by an affine map of the others, in `fc2`. In
each head, the channels of least E[q²]·E[k²] are replaced by a bilinear form of
the others, in the queries' weights. Blocks are narrowed in order, each on the
network as narrowed so far, with the ridge of the MLPs chosen by held-out
quarters; both favour CORP. Rows named `left out` have no such prediction.

  python benchmarks/narrow_layers.py --name=fashion_mnist_patch4 \
    --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist_patch4 ...

The flags are those of neighbourhood.py, and the network is the same. Removed
channels are zeros here, which is the same function; multiply-accumulates are
counted without them. Writes its entry of docs/benchmarks/narrow_layers.json.
"""

import functools
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from neighbour_maps import FOLDS
from stepwise import Network, Table

from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.models import modes, surgery
from lambda_vit_jax.models.layers import ACTIVATIONS, normalize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.training_free import (
  cross_validation,
  least_squares,
  neurons,
)
from lambda_vit_jax.training_free.least_squares import CrossMoments

OUTPUT = common.RESULTS / 'narrow_layers.json'
SHARES = (0.1875, 0.25, 0.5)
PARTS = {
  'both': ('attn', 'mlp'),
  'MLPs': ('mlp',),
  'queries and keys': ('attn',),
}
# CORP's own, as a share of the mean diagonal.
LOGIT_RIDGE = 1e-3


@functools.partial(jax.jit, static_argnames=('activation', 'epsilon'))
def hidden_of(
  params: Params, x: Array, activation: str, epsilon: float
) -> Array:
  """The MLP's hidden channels, given the stream after the attention half."""
  norm, first = params['norm2'], params['mlp']['fc1']
  normal = normalize(x, epsilon) * norm['scale'] + norm['bias']
  return ACTIVATIONS[activation](normal @ first['kernel'] + first['bias'])


@functools.partial(jax.jit, static_argnames=('width',))
def hidden_sums(hidden: Array, width: int) -> least_squares.Sums:
  """`least_squares.batch_sums` of the hidden channels, by fold.

  The outputs are zeros `[width]`: the whole layer lacks nothing.
  """
  split = hidden.reshape(-1, FOLDS, *hidden.shape[1:])
  split = jnp.swapaxes(split, 0, 1).reshape(FOLDS, -1, hidden.shape[-1])
  keep = jnp.ones(split.shape[:2], bool)
  nothing = jnp.zeros((*split.shape[:2], width))
  return jax.vmap(least_squares.batch_sums)(split, nothing, keep)


def narrow_mlp(
  params: Params, hidden: Array, share: float, compensate: bool
) -> Params:
  """The block's parameters with zeros for removed hidden channels, at the end."""
  kernel = neurons.output_weights(params).kernel
  sums = jax.device_get(hidden_sums(hidden, kernel.shape[1]))
  folds = [
    CrossMoments.from_sums(tuple(leaf[fold] for leaf in sums))
    for fold in range(FOLDS)
  ]
  whole = least_squares.merged(folds)
  energy = np.diag(whole.in_in) / whole.count + whole.mean_in**2
  kept = np.sort(np.argsort(energy)[round(share * len(energy)) :])
  narrowed = surgery.take_neurons(params['mlp'], kept)
  if compensate:
    parts = [neurons.without_neurons(fold, kernel, kept) for fold in folds]
    ridge = cross_validation.choose_ridge(parts)
    narrowed = neurons.repaired(params, whole, kept, ridge)['mlp']
  zeros = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32), params['mlp']
  )
  return params | {'mlp': surgery.with_zero_neurons(narrowed, zeros)}


def _single(params: Params) -> Params:
  return {k: np.asarray(v, np.float32) for k, v in params.items()}


def narrow_attention(
  params: Params, normal: Array, heads: int, share: float, compensate: bool
) -> Params:
  """The block's parameters with zeros for removed channels of queries and keys."""
  qkv = {k: np.array(v, np.float64) for k, v in params['attn']['qkv'].items()}
  images, tokens, width = normal.shape
  projected = np.asarray(normal, np.float64) @ qkv['kernel'] + qkv['bias']
  split = projected.reshape(images, tokens, 3, heads, width // heads)
  for head in range(heads):
    query, key = split[:, :, 0, head], split[:, :, 1, head]
    energy = (query**2).mean((0, 1)) * (key**2).mean((0, 1))
    order = np.argsort(energy)
    gone, kept = np.split(order, [round(share * len(order))])
    first = head * (width // heads)
    for leaf in qkv.values():
      columns = leaf[..., first : first + width // heads]
      if compensate:
        form = _logit_form(query, key, kept, gone)
        columns[..., kept] += columns[..., kept] @ form
      columns[..., gone] = 0.0
      leaf[..., width + first + gone] = 0.0
  return params | {'attn': params['attn'] | {'qkv': _single(qkv)}}


def _logit_form(
  query: np.ndarray, key: np.ndarray, kept: np.ndarray, gone: np.ndarray
) -> np.ndarray:
  """M of least squares: q_gone·k_gone ≈ q_kept M k_kept, over all pairs."""

  def products(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.einsum('nti,ntj->nij', values[..., kept], values[..., columns])

  size = len(kept)
  gram = np.einsum(
    'nik,njl->ijkl', products(query, kept), products(key, kept), optimize=True
  ).reshape(size**2, size**2)
  outputs = np.einsum(
    'nig,njg->ij', products(query, gone), products(key, gone), optimize=True
  )
  gram += LOGIT_RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
  return np.linalg.solve(gram, outputs.ravel()).reshape(size, size)


def narrow(
  network: Network,
  x: Array,
  parts: tuple[str, ...],
  share: float,
  compensate: bool,
) -> Network:
  """The network with every block narrowed.

  Args:
    network: the dense one.
    x: its first stream.
    parts: `mlp`, `attn` or both.
    share: fraction of the channels that is removed.
    compensate: whether the kept channels predict the removed ones.
  """
  module = network.model.module
  params = dict(network.params)
  found = Network(network.model, params)
  for index in range(network.depth):
    name, epsilon = modes.block_name(index), module.norm_eps[index]
    if 'attn' in parts:
      norm = params[name]['norm1']
      normal = normalize(x, epsilon) * norm['scale'] + norm['bias']
      params[name] = narrow_attention(
        params[name], normal, module.num_heads, share, compensate
      )
    if 'mlp' in parts:
      middle, _ = found.step(index, x, {})
      hidden = hidden_of(params[name], middle, module.activation, epsilon)
      params[name] = narrow_mlp(params[name], hidden, share, compensate)
    x = found.step(index, x, {})[1]
  return found


def narrow_macs(model: Model, parts: tuple[str, ...], share: float) -> int:
  """Multiply-accumulates of an image without the removed channels."""
  module = model.module
  tokens, width = module.num_tokens, module.embed_dim
  removed = 0
  if 'mlp' in parts:
    removed += tokens * 2 * width * round(share * module.hidden_dims[0])
  if 'attn' in parts:
    heads = module.num_heads
    channels = heads * round(share * (width // heads))
    removed += (tokens * 2 * width + tokens**2) * channels
  return model.macs() - module.depth * removed


def main() -> None:
  name, run = common.named_run(__doc__)
  table = Table(name, run, OUTPUT)
  table.row('dense', table.network, 0, {}, macs=table.model.macs())
  for share in SHARES:
    for title, parts in PARTS.items():
      for compensate in (True, False):
        network = narrow(
          table.network, table.holdout(0), parts, share, compensate
        )
        key = f'{title}, {100 * share:g}%'
        more: dict[str, Any] = {'macs': narrow_macs(table.model, parts, share)}
        table.row(
          key if compensate else f'{key}, left out', network, 0, {}, **more
        )


if __name__ == '__main__':
  main()
