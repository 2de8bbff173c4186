"""The results of a run, as a page and as tables on the terminal.

- `build`: the page and the results table, from the files of a workdir
- `results`: read those files, leaving out damaged ones
- `speed_table`: the table of `benchmark.json`
- `compression`: the path of `compression.json`
- `runtime_table`: its table of other runtimes
- `plots`: figures as SVG
- `html`: pieces of the page
"""
