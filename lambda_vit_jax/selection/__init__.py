"""Choose the attention layers to remove: NOSE and other criteria.

- `nose`: the greedy search, NOSE; the functions `nose` and `select`
- `budget`: number of layers to remove, from a count, a ratio or a speedup
- `options`: options of a search, and the progress that it reports
- `record`: `Selection`, the result of a search
- `stored`: selections that ship with the package, and saved ones
- `stored_files/`: the former
- `trial_readout`: the last blocks of a trial, and the moments of its output
- `trials`: evaluate all trials of a round in one pass over the blocks
- `bootstrap`: confidence intervals of scores
- `affine_score`: score layers by how well an affine map explains them
- `criteria`: transfer entropy and the other scores
- `linear_trials`: score layers by replacing them with affine maps
- `output_error`: score layers by the error at the output with maps in place
- `exhaustive`: score every set of layers
- `removal_curve`: accuracy over the number of layers left out
- `checks`: check the options, images and resumed state of a search
- `short_dilution`: rate sets of layers by short training runs
- `probe`: choose among the criteria's sets by short dilutions
"""
