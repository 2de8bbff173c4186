"""The results of a run, as a page and as tables on the terminal.

- `build`: the page from the files of a workdir, and what the terminal shows
- `results`: read those files, leaving out damaged ones
- `done`: what was done: data, command, time, seed and versions
- `lead`: accuracy, speed and size in words
- `tables`: the results table
- `network`: the strip of blocks
- `selection`: the scores of `selection.json`
- `compression`: the path of `compression.json`
- `changes`: test images and classes that changed
- `speed_table`: the table of `benchmark.json`
- `runtime_table`: its table of other runtimes
- `layers`: entropy, cosine and spectrum of `analysis.json`
- `training`: the curves of `metrics.jsonl`
- `plots`: the figures
- `drawing`: what they share, as SVG
- `html`: pieces of the page
- `style`: its colours, style sheet and script
"""
