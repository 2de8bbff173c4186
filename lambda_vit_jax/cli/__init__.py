"""The command line: the only package that knows flags, configs, workdirs.

- `stage_table`: the stages in order, and the files that each one writes
- `help`: the texts of `--help`
- `flags`: parse a command line
- `about`: what `help`, `--version` and `completion` print
- `config_values`: readers of single values, with their ranges as data
- `setting_types`, `training_settings`, `training_free_settings`, `settings`: a
  config as typed dataclasses
- `config_check`: check settings against the model
- `training_check`: check a command against data set, weights and devices
- `result_files`: what the JSON files of a workdir hold
- `config_differences`, `workdir_config`: the values that bind a workdir
- `workdir_lock`: one job at a time in a workdir
- `workdir`: `Run`, a workdir with everything that a stage needs
- `shared_labels`: labels of which each process of a job reads a part
- `task`: data set, outputs and batches of a task
- `stages/`: one file per stage
- `runtime_comparison`: dense, pruned and exported in every runtime
- `outcome`: what a finished stage prints
- `report/`: the page and the tables of results
- `commands`: commands without a config
- `families`: families of variants, and what each was compared with
- `console`: where tables are printed
"""
