"""Train a network while some of its attention layers are diluted.

In reading order:

- `dilution`: the dilution schedule, λ(step) from 1 to 0, and λ per block
- `blend`: the same for all other parameters, towards a closed-form stand-in
- `losses`: cross-entropy, distillation and accuracy
- `mixing`: mixup and cutmix, inside the training step
- `optim`: AdamW, its parameter masks and learning-rate schedules
- `step`: one training step
- `job`: what one training stage does, as data
- `loop`: run a job: phases, logging, evaluation, checkpoints, interruption
- `in_memory`: run a job on images in memory, without checkpoints
- `persistence`: save and restore the training state
- `metrics`: `metrics.jsonl`
- `trackers`: TensorBoard and Weights & Biases
- `step_memory`: what a step needs in memory
- `tracing`: a profile of a few steps
"""
