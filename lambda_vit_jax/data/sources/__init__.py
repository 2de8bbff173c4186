"""Data sets on disk and in TFDS, one file per kind of source.

- `dataset`: the types, and the split into training and held-out images
- `registry`: open a source by name
- `digits`, `image_folder`, `idx_folder`, `tfds`: one class per image
- `digit_scenes`, `mask_folder`: one class per pixel
"""
