"""The stages of `lambda-vit`, one file each.

In reading order:
  registry: the stages in order, with their functions
  pretrain, analyze, select, linearize, dilute, export, evaluate, benchmark:
    the stages; `report` is in report/build
  training_job: what `pretrain` and `dilute` share
  held_out: held-out images for analyze, select and linearize
  finished: load the pruned model
  evaluate_masks: evaluation of segmentation models
"""
