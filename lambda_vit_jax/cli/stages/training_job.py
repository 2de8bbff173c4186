"""The stages that train: `pretrain`, and `dilute` over the chosen layers."""

import dataclasses
import functools

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.cli import config_values, workdir
from lambda_vit_jax.cli.stages import evaluate_masks
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.errors import UsageError
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.models.build import drop_path_rates
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training import loop, optim, persistence, tracing
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.step import LossSettings


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
    else persistence.find(run.config['resume_from'], stage),
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
