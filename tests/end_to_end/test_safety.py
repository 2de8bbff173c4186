"""No code from data: the syntax tree, and odd values for every config key."""

import ast
import pathlib
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from lambda_vit_jax.configs import common

from lambda_vit_jax.cli import config_values, flags, settings
from lambda_vit_jax.core.errors import LambdaVitError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.models import modes
from lambda_vit_jax.models.build import make_module
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.selection.record import Selection

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / 'lambda_vit_jax').rglob('*.py'))

_CALLS = {'eval', 'exec', 'compile', '__import__'}
_MODULES = {'pickle', 'cloudpickle', 'dill', 'marshal', 'shelve', 'joblib'}
_SHELL = {'system', 'popen', 'getoutput', 'getstatusoutput'}


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_no_eval_no_pickle_no_shell(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = {alias.name.split('.')[0] for alias in node.names}
      assert not names & _MODULES
    elif isinstance(node, ast.ImportFrom):
      assert (node.module or '').split('.')[0] not in _MODULES
    elif isinstance(node, ast.Call):
      _check_call(node)


def _check_call(node: ast.Call) -> None:
  name = (
    node.func.id
    if isinstance(node.func, ast.Name)
    else node.func.attr
    if isinstance(node.func, ast.Attribute)
    else ''
  )
  # `re.compile` and a compiled program's method are no code from text.
  assert not (isinstance(node.func, ast.Name) and name in _CALLS), node.lineno
  assert name not in _SHELL, node.lineno
  for keyword in node.keywords:
    value = getattr(keyword.value, 'value', None)
    assert not (keyword.arg == 'shell' and value is not False), node.lineno
    assert not (keyword.arg == 'allow_pickle' and value is not False)
    assert not (keyword.arg == 'weights_only' and value is not True)
  if name == 'load' and isinstance(node.func, ast.Attribute):
    module = getattr(node.func.value, 'id', '')
    wanted = {'np': 'allow_pickle', 'torch': 'weights_only'}.get(module)
    given = {keyword.arg for keyword in node.keywords}
    assert wanted is None or wanted in given, node.lineno


def _attempt(call: Callable[[], Any]) -> Any:
  """What `call` gives; None where it refuses in one line."""
  try:
    return call()
  except LambdaVitError as error:
    text = str(error)
  assert text
  assert '\n' not in text
  return None


def _keys(config, prefix=''):
  for key, value in config.items():
    if hasattr(value, 'items'):
      yield from _keys(value, f'{prefix}{key}.')
    else:
      yield prefix + key


_GOOD = ['run', f'--config={ROOT}/configs/digits.py', '--workdir=unused']
_KEYS = sorted(_keys(flags.parse(_GOOD)[1].to_dict()))
_TEXTS = st.one_of(
  st.text(max_size=20),
  st.sampled_from(
    ['', 'nan', '1e999', '-1', '9' * 500, '30ep', '(1,', '[]', 'None', '1j']
  ),
  st.integers().map(str),
  st.floats().map(str),
)


@hypothesis.settings(max_examples=150)
@hypothesis.given(key=st.sampled_from(_KEYS), text=_TEXTS)
def test_a_config_value_is_taken_or_refused_in_one_line(key, text):
  _attempt(lambda: flags.parse([*_GOOD, f'--config.{key}={text}']))


_VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=6,
)


SELECT = common.base().select.to_dict()


@hypothesis.given(value=_VALUES)
def test_readers_give_what_they_promise_or_a_usage_error(value):
  def attempt(call, kind):
    found = _attempt(call)
    assert found is None or isinstance(found, kind)

  attempt(lambda: config_values.Whole()(value, 'key'), int)
  attempt(lambda: config_values.Real(-1e9, 1e9)(value, 'key'), float)
  attempt(lambda: config_values.Steps()(value, 'key').steps(7), int)
  size = config_values.ImageSize(config_values.Whole(1))
  attempt(lambda: size(value, 'key'), int | tuple)
  select = SELECT | {'num_layers': value}
  attempt(lambda: settings.read(settings.Select, select).budget, dict)


_FIELDS = st.fixed_dictionaries(
  {},
  optional=dict.fromkeys(
    (
      'criterion',
      'target',
      'sign',
      'num_samples',
      'base_entropy',
      'order',
      'removed',
      'rounds',
      'set_scores',
    ),
    _VALUES,
  ),
)


@hypothesis.given(fields=_FIELDS, removed=_VALUES)
def test_a_selection_is_read_or_refused(fields, removed):
  _attempt(lambda: Selection.from_json(fields))
  _attempt(lambda: modes.check_layers(removed, 3))


_NAMES = st.sampled_from(['vit_nano_patch2_8', 'vit_mini_patch7_28'])


@hypothesis.given(
  name=_NAMES,
  num_classes=st.integers(-2, 1 << 40),
  size=st.integers(-9, 300) | st.lists(st.integers(-3, 60), max_size=3),
  layers=st.lists(st.integers(-4, 14), max_size=4),
)
def test_a_module_has_the_sizes_asked_for_or_is_refused(
  name, num_classes, size, layers
):
  spec = get_variant(name)
  full = ('full',) * spec.depth
  module = _attempt(
    lambda: make_module(
      name,
      num_classes=num_classes,
      image_size=size,
      attention_modes=modes.modes_without(layers, full),
    )
  )
  if module is None:
    return
  height, width = module.image_size
  assert height % module.patch_size == width % module.patch_size == 0
  assert min(height, width) > 0
  assert module.num_classes == num_classes >= 0
  assert modes.removed_layers(module.attention_modes) == tuple(sorted(layers))


@hypothesis.given(
  size=st.tuples(st.integers(1, 512), st.integers(1, 512)),
  ratio=st.floats(0.01, 1.0),
)
def test_preprocessing_survives_json(size, ratio):
  value = Preprocessing(size, crop_ratio=ratio)
  assert Preprocessing.from_json(value.to_json()) == value
