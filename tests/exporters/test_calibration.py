"""Int8 with calibrated activations, and OpenVINO's files."""

import json
import sys
import types

import numpy as np
import pytest

from lambda_vit_jax.core.errors import CheckpointError, DataError, UsageError
from lambda_vit_jax.core.preprocessing import IGNORED
from lambda_vit_jax.exporters import calibration, export, extras, runtimes
from lambda_vit_jax.exporters.calibration import Calibration
from lambda_vit_jax.models.adapt import with_decoder
from lambda_vit_jax.models.decoders import Decoder
from lambda_vit_jax.models.model import create_model

FORMATS = {'onnx': 'onnxruntime', 'openvino': 'openvino'}


def needs(name, *more):
  """Skips a test where a runtime is not installed."""
  return pytest.param(
    name,
    marks=pytest.mark.skipif(
      bool(runtimes.missing(FORMATS[name])),
      reason=runtimes.missing(FORMATS[name]) or 'installed',
    ),
  )


INSTALLED = [needs(name) for name in FORMATS]


@pytest.fixture(scope='module')
def model():
  """Logits that are far apart, as those of a trained network are."""
  return create_model('vit_nano_patch2_8', seed=3, removed_layers=(1,))


@pytest.fixture(scope='module')
def many():
  return np.random.default_rng(1).normal(size=(32, 8, 8, 1)).astype('f4')


@pytest.mark.parametrize('name', INSTALLED)
def test_calibrated_files_are_small_near_and_judged(
  name, model, many, tmp_path
):
  labels = np.asarray(model(many)).argmax(-1)
  report = export.export(
    model,
    tmp_path / 'out',
    formats=(name,),
    dtype='int8',
    check_images=(many, labels),
    int8_arithmetic='static:0.5',
  )
  scores = report['accuracy'][name]
  # Every second image; the labels are the float32 model's own classes.
  assert scores['num_images'] == 16
  assert scores['top1_float32'] == 1.0
  assert scores['top1'] >= 0.5
  # Not the float model's logits, and not those of another model.
  assert 1e-4 < report['differences'][name] < 0.2
  fields = json.loads((tmp_path / 'out' / 'model.json').read_text())
  assert fields['accuracy'][name] == scores
  assert fields['folded']['dtype'] == 'int8'
  # What we load ourselves stays as it was.
  assert fields['quantization'] == 'none'
  assert set(report['differences']) == {'orbax', name}
  program = runtimes.open_export(FORMATS[name], tmp_path / 'out')
  found = np.asarray(program(many[1::2])).argmax(-1)
  assert (found == labels[1::2]).mean() == scores['top1']


@pytest.mark.parametrize('name', INSTALLED)
def test_calibrated_products_are_of_integers(name, model, many, tmp_path):
  """A file whose weights alone are int8 would pass every test of accuracy."""
  export.export(
    model,
    tmp_path / 'out',
    formats=(name,),
    dtype='int8',
    check_images=many,
    int8_arithmetic='static:1',
  )
  if name == 'openvino':
    text = (tmp_path / 'out' / 'model.xml').read_text()
    assert text.count('type="FakeQuantize"') >= 4 * model.depth - 2
    return
  import onnx

  graph = onnx.load(tmp_path / 'out' / 'model.onnx').graph
  made_by = {out: node for node in graph.node for out in node.output}
  products = [
    node
    for node in graph.node
    if node.op_type == 'MatMul'
    and all(
      made_by[i].op_type == 'DequantizeLinear'
      for i in node.input
      if i in made_by
    )
  ]
  # Of each block fc1 and fc2, and where there is attention qkv and proj; with
  # the patches and the head.
  assert len(products) == 2 * model.depth + 2 * (model.depth - 1) + 2


@pytest.mark.parametrize('name', [needs('openvino')])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8'])
def test_the_ir_has_weights_in_half_precision(name, dtype, model, tmp_path):
  report = export.export(model, tmp_path / 'out', formats=(name,), dtype=dtype)
  assert report['differences']['openvino'] < 1e-2
  size = report['bytes']['model.bin']
  per_weight = size / model.num_parameters
  # Small arrays, and shapes, are kept as they are.
  assert per_weight < (1.5 if dtype == 'int8' else 2.5)


def pretend(classes):
  return lambda images: np.eye(4)[np.asarray(classes)[: len(images)]]


def test_the_accuracy_is_of_the_images_that_did_not_calibrate():
  images = np.arange(8.0).reshape(8, 1, 1, 1).astype('f4')
  judged = Calibration(images, np.asarray([9, 0, 9, 1, 9, 2, 9, 3]), 0.1)
  seen = np.concatenate(list(judged.batches(0))).ravel()
  np.testing.assert_array_equal(seen, [0, 2, 4, 6])
  scores = calibration.accuracy(
    pretend([0, 1, 2, 0]), pretend([0, 1, 0, 0]), judged
  )
  assert scores == {'top1': 0.5, 'top1_float32': 0.75, 'num_images': 4}
  with pytest.raises(CheckpointError, match=r'50\.00% against 75\.00%'):
    calibration.check_loss('onnx', scores, 0.24)
  calibration.check_loss('onnx', scores, 0.25)


def test_pixels_without_a_class_are_not_judged():
  images = np.zeros((2, 1, 2, 1), 'f4')
  labels = np.asarray([[[0, 0]], [[1, IGNORED]]])

  def right(batch):
    return np.eye(4)[np.asarray([[[1, 3]]])]

  scores = calibration.accuracy(right, right, Calibration(images, labels, 0.0))
  assert scores['top1'] == scores['top1_float32'] == 1.0


@pytest.mark.parametrize(
  'labels, says',
  [
    (np.arange(4) + 7, 'from 7 to 10, and the model has classes 0 to 9'),
    (np.full(4, -1), 'from -1 to -1'),
    (np.arange(4).astype(str), 'labels of type <U'),
    (np.eye(10)[:4], r'shape \(4, 10\); give class indices of shape \(4,\)'),
  ],
)
def test_labels_by_which_all_would_be_wrong_are_refused(model, labels, says):
  """By them every file would have lost nothing."""
  images = np.zeros((4, 8, 8, 1), 'f4')
  with pytest.raises(DataError, match=says):
    calibration.make_calibration(model, images, labels, 'static')


def test_masks_without_a_class_judge_nothing(model):
  """The mean of no pixel would be no number, which no bound refuses."""
  segments = with_decoder(model, Decoder('linear'), 3)
  images = np.zeros((2, 8, 8, 1), 'f4')
  labels = np.zeros((2, 8, 8), int)
  labels[1] = IGNORED
  with pytest.raises(DataError, match=r'the odd images.* have no pixel'):
    calibration.make_calibration(segments, images, labels, 'static')


def test_a_file_that_gained_is_not_refused():
  calibration.check_loss('onnx', {'top1': 0.6, 'top1_float32': 0.5}, 0.0)


@pytest.mark.parametrize(
  'arithmetic, loss',
  [('static', 0.005), ('static:0.02', 0.02), ('static:0', 0.0)],
)
def test_the_loss_is_read(arithmetic, loss):
  assert calibration.accepted_loss(arithmetic) == loss


@pytest.mark.parametrize('arithmetic', ['static:', 'static:x', 'static:2'])
def test_wrong_losses_are_refused(arithmetic):
  with pytest.raises(UsageError, match='from 0 to 1'):
    export.check_settings(('onnx',), 'int8', False, arithmetic)


@pytest.mark.parametrize(
  'images, message',
  [
    (None, 'is calibrated on images: give check_images'),
    (np.zeros((1, 8, 8, 1)), 'is calibrated on images: give check_images'),
    ((np.zeros((4, 8, 8, 1)), np.zeros(3)), '3 labels for 4 images'),
  ],
)
def test_no_images_or_other_labels_are_one_line(
  images, message, model, tmp_path
):
  with pytest.raises(DataError, match=message):
    export.export(
      model,
      tmp_path / 'out',
      formats=('onnx',),
      dtype='int8',
      check_images=images,
      int8_arithmetic='static',
    )
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('name', ['safetensors', 'stablehlo'])
def test_formats_without_activations_have_no_static_form(name):
  with pytest.raises(UsageError, match=f'format {name}: .*=static'):
    export.check_settings((name,), 'int8', False, 'static')


def test_a_missing_package_names_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, 'nncf', None)
  judged = Calibration(np.zeros((2, 1, 1, 1)), None, 0.0)
  with pytest.raises(Exception, match=r"nncf; .*lambda_vit_jax\[openvino\]'"):
    calibration.quantize_openvino(None, judged)


def test_nncf_is_asked_for_a_transformer(monkeypatch, capsys):
  """Its default treats the products of attention as those of a CNN."""
  asked = {}

  def quantize(network, dataset, **options):
    print('Statistics collection')
    asked.update(options, dataset=dataset, network=network)
    return 'quantised'

  fake = types.SimpleNamespace(
    quantize=quantize,
    Dataset=list,
    ModelType=types.SimpleNamespace(TRANSFORMER='transformer'),
    QuantizationPreset=types.SimpleNamespace(MIXED='mixed'),
    OverflowFix=types.SimpleNamespace(ENABLE='seven bits'),
    AdvancedQuantizationParameters=types.SimpleNamespace,
  )
  monkeypatch.setitem(sys.modules, 'nncf', fake)
  judged = Calibration(np.zeros((40, 1, 1, 1)), None, 0.0)
  assert calibration.quantize_openvino('network', judged) == 'quantised'
  # Of `--json`, all of stdout is JSON.
  assert capsys.readouterr().out == ''
  assert asked['model_type'] == 'transformer'
  # With eight, processors without VNNI would overflow.
  assert asked['advanced_parameters'].overflow_fix == 'seven bits'
  assert sum(map(len, asked['dataset'])) == 20
  assert asked['subset_size'] == len(asked['dataset']) == 3


def test_every_package_has_an_extra():
  assert {'nncf', 'onnx', 'onnxruntime', 'openvino'} <= set(extras.EXTRAS)
