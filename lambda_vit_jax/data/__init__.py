"""Data sets, image transforms and batches; no TensorFlow, no models.

In reading order: `sources/` opens data sets; `transforms` decodes, resizes and
normalises images; `augment` is the recipe for classification, with
`randaugment` and random erasing; `masks` and `segment_augment` are the same for
images with masks; `readers` reads the images of a chunk with keyed randomness;
`chunks` joins chunks to batches; `pipeline` runs all of this in the background;
`check` reads a data set once and reports what is in it.
"""
