"""How many layers a budget removes."""

import pytest

from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.models.edits import prune
from lambda_vit_jax.selection.budget import resolve_num_layers
from tests.support.search_models import make_model


@pytest.fixture(scope='module')
def model(tiny_variant):
  return make_model(tiny_variant, depth=12)


@pytest.mark.parametrize(
  'budget, number',
  [
    ({}, 5),
    ({'removal_ratio': 0.42}, 5),
    ({'removal_ratio': 0.0}, 0),
    ({'num_layers': 11}, 11),
    ({'num_layers': 0}, 0),
    ({'target_speedup': 1.0}, 0),
  ],
  ids=str,
)
def test_budgets(model, budget, number):
  assert resolve_num_layers(model, **budget) == number


def test_a_ratio_counts_the_layers_that_are_gone(model):
  pruned = prune(model, (3, 4))
  assert resolve_num_layers(pruned, removal_ratio=0.42) == 3


@pytest.mark.parametrize('number', [1, 4, 11])
def test_the_least_number_that_reaches_a_speedup(model, number):
  ratio = model.macs() / prune(model, range(number)).macs()
  assert resolve_num_layers(model, target_speedup=ratio) == number
  assert resolve_num_layers(model, target_speedup=ratio - 1e-6) == number


@pytest.mark.parametrize(
  'budget, words',
  [
    ({'num_layers': 12}, 'at most 11'),
    ({'num_layers': 13}, '13 layers to remove'),
    ({'num_layers': 2.5}, 'whole number'),
    ({'num_layers': True}, 'whole number'),
    ({'num_layers': -1}, 'whole number'),
    ({'num_layers': 'five'}, 'whole number'),
    ({'num_layers': float('nan')}, 'whole number'),
    ({'num_layers': float('inf')}, 'whole number'),
    ({'removal_ratio': 0.99}, 'at most 11'),
    ({'removal_ratio': 1.5}, 'share'),
    ({'removal_ratio': '40%'}, 'share'),
    ({'target_speedup': 9.0}, 'out of reach'),
    ({'target_speedup': 0.5}, 'at least 1'),
    ({'target_speedup': float('nan')}, 'at least 1'),
    ({'num_layers': 2, 'removal_ratio': 0.5}, 'more than one budget'),
  ],
  ids=str,
)
def test_impossible_budgets(model, budget, words):
  with pytest.raises(UsageError, match=words):
    resolve_num_layers(model, **budget)


@pytest.mark.parametrize(
  'budget', [{}, {'num_layers': 0}, {'target_speedup': 2.0}], ids=str
)
def test_nothing_is_left_to_remove(model, budget):
  """The message does not offer "at most -1", or a speedup with "one left"."""
  module = model.module.clone(attention_modes=('absent',) * 12)
  pruned = model.replace(module=module)
  with pytest.raises(UsageError, match='no block has attention'):
    resolve_num_layers(pruned, **budget)
