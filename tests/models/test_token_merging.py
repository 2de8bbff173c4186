"""Token merging (arXiv 2210.09461), on arrays and in the model."""

import dataclasses
import functools
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints.description import describe, rebuild
from lambda_vit_jax.core.errors import LambdaVitError, ModelError
from lambda_vit_jax.models import merge_schedule, pieces, token_merging
from lambda_vit_jax.models.attention import (
  Attention,
  dot_product_attention,
)
from lambda_vit_jax.models.build import forward, init_params, make_module
from lambda_vit_jax.models.edits import fold, merge_tokens, prune
from lambda_vit_jax.models.linear_attention import LinearAttention
from lambda_vit_jax.models.model import Model

# Float32 programs of the same sums in another order: a few units in the last
# place of numbers around 1.
SAME_SUMS = {'rtol': 1e-5, 'atol': 5e-6}
IMAGES = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
# Patch tokens of those images, at patch size 2.
PATCHES = 16


def make_model(tiny_variant, **options):
  variant = dataclasses.replace(
    tiny_variant, **{k: v for k, v in options.items() if k != 'modes'}
  )
  module = make_module(variant, attention_modes=options.get('modes'))
  keys = iter(jax.random.split(jax.random.key(1), 200))
  # Away from zero biases, which would hide a dropped one.
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape),
    init_params(module, 0),
  )
  return Model(
    module, params, 'vit_nano_patch2_8', variant.preprocessing((8, 8))
  )


@pytest.fixture(scope='module')
def model(tiny_variant):
  return make_model(tiny_variant)


# Leading tokens, patches and r; each of them is a compilation.
SHAPES = [(1, 7, 2), (2, 4, 2), (0, 2, 1)]


@st.composite
def cases(draw):
  """Tokens, sizes, keys, leading tokens and r; few shapes, many numbers."""
  leading, patches, count = draw(st.sampled_from(SHAPES))
  seed = draw(st.integers(0, 2**16))
  rng = np.random.default_rng(seed)
  tokens = leading + patches
  x = rng.normal(size=(2, tokens, 3))
  # Of few values, so that there are ties.
  keys = rng.integers(-1, 2, size=(2, tokens, 2))
  sizes = rng.integers(1, 5, size=(2, tokens))
  if draw(st.booleans()):
    sizes = None
  return x, sizes, keys, leading, count


match = jax.jit(token_merging.match, static_argnums=(1, 2))


@functools.partial(jax.jit, static_argnums=(3, 4))
def merge_jitted(x, sizes, keys, leading, count):
  matching = token_merging.match(keys, count, leading)
  return token_merging.merge(x, sizes, matching, leading)


def run_merge(x, sizes, keys, leading, count):
  sizes = None if sizes is None else np.float32(sizes)
  return merge_jitted(np.float32(x), sizes, np.float32(keys), leading, count)


@hypothesis.settings(max_examples=40)
@given(cases())
def test_tokens_are_weighted_means_of_their_sources(case):
  x, sizes, keys, leading, count = case
  merged, merged_sizes = run_merge(*case)
  # The same on unit vectors: each row is the share of every source token.
  tokens = x.shape[1]
  units = np.broadcast_to(np.eye(tokens), (2, tokens, tokens))
  shares, _ = run_merge(units, sizes, keys, leading, count)
  shares, merged, merged_sizes = map(np.float64, (shares, merged, merged_sizes))
  assert merged.shape == (2, tokens - count, 3)
  weights = np.ones((2, tokens)) if sizes is None else np.float64(sizes)
  np.testing.assert_array_equal(merged_sizes.sum(1), weights.sum(1))
  # Every source goes to one token alone ...
  assert ((shares > 0).sum(axis=1) == 1).all()
  for image in range(2):
    for row, size in zip(shares[image], merged_sizes[image], strict=True):
      sources = np.flatnonzero(row)
      # ... with the size of all its sources, and in proportion to them.
      assert size == weights[image, sources].sum()
      np.testing.assert_allclose(
        row[sources], weights[image, sources] / size, rtol=1e-6
      )
  # One rounding of float32 per source.
  np.testing.assert_allclose(merged, shares @ x, rtol=1e-5, atol=1e-6)
  # Leading tokens are bit-equal and keep their places.
  np.testing.assert_array_equal(merged[:, :leading], np.float32(x)[:, :leading])
  np.testing.assert_array_equal(merged_sizes[:, :leading], weights[:, :leading])


@functools.partial(jax.jit, static_argnums=(1, 2))
def places_of(keys, count, leading):
  matching = token_merging.match(keys, count, leading)
  return token_merging.places(matching, keys.shape[-2] - leading)


@hypothesis.settings(max_examples=40)
@given(cases())
def test_places_are_where_the_tokens_are(case):
  _, sizes, keys, leading, count = case
  tokens = keys.shape[1]
  units = np.broadcast_to(np.eye(tokens), (2, tokens, tokens))
  shares, _ = run_merge(units, sizes, keys, leading, count)
  found = np.asarray(places_of(np.float32(keys), count, leading))
  # The one output token that each patch token has a share in.
  expected = np.asarray(shares)[:, leading:, leading:].argmax(axis=1)
  np.testing.assert_array_equal(found, expected)


def test_places_are_followed_through_several_mergings(rng):
  x = rng.normal(size=(2, 12, 3)).astype(np.float32)
  stream, sizes, owners = x, None, None
  for count in (3, 4, 2):
    matching = token_merging.match(stream, count, 1)
    moved = token_merging.places(matching, stream.shape[1] - 1)
    owners = token_merging.follow(owners, moved)
    stream, sizes = token_merging.merge(stream, sizes, matching, 1)
  for image in range(2):
    for token in range(stream.shape[1] - 1):
      sources = np.flatnonzero(np.asarray(owners)[image] == token)
      assert sizes[image, 1 + token] == len(sources)
      # The mean of the merged tokens, by way of three means.
      np.testing.assert_allclose(
        stream[image, 1 + token], x[image, 1 + sources].mean(0), **SAME_SUMS
      )
  np.testing.assert_array_equal(
    token_merging.spread(stream[:, 1:], owners),
    np.take_along_axis(
      np.asarray(stream)[:, 1:], np.asarray(owners)[..., None], axis=1
    ),
  )


def test_spreading_undoes_the_merging_of_equal_tokens(rng):
  some = rng.normal(size=(2, 4, 24)).astype(np.float32)
  x = np.repeat(some, 2, axis=1)
  matching = token_merging.match(x, 4, 0)
  merged, _ = token_merging.merge(x, None, matching, 0)
  np.testing.assert_array_equal(
    token_merging.spread(merged, token_merging.places(matching, 8)), x
  )
  np.testing.assert_array_equal(token_merging.spread(x, None), x)


@hypothesis.settings(max_examples=40)
@given(cases())
def test_the_most_similar_tokens_are_merged(case):
  _, _, keys, leading, count = case
  matching = match(np.float32(keys), count, leading)
  patches = np.float64(keys[:, leading:])
  norms = np.linalg.norm(patches, axis=-1, keepdims=True)
  patches = patches / np.where(norms == 0, 1, norms)
  similarity = np.einsum('bid,bjd->bij', patches[:, ::2], patches[:, 1::2])
  for image in range(2):
    best = similarity[image].max(1)
    gone = np.asarray(matching.merged[image])
    kept = np.asarray(matching.kept[image])
    assert sorted([*gone, *kept]) == list(range(len(best)))
    assert (np.diff(kept) > 0).all()
    # To the rounding of a cosine in float32.
    assert best[kept].max(initial=-2) <= best[gone].min() + 1e-6
    found = similarity[image][gone, np.asarray(matching.into[image])]
    np.testing.assert_allclose(found, best[gone], atol=1e-6)


def test_matching_works_under_jit_and_vmap(rng):
  keys = rng.normal(size=(4, 9, 3)).astype(np.float32)
  x = rng.normal(size=(4, 9, 5)).astype(np.float32)

  def one(x, keys):
    return token_merging.merge(x, None, token_merging.match(keys, 3, 1), 1)

  whole = one(x, keys)
  each = jax.jit(jax.vmap(one))(x, keys)
  # Jitted, the weighted mean is fused into multiply-adds.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **SAME_SUMS), whole, each
  )


@pytest.mark.parametrize('kernel', ['explicit', 'xla'])
def test_proportional_attention_is_attention_over_duplicates(rng, kernel):
  query = rng.normal(size=(2, 2, 4, 3)).astype(np.float32)
  key, value = rng.normal(size=(2, 2, 2, 5, 3)).astype(np.float32)
  sizes = np.array([1, 3, 1, 2, 4])
  found = dot_product_attention(
    query, key, value, kernel, np.float32(np.stack([sizes, sizes]))
  )
  expected = dot_product_attention(
    query, *(np.repeat(t, sizes, axis=2) for t in (key, value)), kernel
  )
  np.testing.assert_allclose(found, expected, **SAME_SUMS)


def test_means_weight_a_token_by_its_size(rng):
  x = rng.normal(size=(2, 4, 24)).astype(np.float32)
  sizes = np.array([1, 3, 1, 2])
  duplicates = np.repeat(x, sizes, axis=1)
  sizes = np.float32(np.stack([sizes, sizes]))
  np.testing.assert_allclose(
    token_merging.weighted_mean(jnp.asarray(x), sizes),
    duplicates.mean(axis=1),
    **SAME_SUMS,
  )
  affine = LinearAttention(('token', 'mean'))
  params = affine.init(jax.random.key(0), x)
  # The maps start as zeros.
  params = jax.tree.map(lambda leaf: leaf + 0.1, params)
  np.testing.assert_allclose(
    affine.apply(params, x, None, sizes),
    affine.apply(params, duplicates)[:, [0, 1, 4, 5]],
    **SAME_SUMS,
  )


def test_merging_identical_tokens_changes_no_other_tokens_attention(rng):
  """Merge pairs of equal tokens, attend: as if they were still there."""
  some = rng.normal(size=(2, 4, 24)).astype(np.float32)
  first = rng.normal(size=(2, 1, 24)).astype(np.float32)
  x = np.concatenate([first, np.repeat(some, 2, axis=1)], axis=1)
  merged, sizes = token_merging.merge(x, None, token_merging.match(x, 4, 1), 1)
  np.testing.assert_array_equal(merged[:, 1:], some)
  np.testing.assert_array_equal(sizes, [[1, 2, 2, 2, 2]] * 2)
  attention = Attention(2)
  params = attention.init(jax.random.key(0), x)
  whole, _ = attention.apply(params, x)
  found, _ = attention.apply(params, merged, None, sizes)
  np.testing.assert_allclose(found, whole[:, [0, 1, 3, 5, 7]], **SAME_SUMS)


@pytest.mark.parametrize('merge', [0, [0, 0, 0], 'constant:0', None], ids=str)
def test_merging_no_tokens_is_the_same_model(model, merge):
  same = merge_tokens(model, merge)
  assert same.module == model.module
  np.testing.assert_array_equal(same(IMAGES), model(IMAGES))


def test_a_schedule_of_zeros_is_bit_equal(model):
  # By another program.
  none = model.replace(module=model.module.clone(merge=(0, 0, 0)))
  np.testing.assert_array_equal(none(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
  'fields, modes',
  [
    ({}, ('full', 'full', 'full')),
    ({}, ('full', 'identity', 'full')),
    ({'distilled': True, 'num_registers': 2}, ('full', 'absent', 'full')),
    ({'pooling': 'avg', 'layer_scale': 0.5}, ('full', 'identity', 'full')),
  ],
)
def test_merged_blocks_have_fewer_tokens(tiny_variant, fields, modes):
  plain = make_model(tiny_variant, modes=modes, **fields)
  merged = merge_tokens(plain, 5)
  counts = merged.module.merge_counts
  tokens = merged.module.num_tokens
  logits, taps = merged.apply(IMAGES)
  for index, count in enumerate(counts):
    assert (count > 0) == (modes[index] == 'full')
    tokens -= count
    block = taps[f'block{index:02d}']
    assert block['output'].shape[1] == block['mlp'].shape[1] == tokens
    np.testing.assert_allclose(
      block['sizes'].sum(1), merged.module.num_tokens, rtol=0
    )
    leading = merged.module.num_prefix_tokens
    np.testing.assert_array_equal(block['sizes'][:, :leading], 1)
  # The program without intermediates narrows, and halves the stream.
  np.testing.assert_allclose(merged(IMAGES), logits, **SAME_SUMS)
  assert np.abs(merged(IMAGES) - plain(IMAGES)).max() > 1e-3
  # Folding is independent of merging.
  np.testing.assert_allclose(fold(merged)(IMAGES), logits, **SAME_SUMS)
  remat = merged.replace(module=merged.module.clone(remat=True))
  np.testing.assert_allclose(remat(IMAGES), logits, **SAME_SUMS)


def test_one_merged_block_by_hand(model):
  """Block 0 merges; block 1 computes proportional attention."""
  merged = merge_tokens(model, [4, 0, 0])
  _, taps = merged.apply(IMAGES)
  _, plain = model.apply(IMAGES)
  first = plain['block00']
  module = merged.module
  variables = {'params': model.params['block00']['attn']}
  attention = Attention(module.num_heads)
  _, keys = attention.apply(variables, first['norm1'])
  x, sizes = token_merging.merge(
    first['after_attention'], None, token_merging.match(keys.mean(1), 4, 1), 1
  )
  np.testing.assert_allclose(taps['block00']['after_attention'], x, **SAME_SUMS)
  variables = {'params': model.params['block01']['attn']}
  expected, _ = attention.apply(
    variables, taps['block01']['norm1'], None, sizes
  )
  np.testing.assert_allclose(
    taps['block01']['attention'], expected, **SAME_SUMS
  )


@pytest.mark.parametrize('pooling', ['token', 'avg'])
def test_merging_equal_patches_keeps_the_logits(tiny_variant, pooling):
  plain = make_model(tiny_variant, pooling=pooling, norm_before_pool=False)
  positions = plain.params['pos_embed']
  plain = plain.replace(
    params=plain.params | {'pos_embed': jnp.zeros_like(positions)}
  )
  images = np.broadcast_to(IMAGES[:, :1, :1], IMAGES.shape)
  np.testing.assert_allclose(
    merge_tokens(plain, 5)(images), plain(images), **SAME_SUMS
  )


def test_gradients_pass_through_merging_but_not_matching(model):
  merged = merge_tokens(model, 5)

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(module, params):
    return jax.grad(
      lambda p: (
        module.apply({'params': p}, IMAGES, capture=False)[0] ** 2
      ).sum()
    )(params)

  found = gradient(merged.module, model.params)
  for leaf in jax.tree.leaves(found):
    assert np.isfinite(leaf).all()
    assert np.abs(leaf).max() > 0
  again = gradient(merged.module.clone(remat=True), model.params)
  # Gradients of some tens, their sums in another order.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    found,
    again,
  )
  keys = jnp.asarray(IMAGES.reshape(3, 16, 4))
  slope = jax.grad(
    lambda k: token_merging.merge(
      jnp.asarray(keys), None, token_merging.match(k, 3, 0), 0
    )[0].sum()
  )(keys)
  np.testing.assert_array_equal(slope, 0)


def test_diluted_blocks_pass_sizes_on_and_merge_nothing(model):
  """At λ = 0 they have as many tokens as in the pruned network."""
  merged = merge_tokens(model, 3).module
  diluted = merged.clone(attention_modes=('full', 'diluted', 'full'))
  pruned = merged.clone(attention_modes=('full', 'identity', 'full'))
  assert diluted.merge_counts == pruned.merge_counts == (3, 0, 3)
  factor = jnp.zeros(3)
  found, _ = forward(diluted, model.params, IMAGES, factor)
  expected, _ = forward(pruned, prune(model, [1]).params, IMAGES)
  np.testing.assert_allclose(found, expected, **SAME_SUMS)


def test_bfloat16_and_one_compilation(model):
  merged = merge_tokens(model, 4)
  half = merged.module.clone(dtype=jnp.bfloat16)
  traces = []

  @jax.jit
  def call(params, images):
    traces.append(1)
    return half.apply({'params': params}, images, capture=False)[0]

  for scale in (1.0, 0.5):
    assert np.isfinite(call(model.params, scale * IMAGES)).all()
  assert len(traces) == 1


def test_macs_count_fewer_tokens(tiny_variant, model):
  width, rows = 24, [17, 13, 9]
  merged = merge_tokens(model, [4, 4, 0])
  total = PATCHES * 4 * width + 10 * width
  for tokens, after in zip(rows, [13, 9, 9], strict=True):
    total += 4 * tokens * width**2 + 2 * tokens**2 * width
    total += 8 * after * width**2
  assert merged.macs() == total
  assert merge_tokens(model, 0).macs() > total
  # Executed: only the class token after the last attention, and the products
  # of matching (halves of the patches, on 12 channels) and merging.
  executed = merged.macs(executed=True)
  narrow = 8 * (2 * width**2 + 8 * width**2) + 2 * 8 * 9 * width
  matching = 12 * (8 * 8 + 6 * 6) + 4 * (8 + 6) * (width + 1)
  assert executed == total - narrow + matching


def test_description_keeps_the_schedule(model):
  # As many as possible in the later blocks, which a list may not ask for.
  merged = merge_tokens(model, 8, start=0)
  assert merged.module.merge == (8, 8, 8)
  assert merged.module.merge_counts == (8, 4, 2)
  text = json.dumps(describe(merged))
  again = rebuild(json.loads(text), 'model.json')
  assert again.module.merge == (8, 8, 8)


@pytest.mark.parametrize(
  'broken', [[1], 'x', [1, 2, -3], [1, 2, True], [1, 2, 3, 4]]
)
def test_wrong_schedules_in_a_description_are_refused(model, broken):
  fields = json.loads(json.dumps(describe(merge_tokens(model, 8))))
  with pytest.raises(
    LambdaVitError, match=r'`merge(\[2\])?` is .*, but must be'
  ):
    rebuild(fields | {'merge': broken}, 'model.json')


@pytest.mark.parametrize(
  'merge, start, expected',
  [
    (8, 0, (8,) * 12),
    ('24', 1, (0,) + (24,) * 11),
    ('constant:24', 1, (0,) + (24,) * 11),
    ('decreasing:11', 1, (0, 22, 20, 17, 16, 13, 11, 9, 6, 5, 2, 0)),
    ('decreasing:5', 11, (0,) * 11 + (5,)),
    ([3] * 12, 10, (0,) * 10 + (3, 3)),
    ('[1,0,0,0,0,0,0,0,0,0,0,2]', 0, (1,) + (0,) * 10 + (2,)),
    (0, 0, ()),
    ('0', '3', ()),
  ],
)
def test_schedules(merge, start, expected):
  found = merge_schedule.merge_schedule(merge, 12, 196, start)
  assert len(found) == len(expected)
  if isinstance(merge, str) and merge.startswith('decreasing'):
    # Whole numbers beside the line, with its sum.
    np.testing.assert_allclose(found, expected, atol=1)
    assert sum(found) == int(merge.split(':')[1]) * (12 - start)
  else:
    assert found == expected


@pytest.mark.parametrize('r, last', [(24, 24), (28, 14)])
def test_published_settings_of_deit_base(r, last):
  """5 layers pruned, r from block 1: the last of 7 layers has few left."""
  modes = ['full'] * 12
  for index in (0, 1, 3, 4, 6):
    modes[index] = 'identity'
  schedule = merge_schedule.merge_schedule(r, 12, 196, 1, modes)
  counts = merge_schedule.merge_counts(schedule, modes, 196)
  assert [c for c in counts if c] == [r] * 6 + [last]


@pytest.mark.parametrize('none', [None, 0, (), [], [0, 0, 0]])
def test_what_a_network_without_merging_records_is_none(model, none):
  assert merge_tokens(merge_tokens(model, 4), none).module.merge == ()


@pytest.mark.parametrize(
  'merge, start, line',
  [
    (9, 0, 'block 0 is to merge 9 tokens, but has 16 of the image and can'),
    ('decreasing:5', 0, 'block 0 is to merge 10 tokens'),
    ([8, 4, 3], 0, 'block 2 is to merge 3 tokens, but has 4 of the image'),
    ([8, 4], 0, '2 numbers for 3 blocks'),
    (-1, 0, 'give the tokens that each block merges'),
    (2.5, 0, 'give the tokens that each block merges'),
    (True, 0, 'give the tokens that each block merges'),
    ('increasing:3', 0, 'give the tokens that each block merges'),
    ('decreasing', 0, 'give the tokens that each block merges'),
    ([1, 'x', 2], 0, 'give the tokens that each block merges'),
    (1, 3, 'merge_start=3'),
    (1, -1, 'merge_start=-1'),
    (1, 'a', "merge_start='a'"),
  ],
)
def test_impossible_schedules_are_refused_in_one_line(
  model, merge, start, line
):
  with pytest.raises(ModelError, match='merge') as caught:
    merge_tokens(model, merge, start)
  assert line in str(caught.value)
  assert '\n' not in str(caught.value)


def test_pruned_blocks_leave_tokens_to_the_others(model):
  pruned = prune(model, [1])
  assert merge_tokens(pruned, [8, 4, 4]).module.merge_counts == (8, 0, 4)


@pytest.mark.parametrize(
  'call',
  [
    lambda model: pieces.stem_of(model.module),
    lambda model: lv.nose(model, [IMAGES], num_layers=1, warn=print),
    lambda model: lv.entropy_profile(model, [IMAGES]),
    lambda model: lv.linearize(model, [IMAGES], (0,)),
  ],
  ids=['stem_of', 'nose', 'entropy_profile', 'linearize'],
)
def test_searches_and_fits_refuse_a_merging_model(model, call):
  with pytest.raises(ModelError, match='merges tokens'):
    call(merge_tokens(model, 2))


def test_merging_can_be_removed(model):
  merged = merge_tokens(model, 2)
  assert merge_tokens(merged, 0).module == model.module


def test_a_module_takes_one_number_per_block():
  with pytest.raises(ModelError, match='merge=8: a module takes a tuple'):
    make_module('vit_nano_patch2_8', merge=8)
