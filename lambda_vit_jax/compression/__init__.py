"""One budget over every part of a network: what goes, and what makes up for it.

- `greedy`: the search, and the public function `compress`
- `options`: its options, as one object
- `parts`: what can go, and the network without it
- `search`: the network as it is, and what is known of its parts
- `streams`: its activations between blocks, kept for the trials
- `repairs`: the closed form that makes up for each part
- `scores`: how far the output is from the dense one
- `costs`: operations, or measured time
- `steps`: the path as it grows, and an earlier one made again
- `nose_path`: NOSE as a path
- `schema`: what `compression.json` holds
- `record`: `Compression`, the result
"""
