"""The stage `compress`: a smaller model of a run by a search over all parts."""

import json
import shutil

import numpy as np
import pytest

import lambda_vit_jax as lv
from lambda_vit_jax.cli.report import build
from lambda_vit_jax.cli.stages import finished, registry
from lambda_vit_jax.cli.stages.linearize import with_outputs_of
from lambda_vit_jax.core.errors import UsageError
from tests.support.search_models import make_model
from tests.support.stage_runs import open_run

OPTIONS = (
  '--config.method=compress',
  '--config.pretrain.steps=2',
  '--config.compress.target_speedup=1.4',
  '--config.compress.parts=("attention", "mlps", "tokens")',
  '--config.compress.num_images=64',
  '--config.export.formats=("safetensors",)',
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  run = open_run(tmp_path_factory.mktemp('run') / 'digits', *OPTIONS)
  for name in ('pretrain', 'compress', 'export', 'evaluate', 'benchmark'):
    registry.run_stage(run, name)
  return run


@pytest.fixture(scope='module')
def record(run):
  return json.loads(run.path('compression.json').read_text())


@pytest.mark.slow
def test_a_run_searches_instead_of_selecting_and_training(run):
  names = registry.needed(run)
  assert 'compress' in names
  assert not {'select', 'linearize', 'dilute', 'baseline'} & set(names)
  assert registry.STAGES['compress'].finished(run)


@pytest.mark.slow
def test_the_record_is_the_path_to_the_model(run, record):
  found = lv.Compression.from_json(record)
  model = finished.pruned_model(run)
  assert found.reached >= 1.4
  assert found.steps[-1].macs == model.macs(executed=True)
  assert found.steps[-1].parameters == model.num_parameters
  assert found.num_images == 64
  # Merged tokens are part of the network that the run ends in.
  assert any(step.part == 'tokens' for step in found.steps)
  assert [row.merged for row in found.left() if row.attention] == list(
    model.module.merge_counts
  )
  left = [row.block for row in found.left() if row.attention is not None]
  assert tuple(left) == model.block_origins


@pytest.mark.slow
def test_later_stages_take_the_compressed_model(run, record):
  dense = run.load('pretrain')
  model = finished.pruned_model(run)
  images = next(run.eval_batches(model.preprocessing))['image']
  exported = lv.load_pretrained(run.path('export'))
  np.testing.assert_allclose(exported(images), model(images), atol=1e-5)
  evaluation = json.loads(run.path('evaluation.json').read_text())
  assert evaluation['pruned']['top1'] == evaluation['exported']['top1']
  measured = json.loads(run.path('benchmark.json').read_text())
  assert measured['pruned']['macs_executed'] == record['steps'][-1]['macs']
  assert measured['dense']['macs_executed'] == dense.macs(executed=True)


@pytest.mark.slow
def test_the_report_shows_the_path(run):
  page = build.write_report(run.workdir).read_text()
  assert '<h2>Compression</h2>' in page
  assert 'aria-label="Error of the output' in page
  assert 'aria-label="What is left of each block' in page


@pytest.mark.slow
def test_an_interrupted_search_ends_in_the_same_model(
  run, record, tmp_path, monkeypatch
):
  class StoppedError(Exception):
    pass

  shutil.copytree(run.path('checkpoints'), tmp_path / 'other/checkpoints')
  other = open_run(tmp_path / 'other', *OPTIONS)
  write = other.write_json

  def stop_after_one_step(name, value):
    write(name, value)
    raise StoppedError

  monkeypatch.setattr(other, 'write_json', stop_after_one_step)
  with pytest.raises(StoppedError):
    registry.run_stage(other, 'compress')
  monkeypatch.undo()
  begun = json.loads(other.path('compression.json').read_text())
  assert len(begun['steps']) == 1 < len(record['steps'])
  registry.run_stage(other, 'compress')
  again = json.loads(other.path('compression.json').read_text())
  for step in (*record['steps'], *again['steps']):
    step.pop('seconds')
  assert again['steps'] == record['steps']
  images = next(run.eval_batches(run.load('pretrain').preprocessing))['image']
  found, expected = map(finished.pruned_model, (other, run))
  np.testing.assert_array_equal(found(images), expected(images))


def test_a_block_with_nothing_left_leaves_no_array(tiny_variant):
  dense = make_model(tiny_variant)
  empty = lv.narrow_mlps(lv.prune(dense, (1,), 'absent'), {1: ()})
  found = with_outputs_of(dense, empty)
  assert found.params.keys() == dense.params.keys() - {'block01'}
  assert found.module == empty.module


@pytest.mark.parametrize(
  ('change', 'says'),
  [
    ('--config.compress.target_speedup=1', 'greater than 1'),
    ('--config.compress.target_speedup=80', 'out of reach'),
    ('--config.compress.parts=("heads",)', 'not known'),
    ('--config.compress.parts=("tokens",) --config.model.merge=1', 'one of'),
    (
      '--config.method=dilute --config.dilute.towards=compressed '
      '--config.dilute.distill=streams '
      '--config.compress.parts=("attention","tokens")',
      'lets some merge',
    ),
    ('--config.compress.cost=flops', 'compress.cost'),
    ('--config.compress.num_images=3', 'at least 4'),
  ],
)
def test_impossible_values_are_refused_before_anything_runs(
  tmp_path, change, says
):
  with pytest.raises(UsageError, match=says):
    open_run(tmp_path / 'digits', '--config.method=compress', *change.split())
