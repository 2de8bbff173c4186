"""Who may import whom: floors, checked on the syntax tree."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'lambda_vit_jax'

# Lowest first; a file imports from floors below its own, or from its own.
FLOORS = (
  {'errors', 'preprocessing', 'typing', 'usage', 'version'},
  {
    'bootstrap',
    'compilation',
    'complexity',
    'confusion',
    'dilution',
    'display',
    'entropy',
    'interrupt',
    'linear',
    'linear_folds',
    'losses',
    'merge_plan',
    'merging',
    'metrics',
    'plots',
    'position',
    'processes',
    'progress',
    'products',
    'quantization',
    'quiet_read',
    'report_page',
    'resolve',
    'sharding',
    'supervise',
    'startup',
    'surgery',
    'tracing',
    'tensorboard',
    'trackers',
    'twofloat',
  },
  {
    'adapt',
    'affinity',
    'budget',
    'checkpoint',
    'claim',
    'convert',
    'criteria',
    'data',
    'description',
    'digests',
    'fourier',
    'hub',
    'images',
    'infer',
    'linear_fitter',
    'recentring',
    'refitting',
    'twins',
    'linearizer',
    'models',
    'optim',
    'plain_loop',
    'profile',
    'programs',
    'selection',
    'selection_checks',
    'selection_record',
    'spans',
    'timm_config',
    'trial_linear',
    'wavefront',
    'weights',
  },
  {
    'export_formats',
    'exporter',
    'foreign',
    'load',
    'onnx_graph',
    'onnx_decoders',
    'onnx_layers',
    'onnx_merging',
    'onnx_vit',
    'job',
    'persistence',
    'resume',
    'task',
    'train_step',
    'validate',
    'windows',
    'workdir',
  },
  {
    'benchmark',
    'benchmark_table',
    'commands',
    'evaluate',
    'probe',
    'probe_search',
    'report',
    'train',
  },
  {
    'benchmark_stage',
    'linear_stage',
    'outcome',
    'probe_stage',
    'segment_stage',
    'selection_stage',
    'stages',
    'training_stage',
  },
  {'__init__', '__main__', 'main'},
)

# Each outside package, and the only modules that may import it.
ONLY_IN = {
  'flax': {'models'},
  # The pipeline tells grain, which reads absl flags, that there are none.
  'absl': {'main', 'data'},
  'ml_collections': {'main', 'configs'},
  'tensorflow': set(),
  'torch': {'weights'},
  'huggingface_hub': {'hub'},
  'timm': set(),
  'matplotlib': {'plots', 'profile', 'selection_record', 'fourier'},
}


def _modules():
  for path in sorted(PACKAGE.rglob('*.py')):
    yield path, path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def _floor(name: str) -> int:
  for index, names in enumerate(FLOORS):
    if name in names:
      return index
  pytest.fail(f'{name} stands on no floor; add it to FLOORS')


def _imports(path: pathlib.Path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _package_imports(path: pathlib.Path) -> set[str]:
  files = {p.relative_to(PACKAGE).parts[0] for p in PACKAGE.rglob('*.py')}
  names = {file.removesuffix('.py') for file in files}
  found = set()
  for name in _imports(path):
    parts = name.split('.')
    if parts[0] == 'lambda_vit_jax' and len(parts) > 1 and parts[1] in names:
      found.add(parts[1])
  return found


@pytest.mark.parametrize(
  'path, own', list(_modules()), ids=lambda value: str(value)[-30:]
)
def test_imports_only_from_floors_below(path, own):
  if own == 'assets':
    assert not _package_imports(path)
    return
  for name in _package_imports(path) - {own, 'version'}:
    assert _floor(name) <= _floor(own), f'{path}: {own} imports {name}'


def test_data_and_models_do_not_know_each_other():
  for path, own in _modules():
    found = _package_imports(path)
    assert not (own == 'data' and 'models' in found), path
    assert not (own == 'models' and found & {'data', 'checkpoint'}), path


@pytest.mark.parametrize('package, allowed', ONLY_IN.items())
def test_outside_packages_stay_in_their_room(package, allowed):
  for path, own in _modules():
    for name in _imports(path):
      if name and name.split('.')[0] == package:
        assert own in allowed, f'{path} imports {name}'


def test_configs_import_only_ml_collections_and_common():
  for path in (PACKAGE.parent / 'configs').glob('*.py'):
    for name in _imports(path):
      root = name.split('.')[0]
      assert root in {'ml_collections', 'typing', 'lambda_vit_jax'}, path
      if root == 'lambda_vit_jax':
        assert name.startswith('lambda_vit_jax.configs'), path
