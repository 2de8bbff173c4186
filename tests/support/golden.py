"""Where golden files are, and how close logits must be to those of timm."""

import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


# The bound. Two float32 programs of two blocks differ by their order
# of summation, about 1e-6 here.
TOLERANCE = 1e-4


def assert_close(found, reference):
  bound = TOLERANCE * max(1.0, float(np.abs(reference).max()))
  np.testing.assert_allclose(found, reference, rtol=0, atol=bound)
