"""A misspelt keyword of a public function is one line with the right name."""

import inspect

import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.keywords import check_keywords

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
  @check_keywords
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
