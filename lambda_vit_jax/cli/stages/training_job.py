"""Run the training job of a stage with the values of its config section."""

import dataclasses
import functools
from collections.abc import Callable

from lambda_vit_jax.checkpoints import orbax_store
from lambda_vit_jax.checkpoints.description import describe
from lambda_vit_jax.cli import workdir
from lambda_vit_jax.cli.settings import Training
from lambda_vit_jax.cli.stages import evaluate_masks
from lambda_vit_jax.cli.workdir import Run
from lambda_vit_jax.core.preprocessing import Preprocessing
from lambda_vit_jax.core.typing import Array, Params
from lambda_vit_jax.evaluation import accuracy
from lambda_vit_jax.models.build import drop_path_rates
from lambda_vit_jax.models.model import Model
from lambda_vit_jax.models.variants import get_variant
from lambda_vit_jax.models.vit import ViT
from lambda_vit_jax.training import loop, optim, persistence, tracing
from lambda_vit_jax.training.dilution import Dilution
from lambda_vit_jax.training.job import Job, Phase
from lambda_vit_jax.training.step import LossSettings


def train(
  run: Run,
  stage: str,
  model: Model,
  phases: tuple[Phase, ...],
  plan: Dilution,
  teacher: Model | None = None,
) -> None:
  """Trains `model` as the config section of the stage asks for."""
  job = _job(run, stage, model, phases, plan)
  if teacher is not None and run.settings.training(stage).distill != 'none':
    job = dataclasses.replace(job, teacher=(teacher.module, teacher.params))
  checkpointer = orbax_store.Checkpointer(
    run.path('checkpoints') / stage,
    keep=run.settings.keep_checkpoints,
    keep_best=job.eval_every > 0,
  )
  loop.fit(
    job, lambda: model.params, checkpointer, run.mesh, run.metrics, run.reporter
  )
  checkpointer.close()


def _job(
  run: Run, stage: str, model: Model, phases: tuple[Phase, ...], plan: Dilution
) -> Job:
  settings = run.settings.training(stage)
  schedule = _schedule(run, settings, phases[-1].until)
  optim.check_frozen(settings.frozen, stage, model.params)
  shape = get_variant(model.variant).drop_path_shape
  rates = drop_path_rates(settings.drop_path_rate, model.depth, shape)
  eval_every = run.settings.eval_every
  if eval_every is None:
    eval_every = run.settings.checkpoint_every
  return Job(
    stage=stage,
    phases=tuple(
      dataclasses.replace(
        phase, module=phase.module.clone(drop_path_rates=rates)
      )
      for phase in phases
    ),
    optimizer=optim.make_optimizer(
      dataclasses.asdict(settings), schedule, model.depth
    ),
    learning_rate=schedule,
    loss=LossSettings(
      label_smoothing=settings.label_smoothing,
      mixup_alpha=settings.mixup,
      cutmix_alpha=settings.cutmix,
      mix_size=settings.mix_size,
      distill=settings.distill,
      distill_weight=settings.distill_weight,
      temperature=settings.distill_temperature,
      ema_decay=settings.ema,
      # At λ = 0: an average over networks with attention would lag.
      ema_start=plan.steps,
    ),
    dilution=plan,
    seed=run.settings.seed,
    steps_per_epoch=run.steps_per_epoch,
    make_batches=functools.partial(run.train_batches, model.preprocessing),
    teacher=None,
    batch_size=run.batch_size,
    description=describe(model),
    log_every=run.settings.log_every,
    checkpoint_every=run.settings.checkpoint_every,
    evaluate=functools.partial(_evaluate_holdout, run, model.preprocessing),
    eval_every=eval_every if len(run.holdout_indices()) else 0,
    # Not looked for where the workdir has its own: it may be gone by then.
    start=None
    if workdir.finished_step(run.workdir, stage) is not None
    else persistence.find(run.settings.resume_from, stage),
    window=tracing.window(run.settings.profile, run.path('profile')),
  )


def _schedule(
  run: Run, settings: Training, total: int
) -> Callable[[Array | int], Array]:
  warmup = settings.warmup_steps.steps(run.steps_per_epoch)
  return optim.learning_rate_schedule(
    settings.peak_learning_rate(run.batch_size),
    # Without steps nothing is trained, whatever the warm-up.
    total or warmup + 1,
    warmup,
    settings.final_learning_rate,
    settings.schedule,
    settings.poly_power,
  )


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
