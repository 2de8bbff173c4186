"""Segmentation: the same logits in every form of a model, and the decoders."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints import description
from lambda_vit_jax.core.errors import CheckpointError, ModelError
from lambda_vit_jax.exporters.formats import read_stablehlo
from lambda_vit_jax.exporters.onnx import vit
from lambda_vit_jax.models import (
  adapt,
  decoders,
  modes,
  pieces,
  resampling,
)
from lambda_vit_jax.models.build import (
  abstract_params,
  apply_module,
  forward,
  make_module,
)
from lambda_vit_jax.models.decoders import Decoder, spread_blocks
from lambda_vit_jax.models.model import create_model
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.training import optim
from tests.support.onnx_numpy import run_graph
from tests.support.small_models import CLASSES, LINEAR, UPERNET, make_segmenter

EACH = pytest.mark.parametrize('decoder', [LINEAR, UPERNET], ids=decoders.KINDS)


@EACH
def test_logits_per_pixel(decoder, images):
  model = make_segmenter(decoder)
  assert 'head' not in model.params
  logits = model(images)
  assert logits.shape == (4, 8, 8, CLASSES)
  assert logits.dtype == jnp.float32
  # Capturing computes the same with a factor 2 where the other has none.
  captured, taps = model.apply(images)
  np.testing.assert_allclose(captured, logits, atol=1e-5)
  assert taps['features'].shape == (4, 4, 4, 24)


@EACH
def test_one_function_in_every_form(decoder, images):
  """Diluted to λ = 0, pruned and folded; grids keep the scale of the stream."""
  dense = make_segmenter(decoder)
  layers = (0, 2)
  diluted = dense.module.clone(
    attention_modes=modes.modes_without(
      layers, dense.attention_modes, 'diluted'
    )
  )
  last, last_taps = forward(
    diluted, dense.params, images, jnp.array([0.0, 1.0, 0.0]), capture=True
  )
  pruned = lv.prune(dense, layers)
  folded = lv.fold(pruned)
  assert folded.attention_modes == ('absent', 'full', 'absent')
  for model in (pruned, folded):
    captured, taps = model.apply(images)
    # The same sums in another order, of logits of about 1; powers of two
    # lose nothing.
    np.testing.assert_allclose(captured, last, atol=2e-5)
    np.testing.assert_allclose(model(images), last, atol=2e-5)
    for place in range(len(decoder.blocks)):
      name = f'grid{place}'
      np.testing.assert_allclose(
        taps[name], last_taps[name], rtol=2e-5, atol=2e-5
      )


def test_folding_halves_the_stream_but_not_the_grids(images):
  pruned = lv.prune(make_segmenter(UPERNET), (0, 2))
  folded = lv.fold(pruned)
  counts = modes.doublings(pruned.attention_modes)
  assert folded.module.segmentation.doublings == (1, 1, 2, 2)
  _, whole = pruned.apply(images)
  _, halved = folded.apply(images)
  for place, block in enumerate(UPERNET.blocks):
    name = modes.block_name(block)
    stream = folded.module.grid(halved[name]['output'])
    # A power of two: exact.
    np.testing.assert_array_equal(
      halved[f'grid{place}'], stream * 2.0 ** counts[block]
    )
    np.testing.assert_array_equal(
      whole[f'grid{place}'], pruned.module.grid(whole[name]['output'])
    )
  # Folding a folded or dense model changes nothing.
  again = lv.fold(folded)
  assert again.module == folded.module
  dense = make_segmenter(UPERNET)
  np.testing.assert_array_equal(lv.fold(dense)(images), dense(images))


def test_linear_is_one_product_per_token(images):
  model = make_segmenter(LINEAR)
  logits, taps = model.apply(images)
  layer = model.params['decoder']['classify']
  coarse = taps['features'] @ layer['kernel'] + layer['bias']
  fine = jax.image.resize(coarse, logits.shape, 'linear', antialias=False)
  # Two interpolations in another order of sums.
  np.testing.assert_allclose(logits, fine, atol=1e-5)


@pytest.mark.parametrize('sizes', [(4, 16), (5, 20), (6, 3), (3, 7), (1, 4)])
def test_bilinear_matrix(sizes, rng):
  size, new_size = sizes
  values = rng.normal(size=size).astype(np.float32)
  found = resampling.bilinear_matrix(size, new_size) @ values
  expected = jax.image.resize(values, (new_size,), 'linear', antialias=False)
  # float32 rounding of a mean of two.
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize('size, cells', [(6, 3), (5, 3), (4, 6), (32, 6)])
def test_pooling_covers_the_axis(size, cells):
  matrix = resampling.pooling_matrix(size, cells)
  np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
  assert (matrix > 0).any(axis=0).all()
  if size % cells == 0:
    values = np.arange(float(size), dtype=np.float32)
    np.testing.assert_allclose(
      matrix @ values, values.reshape(cells, -1).mean(axis=1), rtol=1e-6
    )


@pytest.mark.parametrize(
  'depth, blocks',
  [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (3, (0, 1, 2, 2))],
)
def test_the_decoder_reads_the_end_of_each_quarter(depth, blocks):
  assert spread_blocks(depth) == blocks


def test_quantizing_leaves_the_decoder_in_float32(images):
  model = make_segmenter(LINEAR)
  small = lv.quantize(model)
  assert small.params['decoder'] is model.params['decoder']
  largest = np.abs(model(images)).max()
  # Half a step of 1/127 of each matrix's range, through three blocks.
  assert np.abs(small(images) - model(images)).max() < 0.1 * largest


def test_shapes_of_upernet():
  """A ViT-B at 512 pixels."""
  module = make_module(
    'deit_base_patch16_224',
    image_size=512,
    num_classes=150,
    segmentation=Decoder('upernet', spread_blocks(12)),
  )
  assert module.segmentation.blocks == (2, 5, 8, 11)
  params = abstract_params(module)['decoder']
  assert params['neck0']['kernel'].shape == (768, 768)
  assert params['rescale3']['kernel'].shape == (3, 3, 768, 768)
  assert params['lateral2']['conv']['kernel'].shape == (768, 512)
  assert params['pooled']['conv']['kernel'].shape == (3, 3, 768 + 4 * 512, 512)
  assert params['fuse']['conv']['kernel'].shape == (3, 3, 4 * 512, 512)
  assert params['classify']['kernel'].shape == (512, 150)
  out = jax.eval_shape(
    lambda p, x: apply_module(module, p, x, capture=False)[0],
    abstract_params(module),
    jax.ShapeDtypeStruct((2, 512, 512, 3), jnp.float32),
  )
  assert out.shape == (2, 512, 512, 150)


@EACH
def test_macs_are_those_of_the_kernels(decoder):
  """Counted from the tree: each kernel works on every cell of its grid."""
  model = make_segmenter(decoder)
  grid = {
    'neck': (1,) * 4,
    'rescale': decoders.SCALES,
    'lateral': decoders.SCALES,
    'smooth': decoders.SCALES,
  }
  total = 0
  for name, leaves in model.params['decoder'].items():
    kernel = leaves.get('conv', leaves)['kernel']
    kind = name.rstrip('0123456789')
    place = name.removeprefix(kind)
    if kind == 'pool':
      area = int(place) ** 2
    else:
      finest = 4.0 if decoder.kind == 'upernet' else 1.0
      scale = {'pooled': 0.5, 'fuse': finest, 'classify': finest}.get(kind)
      scale = grid[kind][int(place)] if scale is None else scale
      area = int(4 * scale) ** 2
    total += area * int(np.prod(kernel.shape))
  plain = adapt.backbone(model)
  assert model.macs() - plain.macs() == total
  # Every token is computed in the last block.
  assert model.macs(executed=True) == model.macs()


@EACH
def test_a_distilled_model_has_one_decoder(decoder):
  """Where a classifier has two heads."""
  tall = lv.create_model('vit_nano_patch2_8', distilled=True)
  model = lv.with_decoder(tall, decoder, CLASSES)
  plain = adapt.backbone(model)
  added = decoders.count_macs(decoder, (4, 4), 24, CLASSES)
  assert model.macs() - plain.macs() == added


def test_dropout_is_applied_in_training_only(images):
  model = make_segmenter(LINEAR)
  key = jax.random.key(0)

  def logits(key):
    return apply_module(
      model.module, model.params, images, drop_path_key=key, capture=False
    )[0]

  # Rates of stochastic depth are 0: dropout alone differs.
  assert np.abs(logits(key) - logits(None)).max() > 1e-3
  np.testing.assert_array_equal(logits(key), logits(key))


@EACH
def test_descriptions_keep_the_decoder(decoder):
  model = lv.fold(lv.prune(make_segmenter(decoder), (1,)))
  rebuilt = description.rebuild(description.describe(model), 'here')
  assert rebuilt.module == model.module


@pytest.mark.slow
def test_exports_compute_the_same_logits(images, tmp_path):
  model = lv.prune(make_segmenter(UPERNET), (1,))
  lv.export(model, tmp_path / 'out')
  logits = model(images)
  exported = lv.load_pretrained(tmp_path / 'out')
  np.testing.assert_allclose(exported(images), logits, atol=1e-5)
  folded = lv.load_pretrained(tmp_path / 'out' / 'model.safetensors')
  assert folded.attention_modes == ('full', 'absent', 'full')
  # One program after another of the same sums.
  np.testing.assert_allclose(folded(images), logits, atol=2e-5)
  program = read_stablehlo(tmp_path / 'out' / 'model.stablehlo')
  np.testing.assert_allclose(program(images[:3]), logits[:3], atol=2e-5)


@EACH
@pytest.mark.parametrize('removed', [(), (0, 2)], ids=['dense', 'pruned'])
def test_onnx_graphs(decoder, removed, images):
  folded = lv.fold(lv.prune(make_segmenter(decoder), removed))
  graph = vit.build(folded)
  assert graph.output_shape == (8, 8, CLASSES)
  # Float32 sums in another order, as with all forms above.
  np.testing.assert_allclose(
    run_graph(graph, images), folded(images), rtol=2e-5, atol=2e-5
  )


def test_onnx_of_an_image_that_is_not_square(images):
  """Rows and columns are not exchanged, in grids or images."""
  model = create_model('vit_nano_patch2_8', seed=1, image_size=(8, 16))
  model = adapt.with_decoder(model, UPERNET, CLASSES, 1)
  wide = np.concatenate([images, images[::-1]], axis=2)
  logits = run_graph(vit.build(model), wide)
  assert logits.shape == (4, 8, 16, CLASSES)
  np.testing.assert_allclose(logits, model(wide), rtol=2e-5, atol=2e-5)


@EACH
def test_merged_tokens_are_read_at_all_their_patches(decoder, images, tmp_path):
  """In every form; of 16 patches, 12 and finally 7 tokens are left."""
  dense = make_segmenter(decoder)
  np.testing.assert_array_equal(
    lv.merge_tokens(dense, 0)(images), dense(images)
  )
  merged = lv.merge_tokens(lv.prune(dense, (1,)), [4, 0, 5])
  logits = merged(images)
  assert logits.shape == (4, 8, 8, CLASSES)
  captured, taps = merged.apply(images)
  np.testing.assert_allclose(captured, logits, atol=2e-5)
  # Each patch is one of them.
  for image in np.asarray(taps['features']).reshape(4, 16, -1):
    assert len(np.unique(image, axis=0)) == 7
  # Readouts that average the patches see the same.
  np.testing.assert_allclose(
    lv.backbone(merged)(images),
    np.mean(taps['features'], axis=(1, 2)),
    atol=2e-5,
  )
  folded = lv.fold(merged)
  np.testing.assert_allclose(folded(images), logits, atol=2e-5)
  np.testing.assert_allclose(
    run_graph(vit.build(folded), images), logits, rtol=2e-5, atol=2e-5
  )
  lv.export(merged, tmp_path / 'out')
  program = read_stablehlo(tmp_path / 'out' / 'model.stablehlo')
  # For any batch size.
  np.testing.assert_allclose(program(images[:3]), logits[:3], atol=2e-5)
  exported = lv.load_pretrained(tmp_path / 'out')
  np.testing.assert_allclose(exported(images), logits, atol=1e-5)
  assert exported.module.merge == (4, 0, 5)
  # A decoder works on every patch, whatever the blocks do.
  plain = adapt.backbone(merged)
  added = decoders.count_macs(decoder, (4, 4), 24, CLASSES)
  assert merged.macs() - plain.macs() == added


@EACH
@pytest.mark.parametrize(
  'fields',
  [
    {'num_registers': 2, 'layer_scale': 0.5, 'pooling': 'avg'},
    {'distilled': True, 'norm_before_pool': False},
  ],
  ids=['registers', 'distilled'],
)
def test_onnx_graphs_that_merge(decoder, fields, images, rng):
  """With other leading tokens, and a map of the mean over merged tokens."""
  module = make_module(
    get_variant('vit_nano_patch2_8'),
    segmentation=decoder,
    num_classes=CLASSES,
    attention_modes=('full', 'linear', 'full'),
    linear_inputs=('token', 'mean', 'class_map'),
    merge=(8, 0, 3),
    **fields,
  )
  params = jax.tree.map(
    lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype),
    abstract_params(module),
  )
  model = make_segmenter(decoder).replace(module=module, params=params)
  graph = vit.build(lv.fold(model))
  np.testing.assert_allclose(
    run_graph(graph, images), model(images), rtol=2e-5, atol=2e-5
  )


@EACH
def test_merging_equal_patches_changes_nothing(decoder):
  """Equal tokens may be merged without a change of the logits."""
  model = make_segmenter(decoder)
  params = model.params | {'pos_embed': 0 * model.params['pos_embed']}
  model = model.replace(params=params)
  halves = np.zeros((1, 8, 8, 1), np.float32)
  halves[:, 4:] = 1
  found = lv.merge_tokens(model, [6, 4, 0])(halves)
  # Softmax over duplicates and over their sizes: other sums.
  np.testing.assert_allclose(found, model(halves), atol=2e-5)
  assert np.ptp(found) > 1e-2


@pytest.mark.slow
def test_gradients_pass_through_merged_tokens(images):
  model = lv.merge_tokens(make_segmenter(UPERNET), 4)

  def loss(params):
    logits, _ = apply_module(model.module, params, images, capture=False)
    return (logits**2).mean()

  # One operation after the other would take half a minute.
  loss = jax.jit(loss)
  gradients = jax.jit(jax.grad(loss))(model.params)
  size = float(optax.tree.norm(gradients))
  step = 1e-3 / size

  def moved(sign):
    return loss(
      jax.tree.map(lambda p, g: p + sign * step * g, model.params, gradients)
    )

  # Along the gradient the loss grows by its length; a step of 1e-3 in float32
  # leaves some thousandths of that.
  slope = (moved(1) - moved(-1)) / 2e-3
  np.testing.assert_allclose(slope, size, rtol=0.02)


def test_backbone_drops_the_decoder(images):
  model = make_segmenter(UPERNET)
  plain = lv.backbone(model)
  assert 'decoder' not in plain.params
  _, taps = model.apply(images)
  np.testing.assert_allclose(
    plain(images), taps['features'].mean(axis=(1, 2)), atol=1e-5
  )
  other = lv.with_decoder(plain, LINEAR, 3)
  assert other(images).shape == (4, 8, 8, 3)
  assert other.params['block00'] is model.params['block00']


def test_the_backbone_of_a_distilled_segmenter_averages_patches_alone(
  images, rng, tmp_path
):
  module = make_module(
    'vit_nano_patch2_8',
    segmentation=LINEAR,
    num_classes=CLASSES,
    distilled=True,
  )
  params = jax.tree.map(
    lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype),
    abstract_params(module),
  )
  model = make_segmenter(LINEAR).replace(module=module, params=params)
  plain = lv.backbone(model)
  _, taps = model.apply(images)
  np.testing.assert_allclose(
    plain(images), taps['features'].mean(axis=(1, 2)), atol=1e-5
  )
  lv.export(plain, tmp_path / 'out', formats='orbax')
  loaded = lv.load_export(tmp_path / 'out')
  np.testing.assert_allclose(loaded(images), plain(images), atol=1e-6)
  # Its heads would read two tokens, which it does not pool.
  with pytest.raises(ModelError, match='class and distillation tokens'):
    adapt.with_num_classes(plain, 4)


def test_the_decoder_has_the_learning_rate_of_a_head():
  scales = optim.layer_scales(make_segmenter(LINEAR).params, 0.5, 3)
  assert scales['decoder']['classify']['kernel'] == 1.0
  assert scales['block02']['norm2']['scale'] == 0.5


@pytest.mark.parametrize(
  'decoder, classes, message',
  [
    (LINEAR, 0, 'needs a class'),
    (Decoder('upernet', (0, 1, 2, 5)), 2, 'reads block 5; blocks are 0 to 2'),
  ],
)
def test_decoders_that_do_not_fit_are_refused(decoder, classes, message):
  with pytest.raises(ModelError, match=message):
    lv.with_decoder(make_segmenter(UPERNET), decoder, classes)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'kind': 'unet'}, 'is not known'),
    ({'kind': 'upernet', 'blocks': (1, 2)}, 'upernet reads four blocks'),
    (
      {'kind': 'upernet', 'blocks': (2, 2, 1, 0)},
      'upernet reads four blocks, ascending',
    ),
    ({'kind': 'linear', 'dropout': 1.0}, 'dropout=1'),
  ],
)
def test_impossible_decoders_are_refused(fields, message):
  with pytest.raises(ModelError, match=message):
    Decoder(**fields)


def test_searches_are_told_to_use_the_backbone():
  with pytest.raises(ModelError, match='backbone'):
    pieces.stem_of(make_segmenter(UPERNET).module)


@pytest.mark.parametrize(
  'change',
  [
    {'kind': 7},
    {'blocks': [0, 1, 2, 9]},
    {'blocks': ['0', 1, 2, 2]},
    {'doublings': [1]},
    {'doublings': [10**9] * 4},
    {'channels': 'wide'},
    {'channels': 10**9},
    {'dropout': None},
    {'extra': 1},
  ],
  ids=str,
)
def test_a_wrong_description_is_refused(change):
  fields = description.describe(make_segmenter(UPERNET))
  fields['segmentation'] = fields['segmentation'] | change
  with pytest.raises(CheckpointError):
    description.rebuild(fields, 'here')


def test_only_patches_are_decoded(rng):
  """Not registers or a distillation token; with a norm after the pooling."""
  module = make_module(
    get_variant('vit_nano_patch2_8'),
    segmentation=LINEAR,
    num_classes=CLASSES,
    num_registers=2,
    distilled=True,
    pooling='avg',
    norm_before_pool=False,
  )
  params = jax.tree.map(
    lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype),
    abstract_params(module),
  )
  images = rng.normal(size=(1, 8, 8, 1)).astype(np.float32)
  logits, taps = forward(module, params, images, capture=True)
  assert logits.shape == (1, 8, 8, CLASSES)
  # The patches are the last tokens.
  np.testing.assert_array_equal(
    taps['features'].reshape(1, 16, 24), taps['tokens'][:, -16:]
  )
