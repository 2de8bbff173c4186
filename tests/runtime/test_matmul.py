"""Products in pieces are the products, forward and backward."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_vit_jax.models import modes as modes_lib
from lambda_vit_jax.models.build import apply_module, init_params, make_module
from lambda_vit_jax.models.layers import gelu
from lambda_vit_jax.models.variants import VARIANTS
from lambda_vit_jax.runtime import compilation, matmul
from lambda_vit_jax.runtime.compilation import Program


def normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def dots(function, *arguments):
  return function.lower(*arguments).as_text().count('dot_general')


def test_a_product_in_pieces_is_the_product(rng, cutting):
  x, y = normal(rng, 70, 40), normal(rng, 40, 1024)
  program = Program(matmul.product)
  assert dots(program, x, y) == 4
  assert dots(jax.jit(matmul.product), x, y) == 1
  # 40 products of numbers around 1 in float32, in another order.
  np.testing.assert_allclose(program(x, y), x @ y, atol=2e-5)
  bad = x.at[0, 0].set(jnp.nan)
  assert np.isnan(program(bad, y)[0]).all()
  np.testing.assert_allclose(program(bad, y)[1:], (x @ y)[1:], atol=2e-5)


def three_parts(x, matrix):
  return matmul.product_parts(x, matrix, 3)


def test_parts_are_the_split_product(rng, cutting):
  x, matrix = normal(rng, 1024, 8), normal(rng, 8, 1152)
  program = Program(three_parts)
  assert dots(program, x, matrix) == 3
  assert dots(jax.jit(three_parts), x, matrix) == 1
  for part, same in zip(
    program(x, matrix), jnp.split(x @ matrix, 3, axis=1), strict=True
  ):
    np.testing.assert_allclose(part, same, atol=1e-5)


def mlp(x, first, bias, second):
  zero = jnp.zeros(second.shape[1])
  return matmul.mlp(x, (first, bias), (second, zero), gelu)


@pytest.fixture
def mlp_arguments(rng):
  return (
    normal(rng, 1024, 8),
    normal(rng, 8, 1536),
    normal(rng, 1536),
    normal(rng, 1536, 8) / 40,
  )


def test_an_mlp_in_pieces_is_the_mlp(mlp_arguments, cutting):
  program = Program(mlp)
  assert dots(program, *mlp_arguments) == 8
  assert dots(jax.jit(mlp), *mlp_arguments) == 2
  x, first, bias, second = mlp_arguments
  whole = gelu(x @ first + bias) @ second
  # Sums of 1,536 products, the sum being around 3.
  np.testing.assert_allclose(program(*mlp_arguments), whole, atol=2e-5)
  bad = x.at[0, 0].set(jnp.nan)
  wrong = np.isnan(program(bad, first, bias, second)).all(axis=1)
  assert wrong[0]
  assert not wrong[1:].any()


def test_gradients_are_those_of_whole_products(rng, mlp_arguments, cutting):
  def compare(function, arguments, expected_dots):
    def loss(*arguments):
      outputs = jax.tree.leaves(function(*arguments))
      return sum(jnp.sin(output).sum() for output in outputs)

    gradient = jax.grad(loss, tuple(range(len(arguments))))
    cut, whole = Program(gradient), jax.jit(gradient)
    for ours, same in zip(cut(*arguments), whole(*arguments), strict=True):
      # Sums of up to 1,536 terms around 1.
      np.testing.assert_allclose(ours, same, atol=3e-4)
    assert dots(cut, *arguments) == expected_dots

  # Of one product: its pieces, then both gradients as whole products.
  one = normal(rng, 70, 40), normal(rng, 40, 1024)
  compare(matmul.product, one, 4 + 2)
  compare(three_parts, (normal(rng, 1024, 8), normal(rng, 8, 1152)), 3 + 2)
  # In training the hidden layer is kept, and nothing is cut.
  compare(mlp, mlp_arguments, 2 + 4)


def test_a_network_in_pieces(cutting, monkeypatch):
  # Rows longer than a page in both halves of a block, with as few tokens as
  # make them worth cutting.
  variant = dataclasses.replace(
    VARIANTS['deit_small_patch16_224'], image_size=64, depth=3
  )
  batch = 64

  def compiled(removed):
    modes = modes_lib.modes_without(removed, ('full',) * 3)
    module = make_module(variant, attention_modes=modes)
    params = init_params(module, 0)
    images = jnp.linspace(-1, 1, batch * 64 * 64 * 3).reshape(batch, 64, 64, 3)

    def logits(params, images):
      return apply_module(module, params, images, capture=False)[0]

    program = Program(logits).lower(params, images).compile()
    return program(params, images), program

  logits, dense = compiled(())
  _, pruned = compiled((0,))
  pieces = dense.memory_analysis().temp_size_in_bytes
  assert pruned.memory_analysis().temp_size_in_bytes <= pieces
  monkeypatch.setattr(compilation, 'long_rows', lambda *shape: False)
  same, whole = compiled(())
  # Float32 through three blocks.
  np.testing.assert_allclose(logits, same, atol=1e-5)
  # Copies of pieces of two matrices, not of all matrices of the network.
  one_matrix = 4 * 384 * 1536
  assert pieces <= whole.memory_analysis().temp_size_in_bytes + 2 * one_matrix
