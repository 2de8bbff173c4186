"""Every program that a piece of work runs, lowered for other devices."""

import contextlib

import jax
import numpy as np

from lambda_vit_jax.runtime import compilation


@contextlib.contextmanager
def recorded():
  """Yields a dict that gets each `compilation.Program` that is called.

  By its name and the precision of products that was the default, with the
  arguments of the first such call as shapes.
  """
  found = {}
  call = compilation.Program.__call__

  def record(program, *args, **kwargs):
    precision = jax.config.jax_default_matmul_precision
    name = f'{program.__module__}.{program.__qualname__}'.partition('jax.')[2]
    name += f' in {precision}'
    if name not in found:
      found[name] = program, *jax.tree.map(abstract, (args, kwargs)), precision
    return call(program, *args, **kwargs)

  compilation.Program.__call__ = record
  try:
    yield found
  finally:
    compilation.Program.__call__ = call


def abstract(leaf):
  """The shape and sharding of an array; other values as they are."""
  if isinstance(leaf, jax.Array):
    sharding = leaf.sharding if leaf.committed else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  if isinstance(leaf, np.ndarray):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
  return leaf


def lowered(entry, platform):
  """StableHLO of a recorded program for `cuda`, `tpu` or `cpu`."""
  program, args, kwargs, precision = entry
  with jax.default_matmul_precision(precision):
    exported = jax.export.export(program, platforms=[platform])(*args, **kwargs)
  return exported.mlir_module()
