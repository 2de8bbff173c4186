"""Every public name explains itself: what goes in, what comes out."""

import ast
import dataclasses
import inspect
import pathlib

import pytest

import lambda_vit_jax as lv

NAMES = [name for name in lv.__all__ if name != '__version__']
CLASSES = [name for name in NAMES if inspect.isclass(getattr(lv, name))]
FUNCTIONS = [name for name in NAMES if name not in CLASSES]


def _documented(obj) -> str:
  text = inspect.getdoc(obj)
  assert text, f'{obj} has no docstring'
  return text


def _parameters(function) -> list[str]:
  return [
    name
    for name, parameter in inspect.signature(function).parameters.items()
    if name not in ('self', 'cls')
    and parameter.kind is not inspect.Parameter.VAR_POSITIONAL
  ]


@pytest.mark.parametrize('name', FUNCTIONS)
def test_a_public_function_explains_arguments_result_and_errors(name):
  function = getattr(lv, name)
  text = _documented(function)
  parameters = _parameters(function)
  if len(parameters) > 1:
    assert 'Args:' in text
    arguments = text.partition('Args:')[2]
    for parameter in parameters:
      assert f'{parameter}:' in arguments, f'{name}: {parameter}'
    if inspect.signature(function).return_annotation is not None:
      assert 'Returns:' in text
  for parameter in inspect.signature(function).parameters.values():
    assert parameter.annotation is not inspect.Parameter.empty, parameter


@pytest.mark.parametrize('name', CLASSES)
def test_a_public_class_explains_fields_and_methods(name):
  kind = getattr(lv, name)
  text = _documented(kind)
  if dataclasses.is_dataclass(kind):
    for field in dataclasses.fields(kind):
      assert f'{field.name}:' in text, f'{name}.{field.name}'
  for attribute, value in vars(kind).items():
    if attribute.startswith('_'):
      continue
    if isinstance(value, property):
      value = value.fget
    if isinstance(value, classmethod):
      value = value.__func__
    if inspect.isfunction(value):
      _documented(value)


@pytest.mark.parametrize(
  'name',
  [
    'entropy_profile',
    'export',
    'linearize',
    'load_pretrained',
    'load_selection',
    'nose',
    'prune',
    'create_model',
  ],
)
def test_errors_are_named(name):
  assert 'Raises:' in _documented(getattr(lv, name))


@pytest.mark.parametrize('name', ['nose', 'entropy_profile', 'spectrum'])
def test_shapes_of_images_are_said(name):
  assert 'NHWC' in _documented(getattr(lv, name))


def test_type_checkers_see_the_same_names():
  """`__init__.pyi` imports each public name from where it is looked up."""
  stub = pathlib.Path(lv.__file__).with_suffix('.pyi').read_text()
  seen = {}
  for node in ast.parse(stub).body:
    if isinstance(node, ast.ImportFrom):
      for alias in node.names:
        assert alias.asname == alias.name
        seen[alias.name] = node.module.removeprefix('lambda_vit_jax.')
  assert seen == lv._PUBLIC
