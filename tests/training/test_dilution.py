"""The dilution schedule: λ by step and by block."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambda_vit_jax.training import dilution


@given(st.integers(1, 100_000), st.integers(0, 1000))
def test_schedule_hits_one_and_zero(steps, start):
  schedule = dilution.dilution_schedule(steps, start)
  assert schedule(0) == schedule(start) == 1.0
  assert schedule(start + steps) == schedule(start + steps + 1) == 0.0
  assert 0.0 < schedule(start + steps - 1) <= 1.0


def test_schedule_is_linear():
  values = [float(dilution.dilution_schedule(4)(s)) for s in range(6)]
  assert values == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


@pytest.mark.parametrize('step', range(1, 7))
def test_the_factor_of_a_plan_has_all_digits_of_float32(step):
  # Sevenths have no short binary form: bfloat16 would be off by 1e-3.
  plan = dilution.Dilution((1,), steps=7)
  found = plan.factor(np.int32(step))
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, (7 - step) / 7, rtol=1e-6)
  factors = plan.block_factors(np.int32(step), ('full', 'diluted', 'full'))
  np.testing.assert_array_equal(factors, np.float32([1, found, 1]))


@pytest.mark.parametrize(
  'step, factor', [(0, 1), (1, 3 / 4), (4, 1), (5, 5 / 6), (9, 1 / 6), (10, 0)]
)
def test_a_warm_start_dilutes_twice(step, factor):
  plan = dilution.Dilution((1,), steps=10, halfway=4)
  np.testing.assert_allclose(plan.factor(np.int32(step)), factor, rtol=1e-6)


def test_schedule_of_no_steps_is_zero_at_once():
  assert dilution.dilution_schedule(0)(0) == 0.0


@pytest.mark.parametrize('step', range(12))
def test_jitted_schedule_is_zero_from_the_step_of_the_switch_on(step):
  # The loop switches to the pruned program by comparing whole steps.
  schedule = jax.jit(dilution.dilution_schedule(7, 2))
  assert (schedule(step) == 0.0) == (step >= 2 + 7)


def test_factor_vector_touches_the_chosen_layers_only():
  vector = dilution.factor_vector(0.25, (1, 3), 5)
  np.testing.assert_array_equal(vector, np.float32([1, 0.25, 1, 0.25, 1]))


def test_diluted_modes_skip_blocks_without_attention():
  modes = ('full', 'absent', 'full')
  assert dilution.diluted_modes((0, 1), modes) == ('diluted', 'absent', 'full')


@pytest.mark.parametrize(
  'compensation, mode', [(True, 'identity'), (False, 'absent')]
)
def test_final_mode(compensation, mode):
  assert dilution.final_mode(compensation) == mode


def test_parameters_are_blended_where_there_is_a_blend_alone():
  params = {'w': np.float32(2.0)}
  plan = dilution.Dilution((0, 1), steps=4)
  assert plan.blended(params, np.int32(1)) is params
  scaled = plan.within(lambda params, factors: params['w'] * factors)
  found = scaled.blended(params, np.int32(1))
  np.testing.assert_array_equal(found, np.float32([1.5, 1.5]))


def test_schedule_over_an_array_of_steps_begins_at_exactly_one():
  # As a vector, XLA multiplies by 1/41, and 41 · (1/41) is below 1.
  values = np.asarray(dilution.dilution_schedule(41)(np.arange(60)))
  assert values[0] == 1.0
  assert np.all(values[41:] == 0.0)
