"""`drop_blocks`, and the fits that make up for the dropped blocks."""

import jax
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.checkpoints import description
from lambda_vit_jax.cli.stages import linearize
from lambda_vit_jax.core.errors import CheckpointError, ModelError
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.training_free import mlp_refit, paired
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)
from tests.support.small_models import shade

IMAGES = make_images()


def output(model, index):
  """The stream after a block, float64."""
  taps = model.apply(IMAGES)[1][block_name(index)]
  return np.asarray(taps['output'], np.float64)


@pytest.mark.parametrize('index', [0, 1, 2])
def test_dropping_a_block_that_adds_nothing_keeps_the_logits(
  tiny_variant, index
):
  dense = shade(make_model(tiny_variant), index, 0.0)
  short = lv.drop_blocks(dense, (index,))
  assert short.depth == 2
  # The same sums of the same numbers, in another program.
  np.testing.assert_allclose(short(IMAGES), dense(IMAGES), atol=1e-5)


def test_the_result_is_an_ordinary_shorter_network(tiny_variant):
  dense = make_model(tiny_variant, depth=4)
  short = lv.drop_blocks(dense, (1,))
  plain = make_model(tiny_variant, depth=3)
  assert short.module == plain.module
  assert short.macs() == plain.macs()
  assert short.num_parameters == plain.num_parameters
  assert short.kept_blocks == short.block_origins == (0, 2, 3)
  assert dense.kept_blocks == ()
  # Arrays are shared, under their new names.
  assert short.params['block01'] is dense.params['block02']
  assert short.params['head'] is dense.params['head']


def test_dropping_twice_is_dropping_both_at_once(tiny_variant):
  dense = make_model(tiny_variant, depth=4)
  once = lv.drop_blocks(dense, (1, 2))
  twice = lv.drop_blocks(lv.drop_blocks(dense, (1,)), (1,))
  assert once.module == twice.module
  assert once.kept_blocks == twice.kept_blocks == (0, 3)
  jax.tree.map(np.testing.assert_array_equal, once.params, twice.params)
  assert lv.drop_blocks(dense, ()) is dense


def test_the_fields_of_a_block_are_dropped_with_it(tiny_variant):
  dense = make_model(
    tiny_variant,
    depth=4,
    drop_path_rate=0.3,
    norm_eps=(1e-6, 2e-6, 3e-6, 4e-6, 5e-6),
  )
  dense = lv.merge_tokens(lv.prune(dense, (2,), 'absent'), [1, 2, 0, 3])
  short = lv.drop_blocks(dense, (0, 1)).module
  assert short.norm_eps == (3e-6, 4e-6, 5e-6)
  assert short.attention_modes == ('absent', 'full')
  assert short.merge == (0, 3)
  np.testing.assert_allclose(short.drop_path_rates, (0.2, 0.3))


def test_a_decoder_still_reads_the_same_blocks(tiny_variant):
  dense = make_model(tiny_variant, depth=6)
  decoder = Decoder('upernet', (0, 2, 3, 5), channels=8)
  dense = lv.with_decoder(dense, decoder, 3)
  dense = shade(shade(dense, 1, 0.0), 4, 0.0)
  short = lv.drop_blocks(dense, (1, 4))
  assert short.module.segmentation.blocks == (0, 1, 2, 3)
  np.testing.assert_allclose(short(IMAGES[:2]), dense(IMAGES[:2]), atol=1e-4)
  with pytest.raises(ModelError, match='the decoder reads block 2'):
    lv.drop_blocks(dense, (2,))


def test_a_fit_of_the_backbone_gets_its_decoder_back(tiny_variant):
  dense = make_model(tiny_variant, depth=6)
  decoder = Decoder('upernet', (0, 2, 3, 5), channels=8)
  dense = shade(lv.with_decoder(dense, decoder, 3), 4, 0.0)
  plain = lv.backbone(dense)
  fitted = lv.refit(lv.drop_blocks(plain, (4,)), plain, [IMAGES])
  found = linearize.with_outputs_of(lv.drop_blocks(dense, (4,)), fitted)
  assert found.module.segmentation.blocks == (0, 2, 3, 4)
  assert found.kept_blocks == (0, 1, 2, 3, 5)
  # The block added nothing, so there was nothing to make up for.
  np.testing.assert_allclose(found(IMAGES[:2]), dense(IMAGES[:2]), atol=1e-4)


@pytest.mark.parametrize('source', ['out', 'out/model.safetensors'])
def test_files_record_the_kept_blocks(tmp_path, source):
  dense = lv.create_model('vit_mini_patch2_8', num_classes=3, image_size=4)
  short = lv.drop_blocks(dense, range(2, dense.depth - 1))
  lv.export(short, tmp_path / 'out', formats=('safetensors',))
  images = make_images(4, shape=(4, 4, dense.module.in_chans))
  found = lv.load_pretrained(tmp_path / source)
  assert found.kept_blocks == (0, 1, dense.depth - 1)
  np.testing.assert_allclose(found(images), short(images), atol=1e-5)


@pytest.mark.parametrize(
  'kept', [[0], [2, 1], [1, 1], [0, -1], [0, True], 'ab', None, [0, 1.0]]
)
def test_wrong_kept_blocks_in_a_description_are_refused(kept):
  model = lv.create_model('vit_mini_patch2_8', image_size=4)
  short = lv.drop_blocks(model, range(1, model.depth - 1))
  fields = description.describe(short)
  assert description.rebuild(fields, 'here').kept_blocks == short.kept_blocks
  with pytest.raises(CheckpointError, match='kept_blocks'):
    description.rebuild(fields | {'kept_blocks': kept}, 'here')


@pytest.mark.parametrize('gone', [(1,), (0,), (1, 2), (3,), (0, 1), (2, 3)])
def test_refit_makes_up_for_blocks_that_add_a_constant(tiny_variant, gone):
  # Added to all channels alike: no norm sees it, so the gap is constant.
  dense = make_model(tiny_variant, depth=4)
  for index in gone:
    dense = shade(dense, index, 0.4)
  short = lv.drop_blocks(dense, gone)
  found = lv.refit(short, dense, batches_of(IMAGES))
  # Float32 rounding of a stream around 3.
  np.testing.assert_allclose(
    output(found, short.depth - 1), output(dense, 3), atol=1e-4
  )
  np.testing.assert_allclose(found(IMAGES), dense(IMAGES), atol=1e-4)


def test_the_mlp_before_dropped_blocks_is_fitted_to_their_output(tiny_variant):
  dense = make_model(tiny_variant, depth=4)
  short = lv.drop_blocks(dense, (1, 2))
  images = read_images(batches_of(IMAGES), dense)
  found, fits = mlp_refit.refit_on(short, dense, images)
  assert [fit.block_index for fit in fits] == [0, 1]
  wanted = output(dense, 2)
  before, after = (((wanted - output(m, 0)) ** 2).sum() for m in (short, found))
  # Of a random network, by least squares on 96 features of the token.
  assert after < 0.9 * before
  spread = wanted - output(short, 0)
  spread = ((spread - spread.mean(axis=(0, 1))) ** 2).sum()
  np.testing.assert_allclose(after / spread, fits[0].residual, rtol=1e-3)


def test_recentring_restores_the_moments_of_the_dense_norms(tiny_variant):
  dense = make_model(tiny_variant, depth=4)
  short = lv.drop_blocks(dense, (1,))
  found = lv.recentre(short, dense, batches_of(IMAGES))
  # The norm before the attention layer that now follows block 0.
  here, there = (
    np.asarray(m.apply(IMAGES)[1][name]['norm1'], np.float64)
    for m, name in ((found, 'block01'), (dense, 'block02'))
  )
  for moment in (np.mean, np.std):
    # Float32 moments of 1,275 tokens.
    np.testing.assert_allclose(
      moment(here, axis=(0, 1)), moment(there, axis=(0, 1)), atol=1e-4
    )
  # Nothing before the dropped block has changed.
  jax.tree.map(
    np.testing.assert_array_equal,
    found.params['block00'],
    dense.params['block00'],
  )


def test_recentring_restores_the_final_norm_after_dropped_blocks(
  tiny_variant,
):
  dense = make_model(tiny_variant, depth=4)
  found = lv.recentre(lv.drop_blocks(dense, (2, 3)), dense, [IMAGES])
  here, there = (
    np.asarray(m.apply(IMAGES)[1]['features'], np.float64)
    for m in (found, dense)
  )
  for moment in (np.mean, np.std):
    # Float32 moments of 75 class tokens.
    np.testing.assert_allclose(
      moment(here, axis=0), moment(there, axis=0), atol=1e-3
    )
  for name in ('block00', 'block01'):
    jax.tree.map(
      np.testing.assert_array_equal, found.params[name], dense.params[name]
    )


def test_linearize_refits_a_model_with_dropped_blocks(tiny_variant):
  dense = make_model(tiny_variant, depth=4)
  short = lv.drop_blocks(dense, (1,))
  both = lv.linearize(short, [IMAGES], (1,), refit=True, dense=dense)
  maps = lv.linearize(short, [IMAGES], (1,), dense=dense)
  step = lv.refit(maps, dense, [IMAGES])
  assert both.attention_modes == ('full', 'linear', 'full')
  jax.tree.map(np.testing.assert_array_equal, both.params, step.params)


@pytest.mark.parametrize('devices', [2, 8])
def test_refit_does_not_depend_on_the_number_of_devices(tiny_variant, devices):
  dense = make_model(tiny_variant)
  short = lv.drop_blocks(dense, (1,))
  one = lv.refit(short, dense, [IMAGES], mesh=mesh_of(1))
  many = lv.refit(short, dense, batches_of(IMAGES, 20), mesh=mesh_of(devices))
  # Other batches and sums, through solves.
  np.testing.assert_allclose(one(IMAGES), many(IMAGES), atol=1e-3)


@pytest.mark.parametrize(
  'dropped, origins, targets, first, first_short',
  [
    ((1, 4), (0, 2, 3), (2, 3, 5), 1, 0),
    ((4,), (0, 1, 2, 3), (1, 2, 3, 5), 4, 3),
    ((), (0, 1, 2, 3, 4), (1, 2, 3, 4, 5), 5, 5),
  ],
)
def test_blocks_are_paired_with_those_of_the_dense_model(
  tiny_variant, dropped, origins, targets, first, first_short
):
  dense = make_model(tiny_variant, depth=5)
  pairing = paired.pair(lv.drop_blocks(dense, dropped), dense)
  assert pairing.origins == origins
  assert pairing.targets == targets
  assert (pairing.first, pairing.first_short) == (first, first_short)


def test_the_dense_model_may_have_lost_a_block_before(tiny_variant):
  dense = make_model(tiny_variant, depth=5)
  older = lv.drop_blocks(dense, (0,))
  pairing = paired.pair(lv.drop_blocks(dense, (0, 2)), older)
  assert pairing.origins == (0, 2, 3)


def first_epsilon(model, epsilon):
  rest = model.module.norm_eps[1:]
  return model.replace(module=model.module.clone(norm_eps=(epsilon, *rest)))


@pytest.mark.parametrize(
  'pair_of, message',
  [
    (
      lambda dense: (
        lv.drop_blocks(dense, (1,)).replace(kept_blocks=()),
        dense,
      ),
      'does not record which blocks it kept',
    ),
    (
      lambda dense: (dense, lv.drop_blocks(dense, (0,))),
      'the second has no block 0',
    ),
    (
      lambda dense: (first_epsilon(lv.drop_blocks(dense, (0,)), 1e-3), dense),
      'differ in norm_eps',
    ),
  ],
  ids=['unknown blocks', 'swapped', 'other epsilon'],
)
def test_models_that_do_not_pair_are_refused(tiny_variant, pair_of, message):
  with pytest.raises(ModelError, match=message):
    paired.pair(*pair_of(make_model(tiny_variant, depth=5)))


@pytest.mark.parametrize(
  'pruned, dropped, message',
  [
    ((), (3,), 'out of range: blocks are 0 to 2'),
    ((), (1, 1), 'given twice'),
    ((), (0, 1, 2), 'keep at least one'),
    ((0,), (0,), 'block 0 is identity'),
    ((0,), (1, 2), 'no attention is left'),
  ],
)
def test_blocks_that_cannot_be_dropped(tiny_variant, pruned, dropped, message):
  model = lv.prune(make_model(tiny_variant), pruned)
  with pytest.raises(ModelError, match=message):
    lv.drop_blocks(model, dropped)
