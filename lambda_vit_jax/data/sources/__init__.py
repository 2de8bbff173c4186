"""Data sets on disk and in TFDS, one file per kind of source.

In reading order: `dataset` has the types and the split into training and
held-out images; `registry` opens a source by name; `digits`, `image_folder`,
`idx_folder` and `tfds` have one class per image; `digit_scenes`, `mask_folder`
and `tfds_masks` one class per pixel.
"""
