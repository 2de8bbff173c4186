"""The stages of `lambda-vit`, one file each; `report` is in `cli/report/build`.

- `registry`: the stages in order, with their functions
- `pretrain`, `analyze`, `select`, `dilute`: stages that make a model by training
- `linearize`, `compress`: the same without training
- `baseline`: the dense model trained for as many steps
- `export`, `evaluate`, `benchmark`: stages that write and measure it
- `training_job`: what `pretrain` and `dilute` share
- `held_out`: held-out images for analyze, select, linearize and compress
- `finished`: load the pruned model of a workdir
- `journal`: seconds, machine and versions of each stage
- `evaluate_masks`: evaluation of segmentation models
"""
