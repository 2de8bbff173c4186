"""The stages of a run, in order, and what makes each of them finished.

Every stage is a function of a `Run`. It reads what earlier stages left in the
workdir and writes its own result there last and atomically, so that a killed
command loses nothing and `run` starts again at the first unfinished stage.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lambda_vit_jax import (
  benchmark_stage,
  budget,
  checkpoint,
  criteria,
  digests,
  dilution,
  evaluate,
  export_formats,
  exporter,
  fourier,
  linear_stage,
  load,
  optim,
  probe_stage,
  processes,
  profile,
  programs,
  report,
  resolve,
  resume,
  segment_stage,
  selection,
  surgery,
  task,
  tracing,
  train,
  workdir,
)
from lambda_vit_jax.description import describe
from lambda_vit_jax.errors import CheckpointError, UsageError
from lambda_vit_jax.models import model as model_lib
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.preprocessing import Preprocessing
from lambda_vit_jax.train_step import Dilution, LossSettings
from lambda_vit_jax.typing import Array, Params
from lambda_vit_jax.workdir import Run


def _training_job(
  run: Run,
  stage: str,
  model: Model,
  phases: tuple[train.Phase, ...],
  plan: Dilution,
  teacher: Model | None,
) -> train.Job:
  """A job from the config section that is named like the stage."""
  settings = run.config[stage]
  total = phases[-1].until
  peak = resolve.peak_learning_rate(settings, run.batch_size, stage)
  warmup = resolve.duration(
    settings['warmup_steps'], run.steps_per_epoch, f'{stage}.warmup_steps'
  )
  schedule = optim.learning_rate_schedule(
    peak,
    # Nothing is trained in no steps, whatever the warm-up.
    total or warmup + 1,
    warmup,
    settings['final_learning_rate'],
    settings['schedule'],
    resolve.number(settings['poly_power'], f'{stage}.poly_power'),
  )
  optim.check_frozen(settings['frozen'], model.params, stage)
  if settings['distill'] == 'none':
    teacher = None
  elif teacher is None:
    raise UsageError(
      f'config.{stage}.distill={settings["distill"]!r}: this stage has no '
      'teacher; only `dilute` has one, the dense model'
    )
  shape = model_lib.get_variant(model.variant).drop_path_shape
  rates = model_lib.drop_path_rates(
    settings['drop_path_rate'], model.depth, shape
  )
  return train.Job(
    stage=stage,
    phases=tuple(
      dataclasses.replace(
        phase, module=phase.module.clone(drop_path_rates=rates)
      )
      for phase in phases
    ),
    optimizer=optim.make_optimizer(settings, schedule, model.depth),
    learning_rate=schedule,
    loss=LossSettings(
      label_smoothing=settings['label_smoothing'],
      mixup_alpha=settings['mixup'],
      cutmix_alpha=settings['cutmix'],
      distill=settings['distill'],
      distill_weight=settings['distill_weight'],
      temperature=settings['distill_temperature'],
      ema_decay=settings['ema'],
    ),
    dilution=plan,
    seed=resolve.integer(run.config['seed'], 'seed'),
    steps_per_epoch=run.steps_per_epoch,
    make_batches=functools.partial(run.train_batches, model.preprocessing),
    teacher=(teacher.module, teacher.params) if teacher else None,
    batch_size=run.batch_size,
    description=describe(model),
    log_every=resolve.integer(run.config['log_every'], 'log_every', 1),
    checkpoint_every=resolve.integer(
      run.config['checkpoint_every'], 'checkpoint_every', 1
    ),
    evaluate=functools.partial(_evaluate_holdout, run, model.preprocessing),
    eval_every=_eval_every(run),
    # Not looked at where the workdir has its own: it may be gone by then.
    start=None
    if workdir.finished_step(run.workdir, stage) is not None
    else resume.find(run.config['resume_from'], stage),
    window=tracing.window(run.config['profile'], run.path('profile')),
  )


def _eval_every(run: Run) -> int:
  """Steps between evaluations on the held-out slice; 0 for none."""
  if not len(run.holdout_indices()):
    return 0
  for key in ('eval_every', 'checkpoint_every'):
    if run.config[key] is not None:
      return resolve.integer(run.config[key], key)
  return 0


def _evaluate_holdout(
  run: Run,
  preprocessing: Preprocessing,
  module: ViT,
  params: Params,
  dilution_factor: Array | None,
) -> dict[str, float]:
  batches = run.holdout_batches(preprocessing)
  if module.segmentation is not None:
    return segment_stage.holdout_scores(
      module, params, batches, run.mesh, dilution_factor
    )
  scores = evaluate.evaluate_params(
    module, params, batches, run.mesh, dilution_factor
  )
  return {'loss': scores['loss'], 'accuracy': scores['top1']}


def _fit(run: Run, job: train.Job, model: Model) -> None:
  checkpointer = checkpoint.Checkpointer(
    run.path('checkpoints') / job.stage,
    keep=resolve.integer(run.config['keep_checkpoints'], 'keep_checkpoints', 1),
    keep_best=job.eval_every > 0,
  )
  train.fit(
    job,
    lambda: model.params,
    checkpointer,
    run.mesh,
    run.metrics,
    run.reporter,
  )
  checkpointer.close()


def starting_model(run: Run) -> Model:
  """The dense model before training: `init` weights, else a fresh one."""
  settings = run.config['model']
  where = run.config['init']
  if not where:
    model = run.fresh_model()
  else:
    model = load.load_pretrained(
      where,
      variant=settings['variant'],
      num_classes=(
        None if task.segments(run.config) else run.dataset.num_classes
      ),
      image_size=resolve.image_size(settings['image_size']),
    )
    # Training changes numbers by less than 8 bits can tell apart.
    model = model_lib.dequantize(model)
    # Merging is of the pruned model, and by this config.
    model = model.replace(module=model.module.clone(merge=()))
    model = task.with_outputs(run.config, model, run.dataset)
  ratio = resolve.crop_ratio(settings)
  if ratio is None:
    return model
  return model.replace(
    preprocessing=dataclasses.replace(model.preprocessing, crop_ratio=ratio)
  )


def _pretrain_steps(run: Run) -> int:
  return resolve.duration(
    run.config['pretrain']['steps'], run.steps_per_epoch, 'pretrain.steps'
  )


def pretrain(run: Run) -> None:
  """Trains the dense model, or takes the `init` weights as they are."""
  steps = _pretrain_steps(run)
  model = run.with_options(starting_model(run))
  # Only to refuse what cannot work before hours of training.
  run.merge_schedule(model.module, None)
  phases = (train.Phase(model.module, until=steps),)
  job = _training_job(run, 'pretrain', model, phases, Dilution(), None)
  _fit(run, job, model)


def _selection_batches(
  run: Run, model: Model, limit: int | None
) -> Iterator[dict[str, np.ndarray]]:
  """The held-out slice, as masked batches."""
  if not len(run.holdout_indices(limit)):
    raise UsageError(
      'config.data.holdout_images=0: selection and analysis read the held-out '
      'slice of the training images; keep at least 128'
    )
  batches = run.holdout_batches(model.preprocessing, limit)
  if task.segments(run.config):
    # A search looks at images; theirs are no labels of images.
    return (
      {name: batch[name] for name in ('image', 'mask')} for batch in batches
    )
  return batches


def analyze(run: Run) -> None:
  """Entropy profile and spectrum of the dense model."""
  model = task.searched(run.load('pretrain'))
  limit = resolve.optional_count(
    run.config['analyze']['num_images'], 'analyze.num_images'
  )
  # Read twice.
  batches = list(_selection_batches(run, model, limit))
  run.reporter.say(f'analyze: {len(run.holdout_indices(limit))} images')
  memory = _memory_gib(run)
  measured = {
    'profile': profile.entropy_profile(
      model, batches, memory, run.mesh
    ).to_json(),
    'spectrum': fourier.spectrum(model, batches, memory, run.mesh).to_json(),
  }
  run.write_json('analysis.json', measured)


def _memory_gib(run: Run) -> float | None:
  """Memory for activations: the config's, else what the poorest has."""
  given = run.config['select']['memory_gib']
  if given is not None or jax.process_count() == 1:
    return given
  return min(processes.gather(programs.default_gib()))


# The rounds of a search so far.
_PARTIAL = 'selection.part.json'


def select(run: Run) -> None:
  """Chooses the layers to remove; writes after every round."""
  settings = run.config['select']
  dense = run.load('pretrain')
  model = task.searched(dense)
  limit = resolve.optional_count(settings['num_images'], 'select.num_images')
  size = _budget(settings, dense)
  name = settings['criterion']
  if name == 'probe':
    # Read by every criterion that proposes a set.
    held_out = list(_selection_batches(run, model, limit))
    chosen = probe_stage.search(run, model, held_out, size, _memory_gib(run))
  elif name.partition(':')[0] in criteria.NEEDS_IMAGES:
    images = _selection_batches(run, model, limit)
    chosen = _search(run, model, images, size)
  else:
    chosen = _search(run, model, (), size)
  run.write_json('selection.json', digests.seal(chosen.to_json()))
  if run.leader:
    for partial in (_PARTIAL, probe_stage.PARTIAL):
      run.path(partial).unlink(missing_ok=True)
  run.reporter.say(f'select: attention removed from {list(chosen.removed)}')


def _budget(settings: Mapping[str, Any], dense: Model) -> dict[str, Any]:
  """The budget of `config.select`, as `selection.select` takes it."""
  key, value = resolve.budget(settings)
  if key == 'num_layers':
    return {key: int(value)}
  if key == 'target_speedup' and settings['criterion'] != 'given':
    # Of the whole network: a search does not see a decoder.
    number = budget.resolve_num_layers(dense, target_speedup=value)
    return {'num_layers': number}
  return {key: value}


def _search(
  run: Run,
  model: Model,
  batches: Iterable[dict[str, np.ndarray]],
  size: Mapping[str, Any],
) -> selection.Selection:
  """NOSE or a static criterion; goes on behind the last finished round."""
  settings = run.config['select']
  found = run.read_json(_PARTIAL)
  begun = None if found is None else selection.Selection.from_json(found)
  with run.reporter.bar('select', 100) as bar:

    def show(state: selection.Progress) -> None:
      share = state.images_done / max(state.images, 1)
      rounds = (state.round_index + share) / max(state.num_rounds, 1)
      bar.update(round(100 * rounds), f'% {state.candidates} candidates left')

    return selection.select(
      model,
      batches,
      criterion=settings['criterion'],
      target=settings['target'],
      sign=settings['sign'],
      trial=settings['trial'],
      layers=tuple(settings['layers']),
      memory_gib=_memory_gib(run),
      seed=resolve.integer(run.config['seed'], 'seed'),
      mesh=run.mesh,
      resume=begun,
      on_round=lambda found: run.write_json(_PARTIAL, found.to_json()),
      on_progress=show,
      warn=run.reporter.warn,
      **size,
    )


def removed_layers(run: Run, depth: int) -> tuple[int, ...]:
  """The layers of `selection.json`, checked.

  Raises:
    CheckpointError: no usable selection.
  """
  path = run.path('selection.json')
  found = processes.from_leader(lambda: checkpoint.read_object(path))
  if 'removed' not in found:
    raise CheckpointError(
      f'{path}: has no key `removed`; delete it to have '
      'the stage `select` run again'
    )
  digests.check_seal(
    found,
    str(path),
    f'delete its key {digests.KEY} to use it as it is now, or the file to have '
    'the stage `select` run again',
  )
  return surgery.check_layers(found['removed'], depth)


def linearize(run: Run) -> None:
  """Least-squares maps in place of the chosen attentions; no training."""
  dense = run.load('pretrain')
  limit = resolve.optional_count(
    run.config['linearize']['num_images'], 'linearize.num_images'
  )
  linear_stage.fit(
    run,
    dense,
    removed_layers(run, dense.depth),
    _selection_batches(run, dense, limit),
    _memory_gib(run),
  )


def _dilution_steps(run: Run) -> tuple[int, int]:
  settings = run.config['dilute']
  diluting, settling = (
    resolve.duration(settings[key], run.steps_per_epoch, f'dilute.{key}')
    for key in ('dilution_steps', 'settle_steps')
  )
  return diluting, settling


def dilute(run: Run) -> None:
  """λ from 1 to 0 over the chosen layers, then training without them.

  With `dilute.start=linear` by way of the maps that `linearize` fitted: λ
  leads to them in the first half of the steps, and away in the second.
  """
  warm = resolve.is_warm(run.config)
  dense = run.load('pretrain')
  layers = removed_layers(run, dense.depth)
  compensation = bool(run.config['dilute']['compensation'])
  diluting, settling = _dilution_steps(run)
  modes = dense.attention_modes
  pruned = surgery.modes_without(
    layers, modes, dilution.final_mode(compensation)
  )
  module = dense.module.clone(
    compensation=compensation, merge=run.merge_schedule(dense.module, pruned)
  )
  model = dense.replace(module=module)
  if warm:
    fitted = linear_stage.load_linear(run)
    plan = Dilution(layers, diluting, halfway=diluting // 2)
    phases = linear_stage.warm_phases(
      module,
      fitted.module,
      layers,
      halfway=diluting // 2,
      diluting=diluting,
      total=diluting + settling,
    )
    model = model.replace(
      # What a checkpoint on the way is described by.
      module=module.clone(linear_inputs=fitted.module.linear_inputs),
      params=linear_stage.with_maps(dense.params, fitted.params, layers),
    )
  else:
    plan = Dilution(layers, diluting)
    phases = (
      train.Phase(
        module.clone(attention_modes=dilution.diluted_modes(layers, modes)),
        until=diluting,
      ),
      train.Phase(
        module.clone(attention_modes=pruned),
        until=diluting + settling,
        removed=layers,
      ),
    )
  job = _training_job(run, 'dilute', model, phases, plan, dense)
  _fit(run, job, model)


def export_model(run: Run) -> None:
  """Writes `export/`, each format checked against the model."""
  if not run.leader:
    return
  settings = run.config['export']
  model = linear_stage.pruned_model(run)
  # Logits per pixel are many.
  number = 2 if task.segments(run.config) else 8
  batch = next(run.holdout_batches(model.preprocessing, number, alone=True))
  images = batch['image'][:number]
  results = exporter.export(
    model,
    run.path('export'),
    formats=tuple(settings['formats']),
    dtype=settings['dtype'],
    zero_fill=settings['zero_fill'],
    check_images=images,
    int8_arithmetic=settings['int8_arithmetic'],
  )
  for line in results.get('warnings', ()):
    run.reporter.warn(line)


def exported_predict(run: Run) -> Model | Callable[[Any], Any]:
  """The exported program: `model.stablehlo`, else the folder reloaded."""
  program = run.path('export') / 'model.stablehlo'
  if program.exists():
    load.check_exported(run.path('export'), 'model.stablehlo')
    return export_formats.read_stablehlo(program)
  return load.load_export(run.path('export'))


def evaluate_all(run: Run) -> None:
  """Accuracy of dense, pruned and exported over every test image."""
  total = len(run.dataset.test)
  results: dict[str, Mapping[str, Any]] = {}
  models = {
    'dense': run.load('pretrain'),
    'pruned': linear_stage.pruned_model(run),
  }
  with run.reporter.bar('evaluate', 3 * total) as bar:
    if task.segments(run.config):
      found = segment_stage.evaluate(
        run, models, exported_predict(run), bar.advance
      )
      run.write_json('evaluation.json', found)
      return
    for name, model in models.items():
      results[name] = evaluate.evaluate_model(
        model,
        run.eval_batches(model.preprocessing),
        run.mesh,
        bar.advance,
      )
    results['exported'] = evaluate.evaluate_program(
      exported_predict(run), run.eval_batches(model.preprocessing), bar.advance
    )
  run.write_json('evaluation.json', results)


def benchmark_all(run: Run) -> None:
  """Sizes and speed, dense against pruned against exported in one run."""
  if run.leader:
    benchmark_stage.measure(
      run,
      run.load('pretrain'),
      linear_stage.pruned_model(run),
      exported_predict(run),
    )


def write_report(run: Run) -> None:
  """One self-contained page from what is in the workdir."""
  if run.leader:
    report.write_report(run.workdir)


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage, how to see that it is finished, and whether `run` has it."""

  name: str
  run: Callable[[Run], None]
  finished: Callable[[Run], bool]
  needed: Callable[[Run], bool] = lambda run: True


def _has(name: str) -> Callable[[Run], bool]:
  return lambda run: run.path(name).exists()


def _trained(stage: str, total: Callable[[Run], int]) -> Callable[[Run], bool]:
  return lambda run: workdir.finished_step(run.workdir, stage) == total(run)


STAGES: dict[str, Stage] = {
  stage.name: stage
  for stage in (
    Stage('pretrain', pretrain, _trained('pretrain', _pretrain_steps)),
    Stage('analyze', analyze, _has('analysis.json')),
    Stage('select', select, _has('selection.json')),
    Stage(
      'linearize',
      linearize,
      _has('linear/model.json'),
      lambda run: (
        resolve.method(run.config) == 'linearize' or resolve.is_warm(run.config)
      ),
    ),
    Stage(
      'dilute',
      dilute,
      _trained('dilute', lambda run: sum(_dilution_steps(run))),
      lambda run: resolve.method(run.config) == 'dilute',
    ),
    Stage('export', export_model, _has('export/model.json')),
    Stage('evaluate', evaluate_all, _has('evaluation.json')),
    Stage('benchmark', benchmark_all, benchmark_stage.is_finished),
    # Cheap, and always of the newest results.
    Stage('report', write_report, lambda run: False),
  )
}


def needed(run: Run) -> tuple[str, ...]:
  """The stages of `run` with this config, in order."""
  return tuple(name for name, stage in STAGES.items() if stage.needed(run))


def run_stage(run: Run, name: str) -> bool:
  """Runs one stage unless it is finished; returns whether it ran.

  All processes of a job leave it together, so that none of them reads what
  the leading one has not written yet.
  """
  stage = STAGES[name]
  if processes.from_leader(lambda: stage.finished(run)):
    run.reporter.say(f'{name}: already done')
    return False
  run.reporter.say(f'{name}: starting')
  stage.run(run)
  processes.barrier()
  return True


def run_all(run: Run) -> None:
  """All stages in order, from the first unfinished one on."""
  for name in needed(run):
    run_stage(run, name)
