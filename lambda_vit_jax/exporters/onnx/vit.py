"""Build the ONNX graph of a folded model, operation by operation.

A traced graph has hundreds of nodes that compute shapes; this one has some
twenty nodes a block, in the patterns that runtimes recognise and fuse. It
repeats what `models.vit` computes, so every export compares its logits with the
model's.
"""

from collections.abc import Sequence

import numpy as np

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.exporters.onnx import decoders, token_merging
from lambda_vit_jax.exporters.onnx.graph import Graph, Node
from lambda_vit_jax.exporters.onnx.linear_maps import LinearMaps
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import MODES, block_name

_SQRT_HALF = 0.5**0.5
_QUICK = 1.702


class _Writer(LinearMaps):
  """Adds a model to a graph, part by part."""

  def __init__(self, model: Model, dtype: np.dtype):
    module = model.module
    pixels = () if module.segmentation is None else module.image_size
    graph = Graph(
      (*module.image_size, module.in_chans),
      (*pixels, module.num_classes or module.embed_dim),
    )
    super().__init__(graph, model, dtype)
    # The token that each patch is part of, if a decoder reads it.
    self.owners: str | None = None

  def embed(self, images: str) -> str:
    """Patch embedding, prefix tokens and positions."""
    module, size = self.module, self.module.patch_size
    rows, columns = module.grid_size
    x = self.reshape(images, (-1, rows, size, columns, size, module.in_chans))
    x = self.transpose(x, 0, 1, 3, 2, 4, 5)
    inputs = size * size * module.in_chans
    x = self.reshape(x, (-1, rows * columns, inputs))
    self.params['patch_embed/kernel'] = np.reshape(
      self.params['patch_embed/kernel'], (inputs, -1)
    )
    x = self.dense(x, 'patch_embed')
    names = ('cls_token', 'dist_token', 'reg_token')
    prefix = np.concatenate(
      [self.params[name] for name in names if name in self.params], axis=1
    )
    count = module.num_prefix_tokens
    positions = np.asarray(self.params['pos_embed'])
    if module.position_on_class:
      prefix = prefix + positions[:, :count]
      positions = positions[:, count:]
    self.params |= {'prefix': prefix, 'positions': positions}
    x = self.add('Add', x, self.parameter('positions'))
    self.batch = self.slice(self.add('Shape', images), 0, 1, 0)
    shape = self.shape(count, module.embed_dim)
    prefix = self.add('Expand', self.parameter('prefix'), shape)
    x = self.add('Concat', prefix, x, axis=1)
    if module.pre_norm:
      x = self.norm(x, 'norm_pre', module.pre_norm_eps)
    return x

  def attention(
    self, x: str, path: str, queries: int | None
  ) -> tuple[str, str]:
    """Returns the output of the attention layer, and its keys."""
    module = self.module
    width, heads = module.embed_dim, module.num_heads
    head_dim = width // heads
    x = self.dense(x, f'{path}/qkv')
    x = self.reshape(x, (-1, self.tokens, 3, heads, head_dim))
    x = self.transpose(x, 2, 0, 3, 1, 4)
    query, key, value = (
      self.squeeze(part, 0) for part in self.add('Split', x, count=3, axis=0)
    )
    query = self.leading(query, queries, 2)
    query = self.add('Mul', query, np.float32(head_dim**-0.5))
    scores = self.add('MatMul', query, self.transpose(key, 0, 1, 3, 2))
    if self.sizes is not None:
      logs = self.unsqueeze(self.add('Log', self.sizes), 1, 2)
      scores = self.add('Add', scores, logs)
    weights = self.add('Softmax', scores, axis=-1)
    x = self.transpose(self.add('MatMul', weights, value), 0, 2, 1, 3)
    rows = self.tokens if queries is None else queries
    x = self.dense(self.reshape(x, (-1, rows, width)), f'{path}/proj')
    return x, key

  def activation(self, x: str) -> str:
    if self.module.activation == 'quick_gelu':
      gate = self.add('Sigmoid', self.add('Mul', x, np.float32(_QUICK)))
      return self.add('Mul', x, gate)
    gate = self.add('Erf', self.add('Mul', x, np.float32(_SQRT_HALF)))
    gate = self.add('Add', gate, np.float32(1.0))
    return self.add('Mul', self.add('Mul', x, gate), np.float32(0.5))

  def block(self, x: str, block_index: int) -> str:
    name, epsilon = block_name(block_index), self.module.norm_eps[block_index]
    mode = MODES[self.module.attention_modes[block_index]]
    if mode.residual_scale != 1:
      raise ModelError(f'block {block_index}: fold the model before exporting')
    if not mode.adds_nothing:
      x = self.attention_half(x, block_index, mode.has_attention)
    branch = self.norm(x, f'{name}/norm2', epsilon)
    branch = self.activation(self.dense(branch, f'{name}/mlp/fc1'))
    branch = self.dense(branch, f'{name}/mlp/fc2')
    return self.add('Add', x, self.scaled(branch, f'{name}/ls2'))

  def attention_half(self, x: str, block_index: int, attends: bool) -> str:
    """The stream after the attention layer, or after its affine map."""
    module, name = self.module, block_name(block_index)
    epsilon = module.norm_eps[block_index]
    # After the last attention layer only the tokens that are read matter.
    last = block_index == module.last_mixing_block
    queries = module.read_tokens if last else None
    keys = ''
    if attends:
      branch = self.norm(x, f'{name}/norm1', epsilon)
      branch, keys = self.attention(branch, f'{name}/attn', queries)
      branch = self.scaled(branch, f'{name}/ls1')
    else:
      branch = self.plain_norm(x, module.embed_dim, epsilon)
      narrow = block_index >= module.last_mixing_block >= 0
      rows = (module.read_tokens if narrow else None) or self.tokens
      branch = self.affine_map(branch, block_index, rows)
    x = self.add('Add', self.leading(x, queries, 1), branch)
    count = module.merge_counts[block_index]
    return self.merge(x, keys, count) if count and queries is None else x

  def merge(self, x: str, keys: str, count: int) -> str:
    """Merges `count` tokens away."""
    leading = self.module.num_prefix_tokens
    if self.sizes is None:
      self.sizes = token_merging.ones(self, self.tokens)
    x, self.sizes, matching = token_merging.merge(
      self,
      x,
      self.sizes,
      keys,
      tokens=self.tokens,
      count=count,
      leading=leading,
    )
    if self.module.segmentation is not None:
      patches = self.tokens - leading
      moved = token_merging.places(self, matching, patches, count)
      self.owners = token_merging.follow(self, self.owners, moved)
    self.tokens -= count
    return x

  def grid(self, x: str) -> str:
    """The patch tokens as a grid, `[batch, rows, columns, embed]`."""
    module = self.module
    x = self.slice(x, module.num_prefix_tokens, self.tokens, 1)
    x = token_merging.spread(self, x, self.owners)
    return self.reshape(x, (-1, *module.grid_size, module.embed_dim))

  def segment(self, x: str, grids: Sequence[str]) -> str:
    """Decodes the last stream and the grids to logits per pixel."""
    module, decoder = self.module, self.module.segmentation
    assert decoder is not None
    if decoder.kind == 'linear':
      norm = 'norm' if module.norm_before_pool else 'fc_norm'
      grids = [self.grid(self.norm(x, norm, module.norm_eps[-1]))]
    return decoders.decode(
      self, decoder, grids, module.grid_size, module.image_size
    )

  def readout(self, x: str) -> str:
    module, epsilon = self.module, self.module.norm_eps[-1]
    if module.norm_before_pool:
      x = self.norm(x, 'norm', epsilon)
    if module.pooling == 'token':
      tokens = range(1 + module.distilled)
      pooled = [self.add('Gather', x, token, axis=1) for token in tokens]
    else:
      x = self.slice(x, module.num_prefix_tokens, self.tokens, 1)
      pooled = [self.mean(x, 0)]
    if not module.norm_before_pool:
      pooled[0] = self.norm(pooled[0], 'fc_norm', epsilon)
    if module.num_classes:
      heads = ('head', 'head_dist')
      pooled = [self.dense(*pair) for pair in zip(pooled, heads, strict=False)]
    if len(pooled) == 1:
      return pooled[0]
    return self.add('Mul', self.add('Add', *pooled), np.float32(0.5))


def build(folded: Model, dtype: str | np.dtype = 'float32') -> Graph:
  """Builds the graph of a folded model.

  Args:
    folded: no block `identity` or `diluted`.
    dtype: storage type of those parameters that it holds exactly; the others
      stay float32, as does the computation.

  Raises:
    ModelError: a block in one of those modes.
  """
  writer = _Writer(folded, np.dtype(dtype))
  decoder = folded.module.segmentation
  read = () if decoder is None else decoder.blocks
  grids = []
  x = writer.embed('images')
  for block_index in range(folded.depth):
    x = writer.block(x, block_index)
    for place, tapped in enumerate(read):
      if decoder is not None and tapped == block_index:
        factor = np.float32(decoder.factor(place))
        grids.append(writer.add('Mul', writer.grid(x), factor))
  x = writer.readout(x) if decoder is None else writer.segment(x, grids)
  writer.graph.nodes.append(Node('Identity', (x,), ('logits',), {}))
  return writer.graph
