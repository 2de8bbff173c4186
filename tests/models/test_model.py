"""Attention modes, sizes and layers of a `Model`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamNotFoundError, ScopeParamShapeError
from jax import export

from lambda_vit_jax.core.errors import ModelError
from lambda_vit_jax.models import build, layers, surgery
from lambda_vit_jax.models.block import mix
from lambda_vit_jax.models.build import (
  abstract_params,
  apply_module,
  forward,
  init_params,
  make_module,
)
from lambda_vit_jax.models.edits import fold, merge_tokens, prune, quantize
from lambda_vit_jax.models.macs import count_parameters, size_of
from lambda_vit_jax.models.model import Model, create_model
from lambda_vit_jax.models.modes import block_name, modes_without
from lambda_vit_jax.models.variants import VARIANTS, get_variant
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.selection.record import Selection

# Two float32 programs of the same sums in another order differ by a few
# units in the last place of numbers around 1.
SAME_SUMS = {'rtol': 1e-5, 'atol': 2e-6}


@pytest.fixture(scope='module')
def model(tiny_variant):
  module = make_module(tiny_variant)
  params = init_params(module, 0)
  # Away from zero biases, which would hide a dropped one.
  keys = iter(jax.random.split(jax.random.key(1), 200))
  params = jax.tree.map(
    lambda p: p + 0.1 * jax.random.normal(next(keys), p.shape), params
  )
  return Model(module, params, 'tiny', tiny_variant.preprocessing((8, 8)))


def _diluted(model, factor, **options):
  module = model.module.clone(attention_modes=('diluted',) * 3, **options)
  return model.replace(module=module).apply(
    np.asarray(IMAGES), dilution_factor=jnp.full((3,), factor)
  )[0]


IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)


@pytest.mark.parametrize(
  'name, removed, parameters, gmacs',
  [
    ('deit_tiny_patch16_224', (), 5717416, 1.2537),
    ('deit_tiny_patch16_224', (0, 2, 4), 5271592, 1.1218),
    ('deit_tiny_patch16_224', (0, 2, 4, 6), 5122984, 1.0779),
    ('deit_small_patch16_224', (), 22050664, 4.5989),
    ('deit_small_patch16_224', (0, 2, 4), 20274280, 4.1609),
    ('deit_small_patch16_224', (0, 2, 4, 6), 19682152, 4.0149),
    ('deit_base_patch16_224', (), 86567656, 17.5638),
    ('deit_base_patch16_224', (0, 1, 3, 4, 6), 74748136, 14.9419),
    ('deit_base_patch16_224', (0, 1, 3, 4, 6, 9), 72384232, 14.4175),
  ],
)
def test_published_sizes(name, removed, parameters, gmacs):
  modes = modes_without(removed, ('full',) * 12)
  module = make_module(name, attention_modes=modes)
  shapes = abstract_params(module)
  model = Model(module, shapes, name, None)
  assert model.num_parameters == parameters
  assert round(model.macs() / 1e9, 4) == gmacs
  assert model.removed_layers == removed


@pytest.mark.parametrize(
  'name, removed, ratio',
  [
    ('deit_base_patch16_224', (0, 1, 3, 4, 6), 1.191),
    ('deit_base_patch16_224', (0, 1, 3, 4, 6, 9), 1.238),
    ('deit_small_patch16_224', (0, 2, 4, 6), 1.158),
  ],
)
def test_executed_macs_leave_out_tokens_that_are_not_read(name, removed, ratio):
  def macs(layers):
    modes = modes_without(layers, ('full',) * 12)
    module = make_module(name, attention_modes=modes)
    return Model(module, {}, name, None).macs(executed=True)

  assert round(macs(()) / macs(removed), 3) == ratio


def structure(variant):
  """What decides which parameters there are, sizes apart."""
  sizes = ('embed_dim', 'depth', 'num_heads', 'image_size', 'patch_size')
  return tuple(
    value is not None if name == 'layer_scale' else value
    for name, value in dataclasses.asdict(variant).items()
    if name in ViT.__dataclass_fields__ and name not in (*sizes, 'name')
  )


STRUCTURES = {structure(x): x.name for x in reversed(VARIANTS.values())}
"""The first variant of each structure."""


@pytest.mark.parametrize('name', STRUCTURES.values())
def test_the_closed_form_has_the_size_of_every_structure(name):
  # Two blocks show a mistake as well as forty do, and trace faster.
  variant = dataclasses.replace(VARIANTS[name], depth=2)
  module = make_module(variant, attention_modes=('full', 'linear'))
  shapes = abstract_params(module)
  assert size_of(module) == count_parameters(shapes)


def test_factor_one_is_the_dense_block(model):
  # One float32 product by exactly 1.0: bit for bit up to fusion.
  np.testing.assert_allclose(
    _diluted(model, 1.0), model.apply(IMAGES)[0], **SAME_SUMS
  )


@pytest.mark.parametrize(
  'compensation, mode', [(True, 'identity'), (False, 'absent')]
)
def test_factor_zero_is_the_pruned_model(model, compensation, mode):
  diluted = _diluted(model, 0.0, compensation=compensation)
  modes = (mode,) * 3
  pruned = model.replace(
    module=model.module.clone(attention_modes=modes),
    params=surgery.prune_tree(model.params, range(3)),
  )
  np.testing.assert_allclose(diluted, pruned(IMAGES), **SAME_SUMS)


def test_factor_scales_the_output_projection(model):
  factor = 0.3
  # A new dict per level, so that the shared model stays as it is.
  scaled = jax.tree.map(lambda leaf: leaf, model.params)
  for index in range(3):
    block = scaled[block_name(index)]
    block['attn']['proj'] = jax.tree.map(
      lambda leaf: leaf * factor, block['attn']['proj']
    )
  np.testing.assert_allclose(
    _diluted(model, factor, compensation=False),
    model.replace(params=scaled)(IMAGES),
    **SAME_SUMS,
  )


def test_attention_has_no_gradient_at_factor_zero(model):
  module = model.module.clone(attention_modes=('full', 'diluted', 'full'))

  def loss(params):
    logits, _ = apply_module(
      module, params, IMAGES, dilution_factor=jnp.array([1.0, 0.0, 1.0])
    )
    return (logits**2).sum()

  gradient = jax.grad(loss)(model.params)
  for part in ('attn', 'norm1'):
    for leaf in jax.tree.leaves(gradient['block01'][part]):
      assert not np.any(leaf)
    assert any(np.any(g) for g in jax.tree.leaves(gradient['block00'][part]))


def test_one_trace_serves_the_whole_schedule(model):
  module = model.module.clone(attention_modes=('diluted',) * 3)
  before = forward.cache_size()
  for factor in np.linspace(1, 0, 7, dtype=np.float32):
    forward(module, model.params, IMAGES, jnp.full((3,), factor))
  assert forward.cache_size() == before + 1


def test_skip_does_not_change_the_stream(model):
  modes = ('skip', 'full', 'skip')
  _, taps = model.apply(IMAGES, attention_modes=modes)
  for index, mode in enumerate(modes):
    block = taps[block_name(index)]
    same = np.array_equal(block['input'], block['after_attention'])
    assert same == (mode == 'skip')


def test_reading_the_class_token_alone_changes_no_logit(model):
  # Another order of the same sums in the last block.
  np.testing.assert_allclose(model(IMAGES), model.apply(IMAGES)[0], **SAME_SUMS)


@pytest.mark.parametrize(
  'change',
  [
    lambda model: model,
    lambda model: merge_tokens(model, 1),
    quantize,
    lambda model: quantize(model, 'dynamic'),
  ],
  ids=['plain', 'merged', 'int8', 'int8 dynamic'],
)
def test_the_batch_may_be_empty_or_symbolic(model, change):
  changed = change(model)
  shape = (*model.module.image_size, model.module.in_chans)
  assert changed(np.zeros((0, *shape))).shape == (0, model.num_classes)
  assert changed.apply(np.zeros((0, *shape)))[0].shape[0] == 0
  sizes = export.symbolic_shape(f'b,{",".join(map(str, shape))}')
  exported = export.export(jax.jit(lambda images: changed(images)))(
    jax.ShapeDtypeStruct(sizes, np.float32)
  )
  found = exported.call(IMAGES)
  np.testing.assert_allclose(found, changed(IMAGES), **SAME_SUMS)


def test_folding_is_the_same_function(model):
  pruned = prune(model, (0, 2))
  folded = fold(pruned)
  assert folded.attention_modes == ('absent', 'full', 'absent')
  # Scaling by powers of two is exact; epsilon is divided by 4^k.
  np.testing.assert_allclose(pruned(IMAGES), folded(IMAGES), **SAME_SUMS)


def test_folding_in_float64(model):
  with jax.enable_x64(True):
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), model.params)
    module = model.module.clone(dtype=jnp.float64)
    wide = prune(model.replace(module=module, params=params), (0, 2))
    images = jnp.asarray(IMAGES, jnp.float64)

    def features(m):
      m = m.replace(module=m.module.clone(num_classes=0))
      taps = apply_module(m.module, m.params, images)[1]
      return np.asarray(taps['features'])

    folded = fold(wide)
    assert features(wide).dtype == np.float64
    # Every factor is a power of two, so even float64 agrees to the bit.
    assert np.max(np.abs(features(wide) - features(folded))) <= 1e-12


def test_pruning_is_pure_and_idempotent(model):
  before = model.num_parameters
  pruned = prune(model, (1,))
  again = prune(pruned, (1,))
  assert model.num_parameters == before
  assert again.attention_modes == pruned.attention_modes
  assert jax.tree.structure(again.params) == jax.tree.structure(pruned.params)
  assert set(pruned.params['block01']) == {'norm2', 'mlp'}
  # 4·D² + 4·D of attention and 2·D of norm1.
  assert before - pruned.num_parameters == 4 * 24**2 + 6 * 24


def selection_of(*removed):
  return Selection('random', 'logits', 'signed', 0, None, removed=removed)


@pytest.mark.parametrize('mode', ['identity', 'absent'])
def test_prune_takes_a_selection(model, mode):
  selection = selection_of(0, 2)
  found = prune(model, selection, mode)
  expected = prune(model, (0, 2), mode)
  assert found.module == expected.module
  assert found.attention_modes == (mode, 'full', mode)
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_a_model_is_created_without_the_layers_of_a_selection():
  selection = selection_of(2)
  model = create_model('vit_nano_patch2_8', removed_layers=selection)
  assert model.removed_layers == (2,)


def test_a_selection_of_a_deeper_network_is_refused(model):
  selection = selection_of(11)
  with pytest.raises(ModelError, match='layer 11 is out of range'):
    prune(model, selection)


@pytest.mark.parametrize('layers', [3, 'identity', None, lambda model: model])
def test_other_types_of_layers_are_refused_in_one_line(model, layers):
  with pytest.raises(ModelError, match='give block indices or a Sel') as error:
    prune(model, model if callable(layers) else layers)
  assert len(str(error.value).splitlines()) == 1


def test_an_array_as_a_layer_is_refused_in_one_line(model):
  with pytest.raises(ModelError, match='of type ndarray: a block') as error:
    prune(model, np.zeros((30, 30)))
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize('mode', ['full', 'skip', 'linear', 'none'])
def test_prune_takes_only_modes_without_parameters(model, mode):
  with pytest.raises(ModelError, match='known are identity and absent'):
    prune(model, (0,), mode)


# Deep networks have the longest lines.
@pytest.mark.parametrize(
  'name', sorted({*STRUCTURES.values(), 'deit3_huge_patch14_224'})
)
def test_a_model_is_shown_in_few_lines(name):
  variant = VARIANTS[name]
  # As many groups of blocks, and as long, as there can be.
  modes = ['full', 'identity', 'absent', 'linear'] * variant.depth
  # Of these, tokens do not merge.
  fixed = variant.rotary or variant.relative_bias
  module = make_module(
    name,
    num_classes=7,
    attention_modes=modes[: variant.depth],
    merge=() if fixed else (1,) * variant.depth,
    quantization='weights',
  )
  shapes = abstract_params(make_module(name, num_classes=7))
  model = Model(module, shapes, name, None, kept_blocks=(0, 2))
  text = repr(model)
  assert len(text.splitlines()) <= 20
  assert all(len(line) <= 100 for line in text.splitlines())
  assert f'Model {name}' in text
  assert f'{count_parameters(shapes):,}' in text


def test_the_table_of_a_model():
  model = create_model('vit_mini_patch2_8', removed_layers=(1, 2, 3, 7))
  text = repr(model.replace(kept_blocks=(0, 1, 2, 4)))
  lines = {tuple(line.split()) for line in text.splitlines()}
  assert {
    ('Model', 'vit_mini_patch2_8'),
    ('image', 'size', '8', '×', '8'),
    ('classes', '10'),
    ('blocks', '12'),
    ('full', 'attention', 'blocks', '0,', '4-6,', '8-11'),
    ('identity', 'attention', 'blocks', '1-3,', '7'),
    ('kept', 'of', 'the', 'variant', 'blocks', '0-2,', '4'),
    ('parameters', f'{model.num_parameters:,}'),
    ('MACs', 'per', 'image', f'{model.macs() / 1e6:.4g}', 'M'),
    ('of', 'these', 'executed', f'{model.macs(executed=True) / 1e6:.4g}', 'M'),
  } == lines
  assert 'array' not in text.lower()
  html = model._repr_html_()
  assert html.startswith('<table>')
  assert 'vit_mini_patch2_8' in html
  assert '1-3, 7' in html


@pytest.mark.parametrize(
  'layers, message',
  [
    ((3,), 'out of range'),
    ((-1,), 'out of range'),
    ((1, 1), 'twice'),
    ((0, 1, 2), 'keep at least one'),
    ((0.5,), 'whole number'),
  ],
)
def test_impossible_layers_are_refused(model, layers, message):
  with pytest.raises(ModelError, match=message):
    prune(model, layers)


@pytest.mark.parametrize(
  'field, value',
  [
    ('mlp_alignment', 0),
    ('mlp_alignment', 1.5),
    ('embed_dim', 24.0),
    ('num_heads', True),
    ('num_registers', -1),
    ('image_size', 8.5),
    ('image_size', (8, '8')),
  ],
)
def test_sizes_are_whole_numbers_in_range(tiny_variant, field, value):
  with pytest.raises(ModelError, match=f'{field} ') as caught:
    make_module(tiny_variant, **{field: value})
  assert '\n' not in str(caught.value)


def test_image_size_must_fit_the_patch(tiny_variant):
  with pytest.raises(ModelError, match='not divisible by the patch size 2'):
    make_module(tiny_variant, image_size=7)


def test_unknown_variant_names_the_nearest():
  with pytest.raises(ModelError, match='deit_small_patch16_224'):
    create_model('deit_smal_patch16_224')


def test_gelu_is_exact(rng):
  x = jnp.asarray(rng.normal(size=100) * 3, jnp.float32)
  reference = jax.nn.gelu(x, approximate=False)
  np.testing.assert_allclose(layers.gelu(x), reference, atol=1e-6)
  slopes = jax.vmap(jax.grad(layers.gelu))(x)
  expected = jax.vmap(jax.grad(lambda v: jax.nn.gelu(v, approximate=False)))(x)
  np.testing.assert_allclose(slopes, expected, atol=1e-6)


def test_normalize_has_the_gradient_of_its_formula(rng):
  x = jnp.asarray(rng.normal(size=(5, 16)), jnp.float32)
  weight = jnp.asarray(rng.normal(size=(5, 16)), jnp.float32)

  def plain(v):
    centred = v - v.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-6)

  np.testing.assert_allclose(layers.normalize(x, 1e-6), plain(x), atol=1e-5)
  ours = jax.grad(lambda v: (layers.normalize(v, 1e-6) * weight).sum())(x)
  reference = jax.grad(lambda v: (plain(v) * weight).sum())(x)
  np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_drop_path_keeps_the_mean():
  x = jnp.ones((4000, 1, 1))
  dropped = np.asarray(layers.drop_path(x, 0.3, jax.random.key(0)))
  assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.7)}
  # Four standard deviations of a mean of 4,000 draws.
  assert abs(dropped.mean() - 1.0) < 4 * np.sqrt(0.3 / 0.7 / 4000)
  assert layers.drop_path(x, 0.3, None) is x


def test_bfloat16_stays_near_float32(model):
  half = model.replace(module=model.module.clone(dtype=jnp.bfloat16))
  # Not a call, which is in float32 on CPUs.
  found = half.apply(IMAGES)[0]
  assert found.dtype == jnp.float32
  # bfloat16 keeps 8 bits; errors of a few such units through three blocks.
  np.testing.assert_allclose(found, model(IMAGES), atol=0.15)
  assert (found != model(IMAGES)).any()


def test_bfloat16_is_computed_in_float32_on_a_cpu(model, caplog, monkeypatch):
  """And says so, once."""
  build._say_float32.cache_clear()
  half = model.replace(module=model.module.clone(dtype=jnp.bfloat16))
  for _ in range(2):
    np.testing.assert_array_equal(half(IMAGES), model(IMAGES))
  assert [r.message for r in caplog.records if 'float32' in r.message] == [
    'bfloat16 is slower than float32 on this CPU: computing in float32 '
    '(docs/performance.md); parameters stay as they are'
  ]
  assert build.for_backend(model.module) is model.module
  # Accelerators compute in what was asked for.
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert build.for_backend(half.module) is half.module


def test_neither_scale_is_rounded_to_bfloat16(rng):
  """bfloat16 has 8 bits: λ = 0.9951 would be 0.9961, and 2 - λ 1.0078."""
  factor = 0.9951
  x, branch = (jnp.asarray(rng.normal(size=300), jnp.bfloat16) for _ in 'xb')
  r, a = np.float32(2 - factor), np.float32(factor)

  def exact(r, a):
    wide = np.asarray(x, float) * r + np.asarray(branch, float) * a
    return np.asarray(wide.astype(jnp.bfloat16), np.float32)

  def half(value):
    return float(jnp.bfloat16(value))

  found = jax.jit(mix)(x, branch, r, a)
  assert found.dtype == jnp.bfloat16
  share = (np.asarray(found, np.float32) == exact(r, a)).mean()
  # Sums on the edge between two numbers of bfloat16 may go either way.
  assert share > 0.98
  for wrong in ((r, half(a)), (half(r), a)):
    assert (exact(*wrong) == exact(r, a)).mean() < 0.95


def test_a_network_in_bfloat16_has_more_than_eight_bits_of_lambda(model):
  """0.9951 and 0.9969 are one number in bfloat16."""
  half = model.replace(module=model.module.clone(dtype=jnp.bfloat16))
  modes = ('diluted', 'full', 'full')
  first, second = (
    half.apply(IMAGES, modes, jnp.asarray([factor, 1, 1]))[1]
    for factor in (0.9951, 0.9969)
  )
  found, other = (
    taps['block00']['after_attention'] for taps in (first, second)
  )
  assert (found != other).any()


@pytest.mark.parametrize(
  'modes, message',
  [
    (('linear', 'full', 'full'), 'block 0 has no affine map'),
    (('diluted', 'full', 'full'), 'need a dilution_factor'),
  ],
)
def test_modes_whose_inputs_are_missing_are_refused(model, modes, message):
  with pytest.raises(ModelError, match=message):
    model.apply(IMAGES, modes)


def test_one_factor_is_that_of_all_blocks(model):
  modes = ('diluted', 'full', 'diluted')
  one, each = (model.apply(IMAGES, modes, f)[0] for f in (0.5, [0.5] * 3))
  np.testing.assert_array_equal(one, each)


@pytest.mark.parametrize(
  'modes, factor, message',
  [
    # An index out of range would be that of the last.
    (('full', 'full', 'diluted'), [0.5, 0.2], r'\[0.5, 0.2\]: give one number'),
    (('full', 'full', 'diluted'), 'half', 'or 3, one per block'),
    (('full', 'full', 'full'), 0.5, 'no block is in mode `diluted`'),
  ],
)
def test_factors_of_no_block_are_refused(model, modes, factor, message):
  with pytest.raises(ModelError, match=message):
    model.apply(IMAGES, modes, factor)


def test_a_call_has_no_factor(model):
  module = model.module.clone(attention_modes=('full', 'full', 'diluted'))
  with pytest.raises(ModelError, match='whose λ a call does not have'):
    model.replace(module=module)(IMAGES)


@pytest.mark.parametrize(
  'names', [('a', 'b'), tuple(range(10)), 'abcdefghij'], ids=str
)
def test_names_are_one_text_per_class(model, names):
  with pytest.raises(
    ModelError, match='of a model of 10 classes; give as many'
  ):
    model.replace(class_names=names)


@pytest.mark.parametrize(
  'channels, name', [(1, 'vit_tiny_patch16_224'), (3, 'vit_nano_patch2_8')]
)
def test_other_channels_have_the_mean_of_those_there_are(channels, name):
  found = create_model(name, image_size=32, in_chans=channels)
  assert found.preprocessing.channels == channels
  own = get_variant(name).mean
  assert found.preprocessing.mean == (sum(own) / len(own),) * channels
  pixels = np.zeros((1, 32, 32, channels), np.uint8)
  assert found(pixels).shape == (1, found.num_classes)


@pytest.mark.parametrize(
  'options', [{'mlp_kind': 'swish'}, {'rotary': 'foo'}], ids=str
)
def test_kinds_that_there_are_not_are_refused(options):
  with pytest.raises(ModelError, match=r'known are [a-z]'):
    create_model('vit_nano_patch2_8', **options)


class TestWithoutIntermediates:
  """`capture=False` computes the same logits with a cheaper program."""

  @pytest.mark.parametrize(
    'modes, options',
    [
      (('identity', 'identity', 'full'), {'pooling': 'avg'}),
      (('identity', 'linear', 'full'), {}),
      (('full', 'identity', 'identity'), {}),
      # The rest of the square: every case compiles three programs.
      *(
        pytest.param(modes, options, marks=pytest.mark.slow)
        for modes, options in (
          (('identity', 'full', 'identity'), {}),
          (('identity', 'full', 'identity'), {'pooling': 'avg'}),
          (('identity', 'identity', 'full'), {}),
          (('identity', 'linear', 'full'), {'pooling': 'avg'}),
          (('full', 'identity', 'identity'), {'pooling': 'avg'}),
        )
      ),
    ],
  )
  def test_leaving_out_the_doublings_changes_nothing(
    self, tiny_variant, modes, options
  ):
    variant = dataclasses.replace(tiny_variant, layer_scale=0.5)
    module = make_module(variant, attention_modes=modes, **options)
    params = init_params(module, 0)
    with_taps, taps = forward(module, params, IMAGES, capture=True)
    without, features = forward(module, params, IMAGES)
    np.testing.assert_allclose(without, with_taps, **SAME_SUMS)
    np.testing.assert_allclose(
      features['features'], taps['features'], **SAME_SUMS
    )

  def test_diluted_blocks_after_identity(self, model):
    module = model.module.clone(
      attention_modes=('identity', 'diluted', 'diluted')
    )
    params = surgery.prune_tree(model.params, (0,))
    factor = jnp.asarray([1.0, 0.3, 0.6])
    expected = forward(module, params, IMAGES, factor, capture=True)
    found = forward(module, params, IMAGES, factor)
    np.testing.assert_allclose(found[0], expected[0], **SAME_SUMS)


def test_rematerialisation_changes_no_gradient(model):
  def gradient(remat):
    module = model.module.clone(
      remat=remat, attention_modes=('identity', 'full', 'full')
    )

    def loss(params):
      logits, _ = apply_module(
        module,
        params,
        IMAGES,
        drop_path_key=jax.random.key(0),
        capture=False,
      )
      return (logits**2).mean()

    return jax.jit(jax.grad(loss))(surgery.prune_tree(model.params, (0,)))

  # The same operations, some of them twice and fused differently.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    gradient(True),
    gradient(False),
  )


class TestParameters:
  def test_a_forward_pass_traces_no_initialiser(self):
    def init(key, shape, dtype):
      traced.append(shape)
      return jnp.ones(shape, dtype)

    traced: list[tuple[int, ...]] = []
    module = layers.Dense(3, kernel_init=init)
    variables = module.init(jax.random.key(0), jnp.ones((2, 4)))
    assert traced == [(4, 3)]
    np.testing.assert_array_equal(
      module.apply(variables, jnp.ones((2, 4))), np.full((2, 3), 4.0)
    )
    assert traced == [(4, 3)]

  def test_another_shape_is_refused_with_its_path(self, model):
    params = surgery.prune_tree(model.params, ())
    params['block01']['mlp']['fc1']['kernel'] = jnp.ones((24, 95))
    with pytest.raises(ScopeParamShapeError, match='/block01/mlp/fc1'):
      apply_module(model.module, params, IMAGES)

  def test_a_missing_parameter_is_refused(self, model):
    params = surgery.prune_tree(model.params, ())
    del params['block01']['norm1']['bias']
    with pytest.raises(ScopeParamNotFoundError, match='bias'):
      apply_module(model.module, params, IMAGES)
