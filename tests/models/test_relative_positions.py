"""Rotary positions and the bias by relative position."""

import jax.numpy as jnp
import numpy as np
import pytest

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.models.relative_bias import (
  relative_index,
  resize_table,
  table_rows,
)
from lambda_vit_jax.models.rotary import (
  ROTARIES,
  partners,
  rotary_table,
  rotate,
)

GRID = (3, 4)


def turned(kind, prefix, vector):
  """One vector at every place, turned: `[prefix + rows·columns, head_dim]`."""
  tokens = prefix + GRID[0] * GRID[1]
  x = jnp.broadcast_to(jnp.asarray(vector), (1, 1, tokens, len(vector)))
  return np.asarray(rotate(x, kind, GRID, prefix))[0, 0]


@pytest.mark.parametrize('kind', ROTARIES)
def test_a_score_depends_on_the_difference_of_places_alone(kind, rng):
  query, key = rng.normal(size=(2, 16)).astype(np.float32)
  shape = (*GRID, 16)
  queries = turned(kind, 2, query)[2:].reshape(shape)
  keys = turned(kind, 2, key)[2:].reshape(shape)
  scores = np.einsum('abd,ijd->abij', queries, keys)
  # Rows and columns apart, a transposed grid or a lost sign would not pass.
  np.testing.assert_allclose(
    scores[0, 0, 1, 2], scores[1, 1, 2, 3], rtol=0, atol=1e-4
  )
  np.testing.assert_allclose(
    scores[2, 3, 1, 1], scores[1, 2, 0, 0], rtol=0, atol=1e-4
  )
  assert abs(scores[0, 0, 1, 2] - scores[0, 0, 2, 1]) > 1e-2
  assert abs(scores[0, 0, 0, 1] - scores[0, 1, 0, 0]) > 1e-2


@pytest.mark.parametrize('kind', ROTARIES)
def test_leading_tokens_are_not_turned_and_no_length_changes(kind, rng):
  vector = rng.normal(size=16).astype(np.float32)
  x = turned(kind, 2, vector)
  np.testing.assert_array_equal(x[:2], np.stack([vector, vector]))
  np.testing.assert_allclose(
    np.linalg.norm(x, axis=1), np.linalg.norm(vector), rtol=1e-5
  )


@pytest.mark.parametrize('kind', ROTARIES)
def test_a_gather_of_partners_is_the_same(kind, rng):
  """What exported graphs do."""
  vector = rng.normal(size=16).astype(np.float32)
  cosine, sine = rotary_table(kind, GRID, 2, 16)
  found = vector * cosine + vector[partners(kind, 16)] * sine
  np.testing.assert_allclose(found, turned(kind, 2, vector), rtol=0, atol=1e-6)


def test_each_offset_has_one_row():
  index = relative_index(GRID)
  places = [(row, column) for row in range(3) for column in range(4)]
  rows = {}
  for i, (row, column) in enumerate(places, 1):
    for j, (other_row, other_column) in enumerate(places, 1):
      offset = row - other_row, column - other_column
      assert rows.setdefault(offset, index[i, j]) == index[i, j]
  assert len(set(rows.values())) == len(rows) == 5 * 7
  count = table_rows(GRID)
  assert sorted(rows.values()) == list(range(count - 3))
  assert (index[0, 1:] == count - 3).all()
  assert (index[1:, 0] == count - 2).all()
  assert index[0, 0] == count - 1


def test_a_resized_table_keeps_offset_zero_and_the_class_token(rng):
  table = rng.normal(size=(table_rows((14, 14)), 2)).astype(np.float32)
  resized = resize_table(table, (14, 14), (24, 24))
  assert resized.shape == (table_rows((24, 24)), 2)
  np.testing.assert_array_equal(resized[-3:], table[-3:])
  old = table[:-3].reshape(27, 27, 2)
  new = resized[:-3].reshape(47, 47, 2)
  # Neighbours of a patch keep their numbers, the outermost ones too.
  np.testing.assert_allclose(new[22:25, 22:25], old[12:15, 12:15], atol=1e-6)
  np.testing.assert_allclose(new[0, 0], old[0, 0], atol=1e-3)


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('vit_small_patch16_dinov3', {'num_heads': 64}, 'pairs of channels'),
    ('vit_small_patch16_dinov3', {'merge': (2,) * 12}, 'no single place'),
    ('beit_base_patch16_224', {'merge': (2,) * 12}, 'no single place'),
    ('beit_base_patch16_224', {'num_registers': 2}, '3 leading tokens'),
    ('vit_base_patch16_siglip_224', {'pooling': 'token'}, 'class token'),
    ('vit_base_patch16_siglip_224', {'norm_before_pool': False}, 'no fc_norm'),
    (
      'vit_base_patch16_siglip_224',
      {'linear_inputs': ('token', 'class_map')},
      'class_map',
    ),
  ],
)
def test_what_a_family_cannot_have_is_refused(name, options, message):
  with pytest.raises(ModelError, match=message):
    create_model(name, image_size=32, **options)
