"""A slip in a call of a public function is one line that says what to do."""

import inspect
import math
import typing

import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.core.arguments import check_arguments
from lambda_vit_jax.core.errors import LambdaVitError, UsageError

FUNCTIONS = sorted(
  name for name in lv.__all__ if inspect.isfunction(getattr(lv, name))
)


def refused(function, *args, **kwargs):
  """The message, which is both of ours and a TypeError as Python's own."""
  if function is lv.create_model:
    args = ('vit_nano_patch2_8',)
  with pytest.raises(UsageError) as caught:
    function(*args, **kwargs)
  assert isinstance(caught.value, TypeError)
  text = str(caught.value)
  assert '\n' not in text
  assert len(text) <= 300
  return text


@pytest.mark.parametrize('name', FUNCTIONS)
def test_every_public_function_names_the_keyword_that_was_meant(name):
  function = getattr(lv, name)
  *_, last = (
    parameter.name
    for parameter in inspect.signature(function).parameters.values()
    if parameter.kind is not parameter.VAR_KEYWORD
  )
  misspelt = last + 'x'
  text = refused(function, **{misspelt: 1})
  assert text.startswith(f'{name}()')
  assert f'{misspelt!r}; did you mean {last}?' in text


@pytest.mark.parametrize(
  'name, keyword, meant',
  [
    ('nose', 'n_layers', 'num_layers'),
    ('nose', 'layer', 'layers'),
    ('nose', 'removal', 'removal_ratio'),
    ('create_model', 'n_classes', 'num_classes'),
    ('create_model', 'img_size', 'image_size'),
    # A field of the module.
    ('create_model', 'patchsize', 'patch_size'),
    ('entropy_profile', 'memory', 'memory_gib'),
  ],
)
def test_names_of_other_libraries_lead_to_ours(name, keyword, meant):
  assert f'did you mean {meant}?' in refused(getattr(lv, name), **{keyword: 1})


def test_a_name_like_no_other_lists_what_there_is():
  assert 'known are model, layers, mode' in refused(lv.prune, None, zz=1)
  assert refused(lv.create_model, zz=1).endswith(', …')


def test_timm_s_pretrained():
  text = refused(lv.create_model, pretrained=True)
  assert 'load_pretrained' in text
  assert lv.create_model('vit_nano_patch2_8', pretrained=False).depth > 0


def test_a_checked_function_is_the_function():
  @check_arguments
  def join(first, *rest, last='!'):
    """Words."""
    return ' '.join((first, *rest, last))

  assert join('a', 'b', last='c') == 'a b c'
  assert join(first='a') == 'a !'
  assert join.__doc__ == 'Words.'
  assert list(inspect.signature(join).parameters) == ['first', 'rest', 'last']
  # Arguments that are missing are Python's to report.
  with pytest.raises(TypeError, match='missing 1 required positional'):
    join()


VARIANT = 'vit_nano_patch2_8'


@pytest.fixture(scope='module')
def model():
  return lv.create_model(VARIANT)


def calls():
  """`(function, argument)` of every argument of every public function."""
  for name in FUNCTIONS:
    for argument, each in inspect.signature(
      getattr(lv, name)
    ).parameters.items():
      if each.kind is not each.VAR_KEYWORD:
        yield name, argument


@pytest.mark.parametrize('value', [object(), math.nan], ids=['object', 'nan'])
@pytest.mark.parametrize('name, argument', list(calls()))
def test_what_no_argument_takes_is_one_line(
  name, argument, value, model, tmp_path
):
  """Passes through each function's own checks where its annotation is wide."""
  images = np.zeros((4, 8, 8, 1), np.float32)
  usual = {
    'model': model,
    'dense': model,
    'batches': images,
    'images': images,
    'layers': [1],
    'blocks': [1],
    'num_blocks': 1,
    'merge': 1,
    'variant': VARIANT,
    'directory': tmp_path / 'export',
    'folder': tmp_path,
    'where': 'builtin:vit_mini_patch2_8_digits',
    'decoder': None,
    'repository': 'owner/name',
    'name': 'vit_small_patch14_dinov2',
    'num_classes': 3,
    'towards': [1],
    'steps': 2,
    'widths': 0.5,
    'kept': {0: [0]},
  }
  function = getattr(lv, name)
  needed = {
    key: usual[key]
    for key, each in inspect.signature(function).parameters.items()
    if each.default is each.empty and each.kind is not each.VAR_KEYWORD
  }
  with pytest.raises(LambdaVitError) as caught:
    function(**(needed | {argument: value}))
  text = str(caught.value)
  assert '\n' not in text
  assert len(text) <= 300


@pytest.mark.parametrize(
  'name, arguments, message',
  [
    ('nose', ('foo', None), "nose(model='foo'): must be a Model: lv.load_pre"),
    ('prune', ('foo', [1]), "prune(model='foo'): must be a Model"),
    ('export', ('foo', 'out'), "export(model='foo'): must be a Model"),
    (
      'create_model',
      (VARIANT, 'a'),
      "num_classes='a'): must be a whole number",
    ),
    ('create_model', (VARIANT, True), 'num_classes=True): must be a whole'),
    ('create_model', (VARIANT, 10**12), 'num_classes 1000000000000: must be'),
    ('create_model', (VARIANT, 10, math.nan), 'image_size=nan): must be a wh'),
    ('create_model', (VARIANT, 10, 1 << 20), 'image_size 1048576: must be at'),
    ('create_model', (VARIANT, 10, 8, (), -1), 'seed=-1): must be from 0 to'),
    ('create_model', (VARIANT, 10, 8, (), None), 'seed=None): must be a whole'),
    (
      'image_batches',
      ('x', 'foo'),
      "image_batches(model='foo'): must be a Mod",
    ),
  ],
)
def test_a_wrong_value_is_shown_with_what_must_be(name, arguments, message):
  with pytest.raises(LambdaVitError) as caught:
    getattr(lv, name)(*arguments)
  assert message in str(caught.value)


@pytest.mark.parametrize(
  'option',
  [
    {'drop_path_rate': 'a'},
    {'drop_path_rates': [0.1]},
    {'drop_path_rate': 2.0},
    {'activation': 'x'},
    {'embed_dim': 0},
    {'embed_dim': 'wide'},
    {'patch_size': 3},
    {'attention_modes': 'full'},
    {'pooling': None},
    {'pooling': 'max'},
    {'dilution_path': 'x'},
    {'attention_kernel': 'x'},
    {'mlp_ratio': -1.0},
    {'dtype': 'foo'},
    {'dtype': 'int32'},
    {'depth': 4},
  ],
  ids=str,
)
def test_options_that_no_module_has(option):
  with pytest.raises(LambdaVitError) as caught:
    lv.create_model(VARIANT, **option)
  assert '\n' not in str(caught.value)


def test_numbers_of_numpy_and_lists_of_any_kind_are_taken(model):
  sizes = np.asarray([8, 10])
  made = lv.create_model(VARIANT, np.int64(4), sizes, seed=np.uint8(1))
  assert made.module.image_size == (8, 10)
  assert made.num_classes == 4
  assert lv.create_model(VARIANT, drop_path_rates=[0.1] * 3).depth == 3
  assert lv.prune(model, np.asarray([1])).removed_layers == (1,)


def test_annotations_are_read_as_they_are_meant():
  @check_arguments
  def take(
    number: float | None = 1.0,
    word: typing.Literal['a', 'b'] = 'a',
    anything: typing.Any = None,
    *rest: int,
  ):
    return number, word, anything, rest

  # Which of the words it is, the function says; what is variable, too.
  assert take(np.float32(2), 'c', object, 'x')[1] == 'c'
  assert take(number=3)[0] == 3
  for wrong in ({'number': '1'}, {'number': True}, {'word': 1}):
    with pytest.raises(UsageError, match='must be'):
      take(**wrong)
