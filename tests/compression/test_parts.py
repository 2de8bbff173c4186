"""What can go, and what a network without it is and costs."""

import dataclasses
import itertools

import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.analysis.images import read_images
from lambda_vit_jax.compression import parts
from lambda_vit_jax.compression.parts import Part
from lambda_vit_jax.compression.scores import Scorer
from lambda_vit_jax.compression.streams import Streams
from lambda_vit_jax.core.errors import UsageError
from tests.support.search_models import make_images, make_model

EVERYTHING = tuple(parts.GROUPS)

# Of the tiny network: tokens, width, hidden width, heads do not matter.
TOKENS, WIDTH, HIDDEN = 17, 24, 96
EIGHTH = HIDDEN // 8


@pytest.fixture(scope='module')
def model(tiny_variant):
  return make_model(tiny_variant, depth=3)


def attention(tokens, computed):
  """Keys and values of all tokens, queries and outputs of those computed."""
  projections = 2 * tokens * WIDTH**2 + 2 * computed * WIDTH**2
  return projections + 2 * computed * tokens * WIDTH


def mlp(computed, hidden=HIDDEN):
  return 2 * computed * WIDTH * hidden


# Operations that are executed; of the last block with attention, the queries and
# the MLP are those of the class token alone.
SAVED = {
  Part(0, 'attention'): attention(TOKENS, TOKENS),
  Part(1, 'neurons'): mlp(TOKENS, EIGHTH),
  Part(2, 'neurons'): mlp(1, EIGHTH),
  Part(1, 'mlp'): mlp(TOKENS),
  Part(0, 'block'): attention(TOKENS, TOKENS) + mlp(TOKENS),
  # Block 1 is then the last one that mixes tokens.
  Part(2, 'attention'): attention(TOKENS, 1)
  + (attention(TOKENS, TOKENS) - attention(TOKENS, 1))
  + (mlp(TOKENS) - mlp(1)),
}


def test_a_head_of_one_class_is_not_compared(tiny_variant):
  """Its softmax is 1 whatever the logit, so that nothing would cost anything."""
  variant = dataclasses.replace(tiny_variant, num_classes=1)
  dense = make_model(variant, depth=2)
  images = read_images([make_images(32)], dense)
  whole, changed = (
    Streams(model, images, size=32, memory_gib=1.0)
    for model in (dense, lv.prune(dense, (0,), 'absent'))
  )
  scorer = Scorer.make(changed, whole, 'output', 'logits')
  features = Scorer.make(changed, whole, 'output', 'features')
  assert scorer(changed.model, 0) == features(changed.model, 0) > 0


@pytest.mark.parametrize('part', SAVED, ids=str)
def test_a_part_saves_what_a_hand_count_says(model, part):
  before, after = (
    m.macs(executed=True) for m in (model, parts.without(model, part))
  )
  assert before - after == SAVED[part]


@pytest.mark.parametrize(
  ('inputs', 'cost'),
  [
    (('token',), TOKENS * WIDTH**2),
    # The mean's product is one a image.
    (('token', 'mean'), TOKENS * WIDTH**2 + WIDTH**2),
  ],
)
def test_a_map_takes_the_place_of_attention_first(model, inputs, cost):
  found = parts.without(model, Part(0, 'attention'), inputs)
  assert found.attention_modes == ('linear', 'full', 'full')
  assert found.module.inputs_of(0) == inputs
  saved = model.macs(executed=True) - found.macs(executed=True)
  assert saved == attention(TOKENS, TOKENS) - cost
  left = parts.parts_left(found, ('attention',))
  assert left == [Part(0, 'map'), Part(1, 'attention'), Part(2, 'attention')]


def test_neurons_go_by_eighths_of_the_whole_width(model):
  widths = [HIDDEN]
  part = Part(1, 'neurons')
  while part in parts.parts_left(model, ('neurons',)):
    assert parts.narrower(model, part) == widths[-1] - EIGHTH
    model = parts.without(model, part)
    widths.append(model.mlp_dims[1])
  # The last eighth goes with the MLP or with the block.
  assert widths == [HIDDEN - k * EIGHTH for k in range(8)]
  assert model.mlp_dims == (HIDDEN, EIGHTH, HIDDEN)


def test_one_attention_layer_always_stays(model):
  for gone in itertools.permutations(range(3), 2):
    left = model
    for block in gone:
      left = parts.without(left, Part(block, 'attention'))
    kept = ({0, 1, 2} - set(gone)).pop()
    found = parts.parts_left(left, EVERYTHING)
    assert Part(kept, 'attention') not in found
    assert Part(kept, 'block') not in found
    assert all(Part(block, 'block') in found for block in gone)


def test_blocks_keep_the_numbers_of_the_variant(model):
  shorter = parts.without(model, Part(0, 'block'))
  assert shorter.block_origins == (1, 2)
  found = parts.parts_left(shorter, EVERYTHING)
  assert {part.block for part in found} == {1, 2}
  narrower = parts.without(shorter, Part(2, 'neurons'))
  assert narrower.mlp_dims == (HIDDEN, HIDDEN - EIGHTH)
  assert shorter.block_origins == narrower.block_origins


def test_a_block_that_doubles_the_stream_stays(model):
  doubled = lv.prune(model, (1,))
  found = parts.parts_left(doubled, EVERYTHING)
  assert [part.kind for part in found if part.block == 1] == ['neurons', 'mlp']


@pytest.mark.parametrize(
  ('part', 'mender'),
  [
    (Part(1, 'attention'), 1),
    (Part(1, 'map'), 1),
    (Part(1, 'mlp'), 2),
    (Part(1, 'block'), 0),
    (Part(0, 'block'), 1),
    (Part(2, 'mlp'), None),
  ],
  ids=str,
)
def test_the_nearest_mlp_makes_up_for_a_part(model, part, mender):
  assert parts.mender(model, part) == mender


def test_names_are_checked_and_ordered():
  assert parts.check_parts(['blocks', 'attention', 'blocks']) == (
    'attention',
    'blocks',
  )
  with pytest.raises(UsageError, match=r"'neuron' is not known.*neurons"):
    parts.check_parts(['neuron'])
  with pytest.raises(UsageError, match='is empty'):
    parts.check_parts([])
