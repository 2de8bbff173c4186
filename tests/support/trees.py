"""Parameter trees: filled with distinct numbers, and compared bit by bit."""

import jax
import numpy as np

from lambda_vit_jax.checkpoints import convert


def assert_same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(a, b)


def numbered(shapes):
  """Parameters of these shapes, all numbers different."""
  start = 0
  flat = {}
  for path, leaf in convert.flatten(shapes).items():
    size = int(np.prod(leaf.shape))
    flat[path] = np.arange(start, start + size, dtype=np.float32)
    flat[path] = flat[path].reshape(leaf.shape)
    start += size
  return convert.unflatten(flat)
