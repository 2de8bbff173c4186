"""λ from a network to its closed-form stand-in: `lv.dilute`."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.checkpoints import description, orbax_store
from lambda_vit_jax.core.errors import DataError, ModelError, UsageError
from lambda_vit_jax.models.adapt import backbone
from lambda_vit_jax.models.build import apply_module
from lambda_vit_jax.models.modes import block_name
from lambda_vit_jax.runtime import sharding
from lambda_vit_jax.runtime.progress import Reporter
from lambda_vit_jax.training import in_memory, loop
from lambda_vit_jax.training.dilution import factor_vector
from lambda_vit_jax.training.metrics import MetricsWriter
from lambda_vit_jax.training.step import init_state
from lambda_vit_jax.training_free import dilute as diluting
from lambda_vit_jax.training_free.stand_in import plan_towards
from tests.support.search_models import (
  make_images,
  make_model,
  mesh_of,
)
from tests.support.training_jobs import shared_programs
from tests.support.trees import assert_same

IMAGES = make_images()
LABELS = np.arange(len(IMAGES)) % 10
BATCHES = [{'image': IMAGES, 'label': LABELS}]
STEPS = {'steps': 4, 'settle_steps': 2, 'batch_size': 16}
# A ridge that is given spares the choice.
FIT = {'ridge': 0.01}


@pytest.fixture(scope='module')
def dense(tiny_variant):
  return make_model(tiny_variant)


WAYS = {
  'identity': lambda m: lv.prune(m, (1,)),
  'absent': lambda m: lv.prune(m, (1,), 'absent'),
  'maps': lambda m: lv.linearize(m, [IMAGES], (0, 2), **FIT),
  'neurons': lambda m: lv.narrow(m, [IMAGES], [40, 96, 0], **FIT),
  'blocks': lambda m: lv.drop_blocks(m, (1,)),
  'refit': lambda m: lv.refit(
    lv.narrow(lv.prune(m, (1,), 'absent'), [IMAGES], 0.5, dense=m, **FIT),
    m,
    [IMAGES],
    **FIT,
  ),
  'all': lambda m: lv.narrow(
    lv.linearize(lv.drop_blocks(m, (1,)), [IMAGES], (0,), dense=m, **FIT),
    [IMAGES],
    [40, 0],
    dense=m,
    **FIT,
  ),
  'norms': lambda m: lv.recentre(lv.drop_blocks(m, (2,)), m, [IMAGES]),
}


def with_maps(dense):
  """The second call: from maps on to nothing."""
  inputs = ('token', 'mean', 'positions', 'mixing')
  return lv.linearize(dense, [IMAGES], (0, 2), inputs=inputs, **FIT)


# Each compiles programs of its own; this one has every kind of change.
FAST = ('all',)


@pytest.fixture(
  scope='module',
  params=[
    way if way in FAST else pytest.param(way, marks=pytest.mark.slow)
    for way in WAYS
  ],
)
def plan(request, dense):
  stand_in = WAYS[request.param](dense)
  return stand_in, plan_towards(dense, stand_in)


def logits_at(plan, factor):
  """The network of the plan with λ = `factor` in all parts."""
  depth = plan.during.depth
  factors = factor_vector(factor, range(depth), depth)
  blended = plan.blend(plan.params, factors)
  return np.asarray(
    apply_module(plan.during, blended, IMAGES, dilution_factor=factors)[0]
  )


def test_it_begins_as_the_network_and_ends_as_the_stand_in(dense, plan):
  stand_in, plan = plan
  # At λ = 1 some weights are a sum of two, rounded once.
  np.testing.assert_allclose(logits_at(plan, 1.0), dense(IMAGES), atol=2e-4)
  np.testing.assert_allclose(logits_at(plan, 0.0), stand_in(IMAGES), atol=1e-4)
  between = logits_at(plan, 0.5)
  assert abs(between - logits_at(plan, 1.0)).max() > 1e-3
  assert abs(between - logits_at(plan, 0.0)).max() > 1e-3


def test_the_switch_changes_no_logit_and_leaves_the_arrays_of_the_rest(
  dense, plan
):
  stand_in, plan = plan
  job = diluting.dilute_job(
    plan,
    dense,
    {'image': IMAGES},
    diluting.DiluteOptions(4, 2, batch_size=16),
    _mesh(1),
  )
  state = init_state(plan.params, job.optimizer, with_ema=True)
  pruned = job.phases[1].prune(state)
  before = logits_at(plan, 0.0)
  after = apply_module(plan.after, pruned.params, IMAGES)[0]
  np.testing.assert_allclose(after, before, atol=1e-5)
  losses = [
    -jax.nn.log_softmax(rows)[np.arange(len(LABELS)), LABELS].mean()
    for rows in (before, after)
  ]
  np.testing.assert_allclose(losses[1], losses[0], atol=1e-6)
  shapes = jax.tree.map(np.shape, pruned.params)
  for tree in (pruned.ema, *_moments(pruned)):
    assert jax.tree.map(np.shape, tree) == shapes
  found = dense.replace(module=plan.after, params=pruned.params)
  if plan.dropped:
    found = lv.drop_blocks(found, plan.dropped)
  assert jax.tree.structure(found.params) == jax.tree.structure(stand_in.params)
  jax.tree.map(np.testing.assert_array_equal, found.params, stand_in.params)


def test_maps_fade_to_nothing(dense):
  start = with_maps(dense)
  stand_in = lv.prune(start, (0, 2), 'absent')
  plan = plan_towards(start, stand_in)
  # Nothing but the maps differs: both ends are exact but for the order of sums.
  np.testing.assert_allclose(logits_at(plan, 1.0), start(IMAGES), atol=1e-5)
  np.testing.assert_allclose(logits_at(plan, 0.0), stand_in(IMAGES), atol=1e-5)
  # What a map writes is linear in λ, and so is the stream after the first.
  factors = jnp.float32([0.25, 0.25, 0.25])
  faded = plan.blend(plan.params, factors)
  streams = [
    apply_module(plan.during, p, IMAGES, capture=True, dilution_factor=f)[1]
    for p, f in ((faded, factors), (plan.params, jnp.ones(3)))
  ]
  x = streams[0]['block00']['input']
  part, whole = (s['block00']['after_attention'] - x for s in streams)
  np.testing.assert_allclose(part, 0.25 * whole, atol=1e-5)
  options = diluting.DiluteOptions(4, 2, batch_size=16)
  job = diluting.dilute_job(plan, dense, {'image': IMAGES}, options, _mesh(1))
  state = init_state(plan.params, job.optimizer, with_ema=True)
  pruned = job.phases[1].prune(state)
  jax.tree.map(np.testing.assert_array_equal, pruned.params, stand_in.params)


def _mesh(devices):
  grid = mesh_of(devices).devices.reshape(-1, 1)
  return jax.sharding.Mesh(grid, sharding.BATCH_AXES)


def _moments(state):
  (adam,) = (
    part
    for part in jax.tree.leaves(
      state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
    )
    if isinstance(part, optax.ScaleByAdamState)
  )
  return adam.mu, adam.nu


def test_no_path_is_dropped_on_the_way(dense):
  module = dense.module.clone(drop_path_rates=(0.0, 0.1, 0.2))
  plan = plan_towards(dense.replace(module=module), lv.drop_blocks(dense, (1,)))
  for phase in (plan.during, plan.after):
    assert phase.drop_path_rates == (0.0,) * 3


MERGED = [0, 2, 1]


def test_tokens_merge_from_the_first_step_on(dense):
  """A number of tokens has no λ: neither end has those that are merged."""
  stand_in = lv.merge_tokens(lv.drop_blocks(dense, (0,)), [2, 0])
  plan = plan_towards(dense, stand_in)
  # In the blocks of the network; block 0 is dropped.
  assert plan.during.merge == plan.after.merge == (0, 2, 0)
  merged = lv.merge_tokens(dense, [0, 2, 0])
  assert abs(merged(IMAGES) - dense(IMAGES)).max() > 1e-3
  # Tolerances as above.
  np.testing.assert_allclose(logits_at(plan, 1.0), merged(IMAGES), atol=2e-4)
  np.testing.assert_allclose(logits_at(plan, 0.0), stand_in(IMAGES), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('way', ['neurons', None])
def test_a_network_that_merges_tokens_is_trained(dense, way):
  stand_in = lv.merge_tokens(WAYS[way](dense) if way else dense, MERGED)
  found = lv.dilute(dense, BATCHES, stand_in, learning_rate=1e-3, **STEPS)
  assert found.module == stand_in.module
  assert abs(found(IMAGES) - stand_in(IMAGES)).max() > 1e-3


def test_streams_of_merged_tokens_cannot_be_followed(dense):
  stand_in = lv.merge_tokens(dense, MERGED)
  with pytest.raises(ModelError, match='distill=streams compares tokens'):
    lv.dilute(dense, BATCHES, stand_in, distill='streams', **STEPS)


def test_moments_of_neurons_that_stay_stay_with_them(dense):
  stand_in = WAYS['neurons'](dense)
  plan = plan_towards(dense, stand_in)
  options = diluting.DiluteOptions(4, 2, batch_size=16)
  job = diluting.dilute_job(plan, dense, {'image': IMAGES}, options, _mesh(1))
  state = init_state(plan.params, job.optimizer, with_ema=False)
  # Moments equal to the parameters end up equal to them.
  state = dataclasses.replace(
    state,
    opt_state=jax.tree.map(
      lambda part: (
        part._replace(mu=plan.params, nu=plan.params)
        if isinstance(part, optax.ScaleByAdamState)
        else part
      ),
      state.opt_state,
      is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState),
    ),
  )
  pruned = job.phases[1].prune(state)
  for moments in _moments(pruned):
    jax.tree.map(np.testing.assert_array_equal, moments, pruned.params)


@pytest.mark.slow
@pytest.mark.parametrize('way', ['identity', 'maps', 'refit'])
def test_training_goes_on_across_the_switch(dense, way):
  """Without a rate, the loss is that of λ alone, and then that of the rest."""
  stand_in = WAYS[way](dense)
  plan = plan_towards(dense, stand_in)
  arrays = {'image': np.tile(IMAGES[:16], (4, 1, 1, 1))}
  options = diluting.DiluteOptions(
    2, 2, learning_rate=0.0, weight_decay=0.0, batch_size=64, distill_weight=1.0
  )
  job = diluting.dilute_job(plan, dense, arrays, options, _mesh(1))
  found = in_memory.run(job, plan.params, _mesh(1), 'dilute')
  trained = dense.replace(module=plan.after, params=found)
  np.testing.assert_allclose(trained(IMAGES), stand_in(IMAGES), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('way', ['absent', 'neurons', 'blocks'])
def test_the_result_is_a_trained_stand_in(dense, way):
  stand_in = WAYS[way](dense)
  seen = []
  found = lv.dilute(
    dense,
    BATCHES,
    stand_in,
    steps=60,
    settle_steps=20,
    batch_size=25,
    learning_rate=1e-3,
    distill_weight=1.0,
    on_progress=lambda *x: seen.append(x),
  )
  assert found.module == stand_in.module
  assert found.kept_blocks == stand_in.kept_blocks
  assert seen[-1] == (80, 80)

  def distance(model):
    guess, truth = (jax.nn.log_softmax(each(IMAGES)) for each in (model, dense))
    return float((jnp.exp(truth) * (truth - guess)).sum(-1).mean())

  assert distance(found) < 0.7 * distance(stand_in)
  # And it is a model like any other.
  assert lv.fold(found).num_parameters == stand_in.num_parameters


@pytest.mark.slow
def test_layers_alone_become_the_identity(dense):
  found = lv.dilute(dense, [IMAGES], (1,), **STEPS)
  assert found.attention_modes == ('full', 'identity', 'full')
  same = lv.dilute(dense, [IMAGES], lv.prune(dense, (1,)), **STEPS)
  jax.tree.map(np.testing.assert_array_equal, found.params, same.params)


def test_networks_that_cannot_be_diluted_are_refused(dense):
  mixed = lv.prune(lv.linearize(dense, [IMAGES], (0,), **FIT), (1,))
  trained = WAYS['neurons'](dense)
  trained.params['block00']['mlp']['fc1']['bias'][0] += 1.0
  for stand_in, message in (
    (dense, 'nothing would change'),
    (mixed, 'block 0 would become a map and of block 1 the identity'),
    (trained, "block 0 has a neuron that is none of the first network's"),
  ):
    with pytest.raises(ModelError, match=message):
      lv.dilute(dense, BATCHES, stand_in, **STEPS)
  with pytest.raises(ModelError, match='changed model first'):
    lv.dilute(lv.prune(dense, (1,)), BATCHES, dense, **STEPS)
  maps = lv.linearize(dense, [IMAGES], (0,), **FIT)
  with pytest.raises(ModelError, match='changed model first'):
    lv.dilute(maps, BATCHES, lv.prune(dense, (0,)), **STEPS)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'steps': 0}, 'at least one step'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'when': {1: (0.5, 0.5)}}, 'begins and ends to fall'),
    ({'when': {1: 0.5}}, 'begins and ends to fall'),
    ({'when': {1: ('0', '1')}}, 'begins and ends to fall'),
    ({'when': {3: (0, 1)}}, 'when names block 3; blocks are 0 to 2'),
    ({'when': {1: (0, 1), 2: (0, 1)}}, r'block 2, which is the same.* \[1\]'),
    ({'distill': 'loud'}, "distill='loud'"),
    ({'learning_rate': -1.0}, 'learning_rate=-1: must be from 0 to 10'),
    ({'weight_decay': -0.1}, 'weight_decay=-0.1'),
    ({'distill_weight': 5.0}, 'distill_weight=5: must be from 0 to 1'),
    ({'label_smoothing': 2.0}, 'label_smoothing=2: must be from 0 to 1'),
  ],
)
def test_impossible_options_are_refused(dense, change, message):
  with pytest.raises(UsageError, match=message):
    lv.dilute(dense, BATCHES, (1,), **(STEPS | change))


@pytest.mark.slow
def test_labels_are_looked_at_where_there_are_classes(dense):
  """A backbone is trained by its features, whatever the batches carry."""
  images = BATCHES[0]['image']
  labels = np.full(len(images), 99)
  headless = backbone(dense)
  one = {'steps': 1, 'settle_steps': 0, 'batch_size': 25}
  labelled, bare = (
    lv.dilute(headless, [batch], (1,), **one)
    for batch in ((images, labels), images)
  )
  for mine, other in zip(
    jax.tree.leaves(labelled.params), jax.tree.leaves(bare.params), strict=True
  ):
    np.testing.assert_array_equal(mine, other)


def test_labels_that_no_class_has_are_refused(dense):
  """Their one-hot rows would be zeros, and the loss that of other images."""
  images = BATCHES[0]['image']
  labels = np.full(len(images), dense.num_classes)
  with pytest.raises(DataError, match='labels are from'):
    lv.dilute(dense, [(images, labels)], (1,), **STEPS)


@pytest.mark.parametrize(
  'distill, change, message',
  [
    ('soft', {'num_classes': 3}, 'num_classes=3'),
    ('streams', {'depth': 2}, 'depth=2'),
    ('feature', {'in_chans': 3}, 'in_chans=3'),
    ('streams', {'merge': (0, 2, 0)}, r'merge=\(0, 2, 0\)'),
  ],
)
def test_a_teacher_of_another_form_is_refused(dense, distill, change, message):
  teacher = dense.replace(module=dense.module.clone(**change))
  with pytest.raises(ModelError, match=f'the teacher has {message}'):
    lv.dilute(dense, BATCHES, (1,), teacher=teacher, distill=distill, **STEPS)


def test_blocks_may_change_one_after_another(dense):
  """Halfway, one block is the stand-in's and the other still the network's."""
  stand_in = lv.narrow_mlps(dense, {0: range(30), 2: range(20)})
  plan = plan_towards(dense, stand_in)
  schedule = plan.dilution(8, {0: (0.0, 0.5), 2: (0.5, 1.0)})
  found = [np.asarray(schedule.factors(jnp.int32(n))) for n in (0, 2, 4, 6, 8)]
  np.testing.assert_allclose(
    found,
    [[1, 1, 1], [0.5, 0.75, 1], [0, 0.5, 1], [0, 0.25, 0.5], [0, 0, 0]],
  )
  halfway = plan.blend(plan.params, schedule.factors(jnp.int32(4)))
  logits, _ = apply_module(
    plan.during, halfway, IMAGES, dilution_factor=jnp.ones(3)
  )
  half = lv.narrow_mlps(dense, {0: range(30)})
  np.testing.assert_allclose(logits, half(IMAGES), atol=1e-4)
  assert schedule.factor(jnp.int32(6)) == 0.5
  # All together by default.
  plain = plan.dilution(8).factors(jnp.int32(2))
  np.testing.assert_allclose(plain, [0.75] * 3)


@pytest.mark.parametrize(
  'way, changing',
  [
    ('identity', {1}),
    ('absent', {1}),
    ('blocks', {1}),
    ('neurons', {0, 2}),
    pytest.param('norms', {2}, marks=pytest.mark.slow),
    pytest.param('maps', {0, 2}, marks=pytest.mark.slow),
  ],
)
def test_a_plan_knows_the_blocks_that_change(dense, way, changing):
  """A span for any other block would be passed over."""
  assert plan_towards(dense, WAYS[way](dense)).changing == changing


def test_the_result_of_a_search_is_no_network(dense):
  fit = lv.linearize(dense, [IMAGES], (0,), **FIT)
  found = types.SimpleNamespace(model=fit)
  with pytest.raises(UsageError, match=r'give found\.model'):
    lv.dilute(dense, BATCHES, found, **STEPS)


def test_labels_alone_need_labels(dense):
  with pytest.raises(UsageError, match='needs labels'):
    lv.dilute(dense, [IMAGES], (1,), distill='none', **STEPS)


def test_what_has_nothing_to_follow_is_refused(dense, tiny_variant):
  """Labels of a single class, and a teacher without a share, say nothing."""
  one = make_model(dataclasses.replace(tiny_variant, num_classes=1))
  labels = {'image': IMAGES, 'label': np.zeros(len(IMAGES), int)}
  for model, batch in ((dense, IMAGES), (one, labels)):
    with pytest.raises(UsageError, match='distill_weight=0 needs labels'):
      lv.dilute(model, [batch], (1,), distill_weight=0.0, **STEPS)


@pytest.mark.slow
def test_a_head_of_one_class_follows_the_features(tiny_variant):
  one = make_model(dataclasses.replace(tiny_variant, num_classes=1))
  labels = {'image': IMAGES, 'label': np.zeros(len(IMAGES), int)}
  stand_in = lv.prune(one, (1,), 'absent')
  found = lv.dilute(one, [labels], stand_in, learning_rate=1e-3, **STEPS)
  moved = found.params['block00']['mlp']['fc1']['kernel']
  assert (
    abs(moved - stand_in.params['block00']['mlp']['fc1']['kernel']).max() > 1e-4
  )


def test_neurons_are_found_in_gated_mlps(tiny_variant):
  for kind in ('swiglu', 'swiglu_packed'):
    dense = make_model(dataclasses.replace(tiny_variant, mlp_kind=kind))
    kept = {1: (3, 50, 95)}
    plan = plan_towards(dense, lv.narrow_mlps(dense, kept))
    assert list(plan.narrowed) == [1]
    assert list(plan.narrowed[1]) == [3, 50, 95]
    assert block_name(1) not in plan.blend.differences


def fit(job, plan, workdir):
  """The job with checkpoints, as the stages run it."""
  checkpointer = orbax_store.Checkpointer(workdir / 'checkpoints', keep=9)
  try:
    return loop.fit(
      job,
      lambda: plan.params,
      checkpointer,
      _mesh(1),
      MetricsWriter(workdir),
      Reporter(quiet=True),
    )
  finally:
    checkpointer.close()


@pytest.fixture(scope='module')
def job_with_checkpoints(dense):
  stand_in = WAYS['refit'](dense)
  plan = plan_towards(dense, stand_in)
  options = diluting.DiluteOptions(3, 2, batch_size=16, learning_rate=1e-3)
  arrays = {'image': IMAGES, 'label': LABELS}
  job = diluting.dilute_job(plan, dense, arrays, options, _mesh(1))
  job = dataclasses.replace(
    job,
    description=description.describe(lv.create_model('vit_nano_patch2_8')),
    log_every=1,
    checkpoint_every=1,
  )
  with shared_programs():
    yield job, plan


@pytest.mark.slow
@pytest.mark.parametrize('stop_after', [2, 3, 4])
def test_checkpoints_continue_with_the_same_bits(
  job_with_checkpoints, tmp_path, stop_after
):
  """Before the switch, at it, and after it."""
  job, plan = job_with_checkpoints
  whole = fit(job, plan, tmp_path / 'whole')

  class PowerCutError(Exception):
    pass

  def until_cut(step):
    batches = job.make_batches(step)
    for count, batch in enumerate(batches):
      if step + count == stop_after:
        raise PowerCutError
      yield batch

  cut = dataclasses.replace(job, make_batches=until_cut)
  with pytest.raises(PowerCutError):
    fit(cut, plan, tmp_path / 'cut')
  assert_same(fit(job, plan, tmp_path / 'cut'), whole)
  # Without checkpoints it is the same training.
  assert_same(in_memory.run(job, plan.params, _mesh(1), 'dilute'), whole)


@pytest.mark.slow
def test_an_evaluation_sees_the_network_at_its_factor(dense, tmp_path):
  plan = plan_towards(dense, WAYS['refit'](dense))
  options = diluting.DiluteOptions(4, 1, batch_size=16, learning_rate=0.0)
  arrays = {'image': IMAGES, 'label': LABELS}
  job = diluting.dilute_job(plan, dense, arrays, options, _mesh(1))
  seen = []

  def evaluate(module, params, factors):
    logits, _ = apply_module(module, params, IMAGES, dilution_factor=factors)
    seen.append(np.asarray(logits))
    return {'loss': 0.0, 'accuracy': 0.0}

  job = dataclasses.replace(
    job,
    description=description.describe(lv.create_model('vit_nano_patch2_8')),
    evaluate=evaluate,
    eval_every=1,
  )
  fit(job, plan, tmp_path)
  for logits, factor in zip(seen, [0.75, 0.5, 0.25, 0.0, 0.0], strict=True):
    # Another program of the same network.
    np.testing.assert_allclose(logits, logits_at(plan, factor), atol=1e-4)
