"""Layers of a ViT block: norm, dense, MLP, LayerScale, patches, drop path.

GELU and LayerNorm have hand-written backward passes, and `Dense` flattens its
leading axes. Without that, XLA's CPU and GPU backends fuse the derivative of a
norm or an activation into the transposed copies that the weight gradients
read, and compute it there again, unvectorised: a training step of a small ViT
then spends a third of its time in such copies.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from lambda_vit_jax.core.typing import Array
from lambda_vit_jax.models.quantization import SCALE, Matrix, product
from lambda_vit_jax.runtime import matmul

kernel_init = nn.initializers.xavier_uniform()
small_init = nn.initializers.truncated_normal(0.02)

_SQRT_HALF = 0.5**0.5
_SQRT_TWO_PI = 2.5066282746310002


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """Exact GELU, `x/2·(1 + erf(x/√2))`; erf vectorises where erfc does not."""
  return 0.5 * x * (1.0 + jax.lax.erf(x * _SQRT_HALF))


def _gelu_backward(x: Array, cotangent: Array) -> tuple[Array]:
  cdf = 0.5 * (1.0 + jax.lax.erf(x * _SQRT_HALF))
  density = jnp.exp(-0.5 * x * x) / _SQRT_TWO_PI
  return (jax.lax.optimization_barrier(cotangent * (cdf + x * density)),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def quick_gelu(x: Array) -> Array:
  """`x·sigmoid(1.702·x)`, the activation of OpenAI's CLIP."""
  return x * jax.nn.sigmoid(1.702 * x)


def gelu_tanh(x: Array) -> Array:
  """GELU with tanh for erf, as some of SigLIP's networks have it."""
  return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  'gelu': gelu,
  'gelu_tanh': gelu_tanh,
  'quick_gelu': quick_gelu,
}


def accumulation_dtype(dtype: Any) -> Any:
  """The dtype of sums: float32, or float64 for float64 inputs."""
  return jnp.float64 if dtype == jnp.float64 else jnp.float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def normalize(x: Array, epsilon: float, halvings: int = 0) -> Array:
  """`(x - mean) / sqrt(variance + epsilon)` over the last axis, in float32.

  Two passes: E[x²] - E[x]² loses too much once identity blocks have doubled
  the stream a few times. Given `halvings`, `2^halvings·x` is normalised instead,
  which differs only in the weight of epsilon.
  """
  return _normalize(x, epsilon, halvings)[0]


def _normalize(x: Array, epsilon: float, halvings: int) -> tuple[Array, Array]:
  x = x.astype(accumulation_dtype(x.dtype))
  centred = x - x.mean(axis=-1, keepdims=True)
  variance = (centred * centred).mean(axis=-1, keepdims=True)
  # `epsilon / 4^halvings` would do the same (powers of two are exact), but XLA
  # keeps each different constant as one more `[batch, tokens]` in memory for
  # as long as the program runs.
  inverse: Array = jax.lax.rsqrt(_doubled(variance, 2 * halvings) + epsilon)
  inverse = _doubled(inverse, halvings)
  return centred * inverse, inverse


def _doubled(x: Array, times: int) -> Array:
  for _ in range(times):
    x = x + x
  return x


def _normalize_forward(
  x: Array, epsilon: float, halvings: int
) -> tuple[Array, Any]:
  normal, inverse = _normalize(x, epsilon, halvings)
  # The empty array carries the input's dtype to the backward pass.
  return normal, (normal, inverse, jnp.zeros((0,), x.dtype))


def _normalize_backward(
  epsilon: float, halvings: int, residuals: Any, cotangent: Array
) -> tuple[Array]:
  del epsilon, halvings
  normal, inverse, like = residuals
  mean = cotangent.mean(axis=-1, keepdims=True)
  along = (cotangent * normal).mean(axis=-1, keepdims=True)
  gradient = inverse * (cotangent - mean - normal * along)
  return (jax.lax.optimization_barrier(gradient.astype(like.dtype)),)


normalize.defvjp(_normalize_forward, _normalize_backward)


def parameter(
  module: nn.Module,
  name: str,
  init: Any,
  shape: tuple[int, ...],
  dtype: Any = jnp.float32,
) -> Array:
  """`module.param`, without tracing the initialiser of an existing parameter.

  Flax traces the initialiser in every call to check the shape, which takes two
  fifths of the time of tracing a forward pass.

  Raises:
    ScopeParamShapeError: the parameter has another shape.
  """
  if not module.has_variable('params', name):
    return module.param(name, init, shape, dtype)
  value: Array = module.get_variable('params', name)
  if value.shape != shape:
    path = '/'.join(module.path)
    raise ScopeParamShapeError(name, f'/{path}', value.shape, shape)
  return value


class LayerNorm(nn.Module):
  """Layer normalisation over the last axis with a scale and a bias."""

  epsilon: float
  dtype: Any = jnp.float32
  affine: bool = True

  @nn.compact
  def __call__(self, x: Array, halvings: int = 0) -> Array:
    """Normalises `2^halvings·x`, given x."""
    normal = normalize(x, self.epsilon, halvings)
    if self.affine:
      width = (x.shape[-1],)
      scale = parameter(self, 'scale', nn.initializers.ones, width)
      bias = parameter(self, 'bias', nn.initializers.zeros, width)
      normal = normal * scale.astype(normal.dtype) + bias.astype(normal.dtype)
    return normal.astype(self.dtype)


def matrix_param(
  module: nn.Module, quantization: str, init: Any, shape: tuple[int, ...]
) -> Matrix:
  """The parameter `kernel` of a module, with its scales if it is quantised.

  Args:
    module: being called.
    quantization: of `QUANTIZATIONS`.
    init: initialiser of a kernel that is not quantised.
    shape: its last axis is the output channels; those before are flattened.
  """
  if quantization == 'none':
    values = parameter(module, 'kernel', init, shape)
    return Matrix(values.reshape(-1, shape[-1]))
  values = parameter(module, 'kernel', nn.initializers.zeros, shape, jnp.int8)
  scale = parameter(module, SCALE, nn.initializers.ones, shape[-1:])
  return Matrix(values.reshape(-1, shape[-1]), scale)


class Dense(nn.Module):
  """`x·kernel + bias` on the last axis.

  The leading axes are flattened: contracting two of them in the weight
  gradient costs XLA a transposed copy of both factors.
  """

  features: int
  dtype: Any = jnp.float32
  quantization: str = 'none'
  kernel_init: Any = kernel_init
  use_bias: bool = True

  @nn.compact
  def weights(self, inputs: int) -> tuple[Matrix, Array]:
    """The kernel `[inputs, features]` and the bias `[features]`, or zeros."""
    shape = (inputs, self.features)
    kernel = matrix_param(self, self.quantization, self.kernel_init, shape)
    bias: Array = jnp.zeros((self.features,), self.dtype)
    if self.use_bias:
      bias = parameter(self, 'bias', nn.initializers.zeros, (self.features,))
    if kernel.scale is None:
      kernel = Matrix(kernel.values.astype(self.dtype))
    return kernel, bias.astype(self.dtype)

  def __call__(self, x: Array) -> Array:
    kernel, bias = self.weights(x.shape[-1])
    flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
    flat = product(flat, kernel, self.quantization)
    if self.use_bias:
      flat = flat + bias
    return flat.reshape(*x.shape[:-1], self.features)


class MlpBlock(nn.Module):
  """fc1, activation, fc2."""

  hidden_dim: int
  activation: str
  dtype: Any = jnp.float32
  quantization: str = 'none'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    settings = self.dtype, self.quantization
    fc1 = Dense(self.hidden_dim, *settings, name='fc1')
    fc2 = Dense(x.shape[-1], *settings, name='fc2')
    activation = ACTIVATIONS[self.activation]
    if self.quantization != 'none':
      return fc2(activation(fc1(x)))
    first, first_bias = fc1.weights(x.shape[-1])
    second, second_bias = fc2.weights(self.hidden_dim)
    # The same, by products that are split where a CPU is faster with it.
    return matmul.mlp(
      x.astype(self.dtype),
      (first.values, first_bias),
      (second.values, second_bias),
      activation,
    )


class LayerScale(nn.Module):
  """Per-channel scale γ of a branch's output."""

  init_value: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    init = nn.initializers.constant(self.init_value)
    gamma = parameter(self, 'gamma', init, (x.shape[-1],))
    return x * gamma.astype(x.dtype)


class PatchEmbed(nn.Module):
  """Non-overlapping patches to tokens: one reshape and one product."""

  patch_size: int
  embed_dim: int
  use_bias: bool
  dtype: Any = jnp.float32
  quantization: str = 'none'

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """`[batch, height, width, channels]` -> `[batch, h·w, embed]`."""
    batch, height, width, channels = images.shape
    size = self.patch_size
    rows, columns = height // size, width // size
    init = nn.initializers.variance_scaling(
      1.0, 'fan_in', 'truncated_normal', in_axis=(0, 1, 2)
    )
    shape = (size, size, channels, self.embed_dim)
    kernel = matrix_param(self, self.quantization, init, shape)
    grid = (batch, rows, size, columns, size, channels)
    patches = images.astype(self.dtype).reshape(grid).swapaxes(2, 3)
    flat = patches.reshape(-1, size * size * channels)
    tokens = product(flat, kernel, self.quantization)
    if self.use_bias:
      bias = parameter(self, 'bias', nn.initializers.zeros, (self.embed_dim,))
      tokens = tokens + bias.astype(self.dtype)
    return tokens.reshape(batch, rows * columns, self.embed_dim)


def drop_path(x: Array, rate: float, key: Array | None) -> Array:
  """Stochastic depth: zeroes a branch per image, rescaling the survivors.

  Args:
    x: output of a branch, `[batch, tokens, embed]`.
    rate: probability of dropping, static.
    key: a typed PRNG key; None means evaluation, where nothing is dropped.
  """
  if key is None or rate == 0.0:
    return x
  keep = 1.0 - rate
  mask = jax.random.bernoulli(key, keep, (x.shape[0], 1, 1))
  return x * (mask.astype(x.dtype) / keep)


def fold_key(key: Array | None, index: int) -> Array | None:
  """Key of one block or branch, which does not depend on the others."""
  return None if key is None else jax.random.fold_in(key, index)
