"""The network that most tests of the search share."""

import pytest

from tests.support.search_models import make_model


@pytest.fixture(scope='module')
def model(tiny_variant):
  return make_model(tiny_variant, depth=4)
