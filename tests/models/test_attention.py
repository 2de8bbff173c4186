"""Which attention kernel runs where, and what it is given."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_vit_jax.models import attention
from lambda_vit_jax.models.attention import (
  Attention,
  dot_product_attention,
  resolve_attention_kernel,
)

HALF = (jnp.bfloat16, jnp.float16)


@pytest.fixture
def backend(monkeypatch):
  """Sets the name of the default backend, and what its devices can do."""

  def set_backend(name, capability='9.0'):
    device = types.SimpleNamespace(
      compute_capability=capability, device_kind='a GPU'
    )
    monkeypatch.setattr(jax, 'default_backend', lambda: name)
    monkeypatch.setattr(jax, 'devices', lambda: [device])
    attention.device_without_cudnn.cache_clear()

  yield set_backend
  attention.device_without_cudnn.cache_clear()


@pytest.mark.parametrize(
  'platform, dtype, head_dim, kernel',
  [
    *(
      ('gpu', dtype, width, 'cudnn') for dtype in HALF for width in (8, 64, 128)
    ),
    # cuDNN takes no float32, no widths in between, and none above 128.
    ('gpu', jnp.float32, 64, 'explicit'),
    ('gpu', jnp.bfloat16, 60, 'explicit'),
    ('gpu', jnp.bfloat16, 136, 'explicit'),
    ('tpu', jnp.bfloat16, 64, 'explicit'),
    ('cpu', jnp.bfloat16, 64, 'explicit'),
  ],
)
def test_what_auto_means(backend, platform, dtype, head_dim, kernel):
  backend(platform)
  assert resolve_attention_kernel('auto', head_dim, dtype) == kernel


@pytest.mark.parametrize(
  'capability, kernel',
  [
    ('8.0', 'cudnn'),
    ('12.0', 'cudnn'),
    # Before Ampere; ROCm, which is a `gpu` too; and an unknown device.
    ('7.5', 'explicit'),
    ('gfx942', 'explicit'),
    ('', 'explicit'),
  ],
)
def test_gpus_without_fused_attention_are_named(
  backend, capability, kernel, caplog
):
  backend('gpu', capability)
  for _ in range(2):
    assert resolve_attention_kernel('auto', 64, jnp.bfloat16) == kernel
  lines = [r for r in caplog.records if 'explicit products' in r.message]
  # Once, whatever the number of layers.
  assert len(lines) == (kernel == 'explicit')


def test_a_single_query_is_not_for_the_fused_kernel(backend):
  backend('gpu')
  kernels = [
    resolve_attention_kernel('auto', 64, jnp.bfloat16, queries)
    for queries in (None, 1, 2)
  ]
  assert kernels == ['cudnn', 'explicit', 'cudnn']


@pytest.mark.parametrize('platform', ['gpu', 'tpu', 'cpu'])
@pytest.mark.parametrize('kernel', ['explicit', 'xla', 'cudnn'])
def test_a_kernel_that_was_chosen_is_used(backend, platform, kernel):
  backend(platform)
  assert resolve_attention_kernel(kernel, 60, jnp.float32) == kernel


def drawn(rng, *shape, dtype=jnp.float32):
  return jnp.asarray(rng.normal(size=shape), dtype)


@pytest.fixture
def library(monkeypatch):
  """Records calls of JAX's attention, which then run as on any device."""
  calls = []
  plain = jax.nn.dot_product_attention

  def record(query, key, value, bias=None, *, implementation):
    calls.append((implementation, query.shape, key.shape, bias))
    # In float32, as JAX's own code promotes dtypes.
    wide = (x.astype(jnp.float32) for x in (query, key, value))
    bias = None if bias is None else bias.astype(jnp.float32)
    found = plain(*wide, bias, implementation='xla')
    return found.astype(value.dtype)

  monkeypatch.setattr(jax.nn, 'dot_product_attention', record)
  return calls


@pytest.mark.parametrize('merged', [False, True])
@pytest.mark.parametrize('kernel', ['xla', 'cudnn'])
def test_a_kernel_of_the_library_gets_its_own_layout(
  rng, library, kernel, merged
):
  """The result is that of the explicit kernel; fewer queries than keys."""
  query = drawn(rng, 2, 3, 4, 8)
  key, value = (drawn(rng, 2, 3, 6, 8) for _ in range(2))
  sizes = (
    jnp.asarray(rng.integers(1, 5, (2, 6)), jnp.float32) if merged else None
  )
  found = dot_product_attention(query, key, value, kernel, sizes)
  # [batch, tokens, heads, head_dim]
  ((name, queries, keys, bias),) = library
  assert (name, queries, keys) == (kernel, (2, 4, 3, 8), (2, 6, 3, 8))
  assert (bias is not None) == merged
  exact = dot_product_attention(query, key, value, 'explicit', sizes)
  np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.parametrize(
  'kernel, merged, used',
  [
    ('auto', False, 'cudnn'),
    # Log sizes in half precision would not be exact.
    ('auto', True, None),
    ('xla', True, 'xla'),
    ('explicit', False, None),
  ],
)
def test_a_layer_runs_the_kernel_of_its_device(
  rng, backend, library, kernel, merged, used
):
  layer = Attention(2, kernel, jnp.bfloat16)
  x = drawn(rng, 1, 5, 16, dtype=jnp.bfloat16)
  params = layer.init(jax.random.key(0), x)
  library.clear()
  backend('gpu')
  layer.apply(params, x, sizes=jnp.ones((1, 5)) if merged else None)
  assert [call[0] for call in library] == [used] * (used is not None)
