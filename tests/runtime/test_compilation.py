"""Programs with options of the compiler, and where they cut products."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_vit_jax.models import quantization
from lambda_vit_jax.models.build import (
  abstract_params,
  apply_module,
  make_module,
)
from lambda_vit_jax.models.variants import VARIANTS
from lambda_vit_jax.runtime import compilation, startup


@pytest.fixture
def numbers(monkeypatch):
  """Small factors that are compiled with the options all the same."""
  monkeypatch.setattr(compilation, '_LEAST_WIDTH', 1)
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.normal(size=(70, 40)), jnp.float32),
    jnp.asarray(rng.normal(size=(40, 1024)), jnp.float32),
  )


def test_options_change_nothing_but_the_rounding(numbers):
  program = compilation.Program(jnp.matmul)
  exact = np.asarray(numbers[0], float) @ np.asarray(numbers[1], float)
  # 40 products of numbers around 1 in float32, in an order of its own.
  np.testing.assert_allclose(program(*numbers), exact, atol=2e-5)


def test_products_leave_ynnpack_and_reductions_stay(cutting):
  def both(x, y):
    return (x @ y) * 2.0, x.sum(axis=-1)

  shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)
  tuned = compilation.Program(both).lower(shape, shape).compile().as_text()
  plain = jax.jit(both).lower(shape, shape).compile().as_text()
  assert tuned.count('__ynn_fusion') < plain.count('__ynn_fusion')


def test_a_program_works_inside_other_programs(numbers):
  inner = compilation.Program(lambda x, y: jnp.tanh(x @ y).sum())
  x, y = numbers
  # The same sums in the same order but for fusion.
  near = {'rtol': 1e-5}
  expected = inner(x, y)
  np.testing.assert_allclose(jax.jit(inner)(x, y), expected, **near)
  np.testing.assert_allclose(jax.jit(lambda: inner(x, y))(), expected, **near)
  gradient = jax.grad(inner)(x, y)
  np.testing.assert_allclose(
    gradient, jax.grad(lambda x: jnp.tanh(x @ y).sum())(x), atol=1e-4
  )
  stacked = jax.vmap(inner, (0, None))(x[:, None], y)
  np.testing.assert_allclose(stacked.sum(), expected, rtol=1e-4)


def test_programs_that_read_int8_are_left_alone():
  def both(x, y):
    return quantization.integer_product(x, x), y @ y

  arguments = (
    jax.ShapeDtypeStruct((256, 256), jnp.int8),
    jax.ShapeDtypeStruct((256, 256), jnp.float32),
  )
  ours = compilation.Program(both).lower(*arguments).compile().as_text()
  plain = jax.jit(both).lower(*arguments).compile().as_text()
  assert ours.count('__ynn_fusion') == plain.count('__ynn_fusion')


def test_a_program_needs_no_transfer_and_can_be_exported(numbers):
  program = compilation.Program(lambda x, y: x @ y)
  with jax.transfer_guard('disallow'):
    expected = program(*numbers)
  exported = jax.export.export(program)(*numbers)
  # Another kernel sums up in another order.
  np.testing.assert_allclose(exported.call(*numbers), expected, atol=2e-5)


def test_one_compilation_per_shape(numbers):
  # A function of its own: JAX keeps programs by function.
  program = compilation.Program(lambda x, y: x @ y)
  for _ in range(3):
    program(*numbers)
  assert program.cache_size() == 1
  program(numbers[0][:5], numbers[1])
  assert program.cache_size() == 2


def pieces_within(
  program_type, rows, columns, dtype, rule=compilation.column_pieces
):
  """What a rule says while a program is traced."""
  found = []

  def trace(x):
    found.append(rule(rows, columns, dtype))
    return x

  program_type(trace)(jnp.zeros((2, 2)))
  return found[0]


@pytest.mark.parametrize(
  ('rows', 'columns', 'dtype', 'pieces'),
  [
    (197, 3072, jnp.float32, 8),
    (197, 4096, jnp.float32, 16),
    (197, 1024, jnp.float32, 4),
    # Rows of 6 KiB, 3 KiB and 9 KiB do not share their places.
    (197, 1536, jnp.float32, 1),
    (197, 768, jnp.float32, 1),
    (197, 2304, jnp.float32, 1),
    (197, 3072, jnp.bfloat16, 1),
    # Not worth copying a matrix for.
    (16, 3072, jnp.float32, 1),
    (197, 0, jnp.float32, 1),
  ],
)
def test_pieces_are_for_rows_that_share_their_places(
  rows, columns, dtype, pieces, cutting
):
  shape = rows, columns, dtype
  assert pieces_within(compilation.Program, *shape) == pieces
  assert pieces_within(jax.jit, *shape) == 1


@pytest.mark.parametrize(
  ('rows', 'columns', 'dtype', 'pieces'),
  [
    (3152, 1536, jnp.float32, 4),
    (3152, 3072, jnp.float32, 8),
    (3152, 4304, jnp.float32, 16),
    # Within a page; too few rows; half precision, not measured; only pieces
    # of a column each.
    (3152, 1024, jnp.float32, 1),
    (3152, 768, jnp.float32, 1),
    (788, 1536, jnp.float32, 1),
    (3152, 3072, jnp.bfloat16, 1),
    (3152, 1153, jnp.float32, 1),
  ],
)
def test_hidden_layers_are_cut_where_rows_are_longer_than_a_page(
  rows, columns, dtype, pieces, cutting
):
  shape = rows, columns, dtype
  rule = compilation.hidden_pieces
  assert pieces_within(compilation.Program, *shape, rule) == pieces
  assert pieces_within(jax.jit, *shape, rule) == 1


def test_nothing_is_cut_where_there_are_several_devices(monkeypatch):
  monkeypatch.setattr(compilation, '_LEAST_WIDTH', 1)
  assert jax.device_count() > 1
  assert pieces_within(compilation.Program, 197, 3072, jnp.float32) == 1
  rule = compilation.hidden_pieces
  assert pieces_within(compilation.Program, 3152, 3072, jnp.float32, rule) == 1


def test_pieces_of_weights_are_not_all_kept_at_once(cutting, monkeypatch):
  # Rows of 4 KiB in the MLP's first matrix.
  variant = dataclasses.replace(
    VARIANTS['deit_tiny_patch16_224'], embed_dim=256, num_heads=4, depth=6
  )
  module = make_module(variant)
  params = abstract_params(module)
  images = jax.ShapeDtypeStruct((1, *module.image_size, 3), jnp.float32)

  def temporary():
    def run(params, images):
      return apply_module(module, params, images)[0]

    lowered = compilation.Program(run).lower(params, images)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  pieces = temporary()
  monkeypatch.setattr(jax, 'device_count', lambda: 2)
  whole = temporary()
  one_matrix = 4 * 256 * 1024
  assert pieces <= whole + one_matrix


@pytest.mark.parametrize(
  ('shapes', 'tuned'),
  [
    ([(256, 256)], True),
    ([(10,), (16, 256, 1024)], True),
    # The digits' network, DeiT-T, images, a vector.
    ([(48, 192), (192, 48)], False),
    ([(192, 576), (768, 192), (16, 197, 192)], False),
    ([(16, 224, 224, 3)], False),
    ([(4096,)], False),
    ([], False),
  ],
)
def test_options_are_for_wide_matrices(shapes, tuned):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  found = compilation.options_for({'params': arguments})
  assert found == (compilation.compiler_options() if tuned else {})


@pytest.mark.parametrize(
  ('name', 'tuned'),
  [
    ('vit_mini_patch2_8', False),
    ('deit_tiny_patch16_224', False),
    ('deit_small_patch16_224', True),
  ],
)
def test_a_network_and_its_export_are_compiled_alike_where_small(name, tuned):
  """The exported program has no options; a small network has none either."""
  if not compilation.compiler_options():
    pytest.skip('this processor or compiler has no options to test')
  module = make_module(dataclasses.replace(VARIANTS[name], depth=1))
  params = abstract_params(module)
  images = jax.ShapeDtypeStruct(
    (2, *module.image_size, module.in_chans), jnp.float32
  )

  def logits(params, images):
    return apply_module(module, params, images, capture=False)[0]

  ours = compilation.Program(logits).lower(params, images).compile()
  exported = jax.jit(logits).lower(params, images).compile()
  same = ours.as_text().count('__ynn') == exported.as_text().count('__ynn')
  assert same is not tuned


def test_options_are_off_where_a_user_chose(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_experimental_ynn_fusion_type=')
  assert not compilation._has_options.__wrapped__()


def test_options_that_a_compiler_does_not_know_are_left_out(monkeypatch):
  monkeypatch.setattr(compilation, '_CPU_OPTIONS', {'xla_no_such_flag': '1'})
  assert not compilation._has_options.__wrapped__()


def test_memory_is_left_alone_beside_an_accelerator(monkeypatch):
  monkeypatch.setattr(startup, '_accelerator_installed', lambda: True)
  assert not startup.keep_memory()
