"""What all of the package uses: errors, types, files and tables.

- `errors`: the errors a user can meet, one line each
- `arguments`: misspelt keywords and wrong types in calls of public functions
- `typing`: arrays, parameter trees, batches, attention modes
- `preprocessing`: the resize, crop and normalisation that a model expects
- `images`: bring arrays of other libraries into a model's form
- `files`: JSON files, and paths, local or remote
- `schema`: what a JSON value must be, as data
- `text`: text of unknown origin on one line of a terminal
- `growing_file`: files that grow, local or remote
- `digests`: checksums of JSON objects, files, arrays and trees
- `tables`: small tables for prompts, terminals and notebooks
- `processor`: its name and instruction sets
- `figures`: figures that notebooks show as pictures
"""
