"""Entropy over depth, against float64 numpy on gathered activations."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lambda_vit_jax.analysis.entropy import gaussian_entropy
from lambda_vit_jax.analysis.profile import entropy_profile
from lambda_vit_jax.core.errors import DataError
from lambda_vit_jax.models.edits import prune
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

IMAGES = make_images(40)


@pytest.fixture(scope='module')
def model(tiny_variant):
  return make_model(tiny_variant)


@pytest.fixture(scope='module')
def taps(model):
  found = model.apply(IMAGES)[1]
  return [
    {
      name: np.asarray(value, np.float64).reshape(-1, 24)
      for name, value in found[f'block{index:02d}'].items()
    }
    for index in range(3)
  ]


@pytest.mark.parametrize('devices', [1, 8])
def test_profile_is_that_of_gathered_activations(model, taps, devices):
  profile = entropy_profile(
    model, batches_of(IMAGES, 17), mesh=mesh_of(devices)
  )
  assert profile.num_images == 40
  for index, block in enumerate(taps):
    for name, found in (
      ('attention', profile.attention_entropy[index]),
      ('mlp', profile.mlp_entropy[index]),
    ):
      exact = gaussian_entropy(block[name].std(axis=0))
      # float32 activations: 1e-6 of σ per channel, 24 of them, tenfold.
      assert found == pytest.approx(exact, abs=2.4e-4)
    before, after = block['input'], block['after_attention']
    cosine = (before * after).sum(axis=1) / (
      np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    )
    assert profile.cosine_similarity[index] == pytest.approx(
      cosine.mean(), abs=1e-5
    )
  exact = np.corrcoef(profile.attention_entropy, profile.mlp_entropy)[0, 1]
  assert profile.correlation == pytest.approx(exact)


def test_blocks_without_attention_have_none(model):
  profile = entropy_profile(prune(model, (1,)), [IMAGES])
  assert profile.attention_entropy[1] is None
  assert profile.cosine_similarity[1] is None
  assert profile.mlp_entropy[1] is not None
  # Two points always lie on a line.
  assert profile.correlation is None
  assert (
    json.loads(json.dumps(profile.to_json()))['attention_entropy'][1] is None
  )
  assert profile.plot() is not None


def test_dead_channels_are_named(model):
  params = jax.tree.map(np.array, model.params)
  params['block00']['attn']['proj']['kernel'][:, 5] = 0.0
  for leaf in params['block01']['attn']['proj'].values():
    leaf[:] = 0.0
  profile = entropy_profile(model.replace(params=params), [IMAGES])
  assert profile.dead_channels == {
    'block00.attention': (5,),
    'block01.attention': tuple(range(24)),
  }
  assert np.isfinite(profile.attention_entropy[0])
  assert profile.attention_entropy[1] is None


def test_it_shows_itself(model):
  profile = entropy_profile(model, [IMAGES])
  fields = profile.to_json()
  assert {'attention_entropy', 'mlp_entropy'} <= set(fields)
  assert profile.__rich__().row_count == 3
  assert '40 images' in profile._repr_html_()
  assert len(profile.plot().axes) == 2
  assert dataclasses.replace(profile, correlation=None).table().caption == ''


def test_repr_is_a_table_of_at_most_20_lines(model):
  profile = entropy_profile(model, [IMAGES])
  lines = repr(profile).splitlines()
  assert lines[0] == 'entropy over depth, 40 images'
  assert lines[1].split() == [
    'block',
    'attention',
    '(nats)',
    'MLP',
    '(nats)',
    'cosine',
  ]
  assert [line.split()[0] for line in lines[2:5]] == ['0', '1', '2']
  deep = dataclasses.replace(
    profile,
    attention_entropy=(1.0,) * 40,
    mlp_entropy=(2.0,) * 40,
    cosine_similarity=(None,) * 40,
  )
  assert len(repr(deep).splitlines()) <= 20
  assert deep._repr_html_().count('<tr>') == 41


def test_no_image(model):
  with pytest.raises(DataError, match='no batch holds an image'):
    entropy_profile(model, [])
