"""Data sets, image transforms and batches; no TensorFlow, no models.

- `sources/`: open data sets
- `transforms`: decode, resize and normalise images
- `augment`: random changes to images, and the recipes for classification
- `randaugment`: RandAugment and random erasing
- `masks`: read class indices, cut windows out of images with masks
- `segment_augment`: the recipe for images with masks
- `readers`: read the images of a chunk with keyed randomness
- `chunks`: join chunks to batches
- `pipeline`: run all of this in the background
- `check`: read a data set once and report what is in it
"""
