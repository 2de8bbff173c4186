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
from lambda_vit_jax.models import rotary
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.modes import MODES, block_name
from lambda_vit_jax.models.relative_bias import TABLE, relative_index

_SQRT_HALF = 0.5**0.5
_QUICK = 1.702
_INDEX = 'relative_index'
# GELU by tanh: x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
_CUBE = 0.044715
_TANH = (2 / np.pi) ** 0.5


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
    self._with_key_biases()
    if module.relative_bias:
      graph.arrays[_INDEX] = relative_index(module.grid_size)
    if module.rotary:
      head_dim = module.embed_dim // module.num_heads
      tables = rotary.rotary_table(
        module.rotary, module.grid_size, module.num_prefix_tokens, head_dim
      )
      self.turns = [
        self.graph.parameter(table, f'rotary/{name}', np.dtype(np.float32))
        for name, table in zip(('cosine', 'sine'), tables, strict=True)
      ]

  def _with_key_biases(self) -> None:
    """One bias for queries, keys and values where keys have none."""
    for index in range(self.module.depth):
      path = f'{block_name(index)}/attn/qkv'
      if f'{path}/q_bias' in self.params:
        query, value = (
          np.asarray(self.params[f'{path}/{part}_bias']) for part in 'qv'
        )
        parts = query, np.zeros_like(query), value
        self.params[f'{path}/bias'] = np.concatenate(parts)

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
    tokens = [self.params[name] for name in names if name in self.params]
    count = module.num_prefix_tokens
    if module.absolute_positions:
      positions = np.asarray(self.params['pos_embed'])
    if module.absolute_positions and module.position_on_class and count:
      tokens = [np.concatenate(tokens, axis=1) + positions[:, :count]]
      positions = positions[:, count:]
    if module.absolute_positions:
      self.params['positions'] = positions
      x = self.add('Add', x, self.parameter('positions'))
    self.batch = self.slice(self.add('Shape', images), 0, 1, 0)
    if count:
      self.params['prefix'] = np.concatenate(tokens, axis=1)
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
    query, key, value = self.projections(x, path)
    if module.rotary:
      query, key = self.rotated(query), self.rotated(key)
    query = self.leading(query, queries, 2)
    query = self.add('Mul', query, np.float32(head_dim**-0.5))
    bias = None
    if module.relative_bias:
      bias = self.add(
        'Gather', self.parameter(f'{path}/{TABLE}'), _INDEX, axis=0
      )
      bias = self.leading(self.transpose(bias, 2, 0, 1), queries, 1)
    x = self.mixed(query, key, value, self.sizes, bias)
    rows = self.tokens if queries is None else queries
    x = self.dense(self.reshape(x, (-1, rows, width)), f'{path}/proj')
    return x, key

  def projections(self, x: str, path: str) -> tuple[str, ...]:
    """Queries, keys and values, `[batch, heads, tokens, head_dim]` each."""
    heads = self.module.num_heads
    head_dim = self.module.embed_dim // heads
    if not self.module.fused_qkv:
      shape = -1, self.tokens, heads, head_dim
      return tuple(
        self.transpose(
          self.reshape(self.dense(x, f'{path}/{part}_proj'), shape), 0, 2, 1, 3
        )
        for part in 'qkv'
      )
    x = self.dense(x, f'{path}/qkv')
    x = self.reshape(x, (-1, self.tokens, 3, heads, head_dim))
    x = self.transpose(x, 2, 0, 3, 1, 4)
    parts = self.add('Split', x, count=3, axis=0)
    return tuple(self.squeeze(part, 0) for part in parts)

  def rotated(self, x: str) -> str:
    """Queries or keys with rotary positions, see `models.rotary`."""
    module = self.module
    head_dim = module.embed_dim // module.num_heads
    partner = self.add(
      'Gather', x, rotary.partners(module.rotary, head_dim), axis=3
    )
    cosine, sine = self.turns
    return self.add(
      'Add', self.add('Mul', x, cosine), self.add('Mul', partner, sine)
    )

  def mixed(
    self,
    query: str,
    key: str,
    value: str,
    sizes: str | None,
    bias: str | None = None,
  ) -> str:
    """Softmax attention, `[batch, queries, heads, head_dim]`."""
    scores = self.add('MatMul', query, self.transpose(key, 0, 1, 3, 2))
    if sizes is not None:
      logs = self.unsqueeze(self.add('Log', sizes), 1, 2)
      scores = self.add('Add', scores, logs)
    if bias is not None:
      scores = self.add('Add', scores, bias)
    weights = self.add('Softmax', scores, axis=-1)
    return self.transpose(self.add('MatMul', weights, value), 0, 2, 1, 3)

  def mlp(self, x: str, path: str) -> str:
    """fc1, activation, fc2."""
    hidden = self.activation(self.dense(x, f'{path}/fc1'))
    return self.dense(hidden, f'{path}/fc2')

  def gated_mlp(self, x: str, path: str) -> str:
    """SwiGLU, see `models.gated_mlp`."""
    module = self.module
    if module.mlp_kind == 'swiglu_packed':
      both = self.dense(x, f'{path}/fc1')
      gate, value = self.add('Split', both, count=2, axis=2)
    else:
      gate, value = (self.dense(x, f'{path}/fc1_{half}') for half in 'gx')
    gate = self.add('Mul', gate, self.add('Sigmoid', gate))
    hidden = self.add('Mul', gate, value)
    if module.mlp_norm:
      hidden = self.norm(hidden, f'{path}/norm', module.pre_norm_eps)
    return self.dense(hidden, f'{path}/fc2')

  def activation(self, x: str) -> str:
    if self.module.activation == 'gelu_tanh':
      cube = self.add('Mul', self.add('Mul', x, x), x)
      inner = self.add('Add', x, self.add('Mul', cube, np.float32(_CUBE)))
      gate = self.add('Tanh', self.add('Mul', inner, np.float32(_TANH)))
      gate = self.add('Add', gate, np.float32(1.0))
      return self.add('Mul', self.add('Mul', x, gate), np.float32(0.5))
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
    if not self.module.hidden_dims[block_index]:
      return x
    branch = self.norm(x, f'{name}/norm2', epsilon)
    mlp = self.mlp if self.module.mlp_kind == 'plain' else self.gated_mlp
    branch = mlp(branch, f'{name}/mlp')
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

  def attention_pool(self, x: str) -> str:
    """Pools patches `x`, see `models.attention_pool`."""
    module, path = self.module, 'attn_pool'
    width, heads = module.embed_dim, module.num_heads
    head_dim = width // heads
    # The query is the same for all images.
    query = self.dense(self.parameter(f'{path}/latent'), f'{path}/q')
    query = self.reshape(query, (1, heads, 1, head_dim))
    query = self.add('Mul', query, np.float32(head_dim**-0.5))
    x = self.dense(x, f'{path}/kv')
    patches = self.tokens - module.num_prefix_tokens
    x = self.reshape(x, (-1, patches, 2, heads, head_dim))
    x = self.transpose(x, 2, 0, 3, 1, 4)
    key, value = (
      self.squeeze(part, 0) for part in self.add('Split', x, count=2, axis=0)
    )
    sizes = self.sizes
    if sizes is not None:
      sizes = self.slice(sizes, module.num_prefix_tokens, self.tokens, 1)
    x = self.mixed(query, key, value, sizes)
    x = self.dense(self.reshape(x, (-1, width)), f'{path}/proj')
    branch = self.norm(x, f'{path}/norm', module.pre_norm_eps)
    return self.add('Add', x, self.mlp(branch, f'{path}/mlp'))

  def readout(self, x: str) -> str:
    module, epsilon = self.module, self.module.norm_eps[-1]
    if module.norm_before_pool:
      x = self.norm(x, 'norm', epsilon)
    if module.pooling == 'token':
      tokens = range(1 + module.distilled)
      pooled = [self.add('Gather', x, token, axis=1) for token in tokens]
    else:
      x = self.slice(x, module.num_prefix_tokens, self.tokens, 1)
      attends = module.pooling == 'map'
      pooled = [self.attention_pool(x) if attends else self.mean(x, 0)]
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
