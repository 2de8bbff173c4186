"""`linearize`: the maps are the regression, and what they cost and save."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.exporters.onnx import vit
from lambda_vit_jax.models import pieces
from lambda_vit_jax.models.build import abstract_params
from lambda_vit_jax.models.layers import normalize
from lambda_vit_jax.models.macs import count_parameters, size_of
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.selection.trials import TrialRunner
from lambda_vit_jax.training_free import (
  least_squares,
  map_fitter,
  stream_pair,
)
from lambda_vit_jax.training_free.linear_maps import (
  LinearFit,
  LinearizeOptions,
  fit_linear,
)
from tests.support.golden import assert_close
from tests.support.onnx_numpy import run_graph
from tests.support.search_models import (
  batches_of,
  make_images,
  make_model,
  mesh_of,
)

SHAPE = (8, 8, 1)
IMAGES = make_images()


def taps_of(model, index, dense=None):
  """n(x) and what the stream lacks, `[samples, embed]` float64.

  That is what the attention adds, or brings the stream to that of `dense`.
  """
  taps = model.apply(IMAGES)[1][block_name(index)]
  normal = normalize(taps['input'], model.module.norm_eps[index])
  wanted = taps['attention']
  if dense is not None:
    half = dense.apply(IMAGES)[1][block_name(index)]['after_attention']
    wanted = half - taps['input']
  width = model.module.embed_dim
  return tuple(
    np.asarray(features, np.float64).reshape(-1, width)
    for features in (normal, wanted)
  )


def ridge_regression(x, y, ridge):
  mean_in, mean_out = x.mean(axis=0), y.mean(axis=0)
  centred = x - mean_in
  gram = centred.T @ centred
  gram += ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
  outputs = centred.T @ (y - mean_out)
  kernel = np.linalg.solve(gram, outputs)
  return kernel, mean_out - mean_in @ kernel


# float32 activations (1e-6 of their size) divided by a ridge of 1e-2.
CLOSE = {'rtol': 1e-3, 'atol': 1e-4}


@pytest.mark.parametrize(
  'options',
  [{}, {'layer_scale': 0.5, 'norm_eps': (1e-6, 1e-3, 1e-6, 1e-5)}],
  ids=lambda options: '-'.join(options) or 'plain',
)
@pytest.mark.parametrize('sequential', [True, False])
@pytest.mark.parametrize('target', ['stream', 'attention'])
def test_maps_are_those_of_gathered_features(
  tiny_variant, options, sequential, target
):
  """In sequence: of the network whose earlier maps are in place already."""
  model = make_model(tiny_variant, **options)
  how = {'target': target, 'ridge': 1e-2}
  found = lv.linearize(
    model, batches_of(IMAGES), (0, 1), sequential=sequential, **how
  )
  assert found.attention_modes == ('linear', 'linear', 'full')
  before = model
  dense = model if target == 'stream' else None
  for index in (0, 1):
    kernel, bias = ridge_regression(*taps_of(before, index, dense), 1e-2)
    fitted = found.params[block_name(index)]['attn']['linear']
    np.testing.assert_allclose(fitted['kernel'], kernel, **CLOSE)
    np.testing.assert_allclose(fitted['bias'], bias, **CLOSE)
    if sequential:
      before = lv.linearize(before, [IMAGES], (index,), **how, dense=dense)


def gap_after(index, found, dense):
  """Squared distance of two streams after an attention half, as it is fitted."""
  halves = [
    model.apply(IMAGES)[1][block_name(index)]['after_attention']
    for model in (found, dense)
  ]
  return (np.asarray(halves[0] - halves[1], np.float64) ** 2).mean()


def test_a_later_map_makes_up_for_an_earlier_one(tiny_variant):
  """Least squares of the gap itself cannot leave more of it than another map."""
  model = make_model(tiny_variant)
  stream, attention = (
    gap_after(
      1,
      lv.linearize(model, [IMAGES], (0, 1), target=target, ridge=0.0),
      model,
    )
    for target in ('stream', 'attention')
  )
  assert stream < 0.95 * attention


def test_maps_aim_at_the_model_before_blocks_were_dropped(tiny_variant):
  """A map after a dropped block makes up for that block too."""
  dense = make_model(tiny_variant, depth=4)
  short = lv.drop_blocks(dense, (1,))
  found = lv.linearize(short, [IMAGES], (1,), dense=dense, ridge=1e-2)
  taps = short.apply(IMAGES)[1]['block01']
  half = dense.apply(IMAGES)[1]['block02']['after_attention']
  normal = normalize(taps['input'], short.module.norm_eps[1])
  x, y = (
    np.asarray(leaf, np.float64).reshape(-1, 24)
    for leaf in (normal, half - taps['input'])
  )
  kernel, _ = ridge_regression(x, y, 1e-2)
  fitted = found.params['block01']['attn']['linear']
  np.testing.assert_allclose(fitted['kernel'], kernel, **CLOSE)


def test_the_rest_of_the_model_is_shared(tiny_variant):
  model = make_model(tiny_variant, layer_scale=0.5)
  found = lv.linearize(model, [IMAGES], (1,))
  assert set(found.params['block01']) == {'attn', 'norm2', 'mlp', 'ls2'}
  assert found.params['block00'] is model.params['block00']
  assert 'ls1' in model.params['block01']
  assert found.num_parameters == size_of(found.module)
  shapes = abstract_params(found.module)
  assert jax.tree.structure(shapes) == jax.tree.structure(found.params)


PADDED = np.concatenate([IMAGES, np.full((5, *SHAPE), 7, np.float32)])


@pytest.mark.parametrize(
  'batches, options',
  [
    (batches_of(IMAGES, 7), {}),
    ([{'image': PADDED, 'mask': np.arange(80) < 75}], {}),
    ([(IMAGES, np.zeros(75, int))], {}),
    ([IMAGES], {'devices': 8}),
    ([IMAGES], {'memory_gib': 4e-4}),
  ],
  ids=['ragged', 'masked', 'pairs', 'devices', 'memory'],
)
def test_user_batches_and_devices_do_not_matter(tiny_variant, batches, options):
  model = make_model(tiny_variant)
  expected = fit_linear(model, [IMAGES], (0, 2))
  if 'devices' in options:
    options = {'mesh': mesh_of(options['devices'])}
  found = fit_linear(model, batches, (0, 2), **options)
  assert [fit.ridge for fit in found.blocks] == [
    fit.ridge for fit in expected.blocks
  ]
  # Sums of the same products in another order; ridges are at least 1e-6.
  np.testing.assert_allclose(
    found.model(IMAGES), expected.model(IMAGES), atol=1e-3
  )


def test_a_selection_names_the_layers(tiny_variant):
  model = make_model(tiny_variant)
  selection = lv.Selection('given', 'logits', 'signed', 0, None, removed=(0, 2))
  found = lv.linearize(model, [IMAGES], selection)
  expected = lv.linearize(model, [IMAGES], (0, 2))
  assert found.attention_modes == expected.attention_modes
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_a_fit_shows_itself(tiny_variant):
  fitted = fit_linear(
    make_model(tiny_variant), [IMAGES], (0, 2), LinearizeOptions(refit=True)
  )
  lines = repr(fitted).splitlines()
  assert lines[0] == 'tiny without the attention of blocks [0, 2]'
  assert [line.split()[:2] for line in lines[2:]] == [
    ['attention', '0'],
    ['attention', '2'],
    ['MLP', '0'],
    ['MLP', '1'],
    ['MLP', '2'],
  ]
  assert '<table>' in fitted._repr_html_()


def test_a_long_fit_shows_at_most_20_lines(tiny_variant):
  model = make_model(tiny_variant)
  blocks = tuple(map_fitter.BlockFit(i, 0.1, 0.5, 100) for i in range(40))
  assert len(repr(LinearFit(model, blocks)).splitlines()) <= 20


def test_exact_with_one_token(tiny_variant, rng):
  """Softmax over one token is 1: attention is affine in n(x)."""
  model = make_model(tiny_variant, layer_scale=0.5)
  place = read_images([IMAGES], model, mesh_of(1)).placement
  stream = jnp.asarray(rng.normal(size=(64, 1, 24)), jnp.float32)
  block = pieces.block_of(model.module, 1, 'full')
  params = pieces.block_params(model.params, 1)
  wanted, output = stream_pair.attention_half(
    block, params, stream, with_output=True, placement=place
  )
  (sums,) = map_fitter.map_sums(
    stream,
    wanted,
    jnp.ones(64, bool),
    {},
    module=pieces.stem_of(model.module),
    epsilon=block.norm_eps,
    options=map_fitter.MapOptions(('token',)),
    placement=place,
  )
  folds = [tuple(leaf[fold] for leaf in sums) for fold in range(4)]
  moments = least_squares.CrossMoments.from_sums(*folds)
  affine = least_squares.solve(moments, 0.0)
  params = {name: params[name] for name in ('norm2', 'mlp', 'ls2')} | {
    'attn': {'linear': {'kernel': affine.kernel, 'bias': affine.bias}}
  }
  block = pieces.block_of(model.module, 1, 'linear')
  found, _ = pieces.run_block(block, params, stream)
  # The bound.
  assert np.abs(found - output).max() <= 1e-5


def test_a_map_predicts_better_than_nothing(tiny_variant):
  model = make_model(tiny_variant)
  fitted = fit_linear(model, [IMAGES], (0, 1))
  found, fits = fitted.model, fitted.blocks
  assert [fit.block_index for fit in fits] == [0, 1]
  assert all(0.0 < fit.residual < 1.0 for fit in fits)
  assert fits[0].samples == 75 * 17
  logits = model(IMAGES)

  def error(other):
    return float(((other(IMAGES) - logits) ** 2).mean())

  assert error(found) < error(lv.prune(model, (0, 1), 'absent'))


def test_rank_is_that_of_the_kernel(tiny_variant):
  found = lv.linearize(make_model(tiny_variant), [IMAGES], (1,), rank=3)
  kernel = found.params['block01']['attn']['linear']['kernel']
  assert np.linalg.matrix_rank(kernel, tol=1e-5) == 3


def test_more_blocks_compile_nothing_anew(tiny_variant, compilations):
  # A width of its own, so that no other test has compiled the programs.
  variant = dataclasses.replace(tiny_variant, embed_dim=30)
  model = make_model(variant, depth=6)
  lv.linearize(model, [IMAGES], (1,))
  lv.linearize(model, [IMAGES], (0, 2))
  before = compilations()
  lv.linearize(model, [IMAGES], (0, 1, 3, 4))
  assert compilations() == before


def test_blocks_without_attention_stay_as_they_are(tiny_variant):
  model = lv.prune(make_model(tiny_variant, depth=4), (0,))
  found = lv.linearize(model, [IMAGES], (1,), ridge=1e-2)
  assert found.attention_modes == ('identity', 'linear', 'full', 'full')
  kernel, _ = ridge_regression(*taps_of(model, 1), 1e-2)
  fitted = found.params['block01']['attn']['linear']
  np.testing.assert_allclose(fitted['kernel'], kernel, **CLOSE)
  # And again, on what is left.
  again = lv.linearize(found, [IMAGES], (2,))
  assert again.attention_modes == ('identity', 'linear', 'linear', 'full')


def test_maps_go_in_mode_absent_alone(tiny_variant):
  model = make_model(tiny_variant)
  fit = {'inputs': ('token', 'mean'), 'ridge': 0.1}
  mapped = lv.linearize(model, [IMAGES], (0, 2), **fit)
  # Nothing else was fitted: what is left is the network without the layers.
  without = lv.prune(mapped, (0, 2), 'absent')
  plain = lv.prune(model, (0, 2), 'absent')
  assert without.module == plain.module
  assert jax.tree.structure(without.params) == jax.tree.structure(plain.params)
  jax.tree.map(np.testing.assert_array_equal, without.params, plain.params)
  one = lv.prune(mapped, (2,), 'absent')
  assert one.attention_modes == ('linear', 'full', 'absent')
  assert one.module.inputs_of(0) == ('token', 'mean')
  np.testing.assert_array_equal(
    one.params['block00']['attn']['linear']['kernel'],
    mapped.params['block00']['attn']['linear']['kernel'],
  )
  # A second pruning to x + x leaves the maps, as ever.
  assert lv.prune(mapped, (0, 2)).attention_modes == mapped.attention_modes


def test_bad_input_is_one_line(tiny_variant):
  model = make_model(tiny_variant)
  with pytest.raises(DataError, match='1 images of 17 tokens are 17 samples'):
    lv.linearize(model, [IMAGES[:1]], (0,))
  with pytest.raises(ModelError, match='at least one'):
    lv.linearize(model, [IMAGES], (0, 1, 2))
  with pytest.raises(ModelError, match='block 1 has no attention'):
    lv.linearize(lv.prune(model, (1,)), [IMAGES], (0, 1))
  with pytest.raises(UsageError, match='ridge='):
    lv.linearize(model, [IMAGES], (0,), ridge='strong')
  with pytest.raises(UsageError, match='rank=0'):
    lv.linearize(model, [IMAGES], (0,), rank=0)
  with pytest.raises(UsageError, match="target='steam' is not known"):
    lv.linearize(model, [IMAGES], (0,), target='steam')
  with pytest.raises(ModelError, match='which doubles the stream; linearize'):
    lv.linearize(lv.prune(model, (1,)), [IMAGES], (0,), dense=model)
  with pytest.raises(DataError, match='batch 0 has NaN'):
    lv.linearize(model, [IMAGES * np.float32(np.nan)], (0,))
  broken = model.params | {'pos_embed': model.params['pos_embed'] * np.nan}
  with pytest.raises(ModelError, match='block 0: activations are NaN'):
    lv.linearize(model.replace(params=broken), [IMAGES], (0,))


def test_as_many_samples_as_inputs_are_too_few(tiny_variant):
  """With an intercept a map of 34 inputs expresses 34 samples whatever they are."""
  model = make_model(dataclasses.replace(tiny_variant, embed_dim=34))
  with pytest.raises(DataError, match=r'34 samples, .* at least 3 imag'):
    lv.linearize(model, [IMAGES[:2]], (0,))


FAR = ('neighbours', 'positions', 'mixing')
INPUTS = (
  ('token', 'mean'),
  ('token', 'class_map'),
  ('token', 'mean', 'class_map'),
  ('token', 'neighbours'),
  ('token', 'class_map', 'positions'),
  ('token', 'mixing'),
  ('token', 'mean', 'class_map', *FAR),
)
WIDTH, TOKENS, HEADS = 24, 17, 2
SQUARE = WIDTH**2
# Parameters of each input, without and with a map for the class token.
PARAMETERS = {
  'token': (SQUARE + WIDTH, 2 * (SQUARE + WIDTH)),
  'mean': (SQUARE, 2 * SQUARE),
  'neighbours': (SQUARE, SQUARE),
  'positions': (TOKENS * WIDTH, TOKENS * WIDTH),
  'mixing': (
    2 * SQUARE + WIDTH + HEADS * TOKENS**2,
    3 * SQUARE + WIDTH + HEADS * TOKENS**2,
  ),
}
# Products of each input on all tokens, and on the class token alone.
MIXED = TOKENS**2 * WIDTH
MACS = {
  'token': (TOKENS * SQUARE, SQUARE),
  'mean': (SQUARE, SQUARE),
  'neighbours': ((TOKENS - 1) * SQUARE, 0),
  'positions': (0, 0),
  'mixing': (
    2 * TOKENS * SQUARE + MIXED,
    (TOKENS + 1) * SQUARE + TOKENS * WIDTH,
  ),
}


@pytest.fixture(scope='module', params=INPUTS, ids='-'.join)
def mapped(request, tiny_variant):
  """Blocks 0 and 2 of 3, so that a mean is read after the last attention."""
  return lv.linearize(
    make_model(tiny_variant), [IMAGES], (0, 2), inputs=request.param
  )


def test_sizes_with_further_inputs(mapped):
  shapes = abstract_params(mapped.module)
  assert jax.tree.structure(shapes) == jax.tree.structure(mapped.params)
  assert mapped.num_parameters == size_of(mapped.module)
  inputs = mapped.module.linear_inputs
  own = 'class_map' in inputs
  names = [name for name in inputs if name != 'class_map']
  found = count_parameters(mapped.params['block02']['attn'])
  assert found == sum(PARAMETERS[name][own] for name in names)
  # Of one of two blocks on all tokens; two maps read the mean.
  absent = mapped.replace(
    module=mapped.module.clone(attention_modes=('absent', 'full', 'absent'))
  )
  whole = (
    sum(MACS[name][0] for name in names) + own * ('mean' in names) * SQUARE
  )
  assert mapped.macs() - absent.macs() == 2 * whole
  mixes = not {'mean', 'neighbours', 'mixing'}.isdisjoint(names)
  assert mapped.module.last_mixing_block == (2 if mixes else 1)
  # The last map writes the class token alone; so block 1 has to run on all
  # tokens where its inputs are others.
  last = sum(MACS[name][1] for name in names)
  narrow = (2 * SQUARE + 2 * TOKENS * WIDTH + 8 * SQUARE) * (TOKENS - 1) * mixes
  assert (
    mapped.macs(executed=True) - absent.macs(executed=True)
    == narrow + whole + last
  )


def test_narrowing_to_the_class_token_changes_no_logit(mapped):
  np.testing.assert_allclose(
    mapped(IMAGES), mapped.apply(IMAGES)[0], rtol=1e-5, atol=1e-5
  )


def test_folding_with_further_inputs(mapped):
  module = mapped.module.clone(attention_modes=('identity', 'full', 'linear'))
  params = dict(mapped.params)
  params['block00'] = {k: params['block00'][k] for k in ('norm2', 'mlp')}
  model = mapped.replace(module=module, params=params)
  folded = lv.fold(model)
  assert folded.attention_modes == ('absent', 'full', 'linear')
  # Powers of two; epsilon is divided by 4^k.
  np.testing.assert_allclose(
    folded(IMAGES), model(IMAGES), rtol=1e-5, atol=1e-5
  )


def test_files_hold_further_inputs(mapped, tmp_path):
  """Each file is read back and compared with the model as it is written."""
  report = lv.export(
    mapped.replace(variant='vit_nano_patch2_8'),
    tmp_path / 'out',
    formats=('orbax', 'safetensors'),
  )
  assert max(report['differences'].values()) <= 1e-5
  found = lv.load_export(tmp_path / 'out')
  assert found.module.linear_inputs == mapped.module.linear_inputs
  assert found.attention_modes == mapped.attention_modes


def test_onnx_graph_with_further_inputs(mapped):
  logits = run_graph(vit.build(mapped), IMAGES)
  # The golden files' bound: the same float32 sums in another order.
  assert_close(logits, mapped(IMAGES))


def test_searches_on_models_with_further_inputs(mapped):
  """The runner's short cuts equal full forwards."""
  images = read_images([IMAGES], mapped)
  found = TrialRunner(mapped, images).evaluate([()])[()].pooled()
  logits = np.asarray(mapped.apply(IMAGES)[0], np.float64)
  np.testing.assert_allclose(found.std, logits.std(axis=0), rtol=1e-5)


def test_attention_that_averages_is_affine_in_the_mean(tiny_variant):
  """With keys of zero every token attends to all alike: exact with `mean`."""
  model = make_model(tiny_variant)
  params = dict(model.params)
  attn = params['block01']['attn']
  width = model.module.embed_dim
  keys = slice(width, 2 * width)
  qkv = {name: np.array(leaf) for name, leaf in attn['qkv'].items()}
  qkv['kernel'][:, keys] = 0.0
  qkv['bias'][keys] = 0.0
  params['block01'] = params['block01'] | {'attn': attn | {'qkv': qkv}}
  model = model.replace(params=params)
  options = LinearizeOptions(inputs=('token', 'mean'), ridge=0.0)
  found = fit_linear(model, [IMAGES], (1,), options)
  # What the stream lacks is a difference of float32 streams of size 1.
  assert found.blocks[0].residual <= 1e-6
  # Logits of size 1, sums of float32 products in the fit.
  np.testing.assert_allclose(found.model(IMAGES), model(IMAGES), atol=1e-3)
  found = fit_linear(model, [IMAGES], (1,), LinearizeOptions(ridge=0.0))
  assert found.blocks[0].residual > 1e-3


def test_more_inputs_leave_less(tiny_variant):
  model = make_model(tiny_variant)
  residual = {}
  for inputs in (('token',), *INPUTS[:3]):
    options = LinearizeOptions(inputs=inputs, ridge=1e-6)
    fitted = fit_linear(model, [IMAGES], (1,), options)
    residual[inputs] = fitted.blocks[0].residual
  token, mean, own, both = (residual[i] for i in (('token',), *INPUTS[:3]))
  assert both < mean < token
  assert both < own < token


def test_the_class_map_is_fitted_to_class_tokens(tiny_variant):
  """With a free correction it is the regression on class tokens alone."""
  model = make_model(tiny_variant)
  found = lv.linearize(
    model,
    [IMAGES],
    (1,),
    inputs=('token', 'class_map'),
    ridge=0.0,
    target='attention',
  )
  taps = model.apply(IMAGES)[1]['block01']
  normal = normalize(taps['input'], model.module.norm_eps[1])
  first = [np.asarray(t[:, 0], np.float64) for t in (normal, taps['attention'])]
  x = first[0] - first[0].mean(axis=0)
  kernel = np.linalg.lstsq(x, first[1] - first[1].mean(axis=0), rcond=1e-5)[0]
  fitted = found.params['block01']['attn']['class_linear']
  np.testing.assert_allclose(
    x @ np.asarray(fitted['kernel'], np.float64), x @ kernel, atol=1e-3
  )


def test_a_second_fit_may_have_other_inputs(tiny_variant):
  model = make_model(tiny_variant)
  once = lv.linearize(model, [IMAGES], (0,))
  twice = lv.linearize(
    once, [IMAGES], (1,), inputs=('token', 'mean'), dense=model
  )
  inputs = (('token',), ('token', 'mean'), ('token',))
  assert twice.module.linear_inputs == inputs
  shapes = abstract_params(twice.module)
  assert jax.tree.structure(shapes) == jax.tree.structure(twice.params)


def test_the_ridge_is_that_of_the_refit_too(tiny_variant):
  options = LinearizeOptions(refit=True, ridge=0.125)
  found = fit_linear(make_model(tiny_variant), [IMAGES], (0,), options)
  assert {fit.ridge for fit in (*found.blocks, *found.mlps)} == {0.125}


def test_inputs_are_checked(tiny_variant):
  bare = make_model(tiny_variant, pooling='avg', class_token=False)
  with pytest.raises(ModelError, match='no class token; leave class_map out'):
    lv.linearize(bare, [IMAGES], (0,), inputs=('token', 'class_map'))
  model = make_model(tiny_variant)
  with pytest.raises(ModelError, match="unknown input 'meen'"):
    lv.linearize(model, [IMAGES], (0,), inputs=('token', 'meen'))
  with pytest.raises(ModelError, match='add token'):
    lv.linearize(model, [IMAGES], (0,), inputs=('mean',))
  with pytest.raises(DataError, match='2 images of 17 tokens are 34 samples'):
    lv.linearize(model, [IMAGES[:2]], (0,), inputs=('token', 'mean'))
