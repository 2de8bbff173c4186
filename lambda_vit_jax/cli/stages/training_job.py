"""The stages that train: `pretrain`, and `dilute` over the chosen layers."""

import dataclasses
import functools

from lambda_vit_jax.checkpoints import load, orbax_store
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.cli import config_values, task, workdir
from lambda_vit_jax.cli.stages import evaluate_masks, linearize, select
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.models import surgery
from lambda_vit_jax.models.build import drop_path_rates
from lambda_vit_jax.models.edits import dequantize
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training import dilution, loop, optim, resume, tracing
from lambda_vit_jax.training.step import Dilution, LossSettings


def _training_job(
  run: Run,
  stage: str,
  model: Model,
  phases: tuple[loop.Phase, ...],
  plan: Dilution,
  teacher: Model | None,
) -> loop.Job:
  """A job from the config section that is named like the stage."""
  settings = run.config[stage]
  total = phases[-1].until
  peak = config_values.peak_learning_rate(settings, run.batch_size, stage)
  warmup = config_values.duration(
    settings['warmup_steps'], run.steps_per_epoch, f'{stage}.warmup_steps'
  )
  schedule = optim.learning_rate_schedule(
    peak,
    # Nothing is trained in no steps, whatever the warm-up.
    total or warmup + 1,
    warmup,
    settings['final_learning_rate'],
    settings['schedule'],
    config_values.number(settings['poly_power'], f'{stage}.poly_power'),
  )
  optim.check_frozen(settings['frozen'], model.params, stage)
  if settings['distill'] == 'none':
    teacher = None
  elif teacher is None:
    raise UsageError(
      f'config.{stage}.distill={settings["distill"]!r}: this stage has no '
      'teacher; only `dilute` has one, the dense model'
    )
  shape = get_variant(model.variant).drop_path_shape
  rates = drop_path_rates(settings['drop_path_rate'], model.depth, shape)
  return loop.Job(
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
    seed=config_values.integer(run.config['seed'], 'seed'),
    steps_per_epoch=run.steps_per_epoch,
    make_batches=functools.partial(run.train_batches, model.preprocessing),
    teacher=(teacher.module, teacher.params) if teacher else None,
    batch_size=run.batch_size,
    description=describe(model),
    log_every=config_values.integer(run.config['log_every'], 'log_every', 1),
    checkpoint_every=config_values.integer(
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
      return config_values.integer(run.config[key], key)
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
    return evaluate_masks.holdout_scores(
      module, params, batches, run.mesh, dilution_factor
    )
  scores = accuracy.evaluate_params(
    module, params, batches, run.mesh, dilution_factor
  )
  return {'loss': scores['loss'], 'accuracy': scores['top1']}


def _fit(run: Run, job: loop.Job, model: Model) -> None:
  checkpointer = orbax_store.Checkpointer(
    run.path('checkpoints') / job.stage,
    keep=config_values.integer(
      run.config['keep_checkpoints'], 'keep_checkpoints', 1
    ),
    keep_best=job.eval_every > 0,
  )
  loop.fit(
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
      image_size=config_values.image_size(settings['image_size']),
    )
    # Training changes numbers by less than 8 bits can tell apart.
    model = dequantize(model)
    # Merging is of the pruned model, and by this config.
    model = model.replace(module=model.module.clone(merge=()))
    model = task.with_outputs(run.config, model, run.dataset)
  ratio = config_values.crop_ratio(settings)
  if ratio is None:
    return model
  return model.replace(
    preprocessing=dataclasses.replace(model.preprocessing, crop_ratio=ratio)
  )


def pretrain_steps(run: Run) -> int:
  """Steps of the stage `pretrain`."""
  return config_values.duration(
    run.config['pretrain']['steps'], run.steps_per_epoch, 'pretrain.steps'
  )


def pretrain(run: Run) -> None:
  """Trains the dense model, or takes the `init` weights as they are."""
  steps = pretrain_steps(run)
  model = run.with_options(starting_model(run))
  # Only to refuse what cannot work before hours of training.
  run.merge_schedule(model.module, None)
  phases = (loop.Phase(model.module, until=steps),)
  job = _training_job(run, 'pretrain', model, phases, Dilution(), None)
  _fit(run, job, model)


def dilution_steps(run: Run) -> tuple[int, int]:
  """Steps while λ falls, and steps without the chosen layers."""
  settings = run.config['dilute']
  diluting, settling = (
    config_values.duration(settings[key], run.steps_per_epoch, f'dilute.{key}')
    for key in ('dilution_steps', 'settle_steps')
  )
  return diluting, settling


def dilute(run: Run) -> None:
  """λ from 1 to 0 over the chosen layers, then training without them.

  With `dilute.start=linear` by way of the maps that `linearize` fitted: λ
  leads to them in the first half of the steps, and away in the second.
  """
  warm = config_values.is_warm(run.config)
  dense = run.load('pretrain')
  layers = select.removed_layers(run, dense.depth)
  compensation = bool(run.config['dilute']['compensation'])
  diluting, settling = dilution_steps(run)
  modes = dense.attention_modes
  pruned = surgery.modes_without(
    layers, modes, dilution.final_mode(compensation)
  )
  module = dense.module.clone(
    compensation=compensation, merge=run.merge_schedule(dense.module, pruned)
  )
  model = dense.replace(module=module)
  if warm:
    fitted = linearize.load_linear(run)
    plan = Dilution(layers, diluting, halfway=diluting // 2)
    phases = linearize.warm_phases(
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
      params=linearize.with_maps(dense.params, fitted.params, layers),
    )
  else:
    plan = Dilution(layers, diluting)
    phases = (
      loop.Phase(
        module.clone(attention_modes=dilution.diluted_modes(layers, modes)),
        until=diluting,
      ),
      loop.Phase(
        module.clone(attention_modes=pruned),
        until=diluting + settling,
        removed=layers,
      ),
    )
  job = _training_job(run, 'dilute', model, phases, plan, dense)
  _fit(run, job, model)
