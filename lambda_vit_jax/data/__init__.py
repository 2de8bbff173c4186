"""Data sets, image transforms and batches; no TensorFlow, no models.

- `sources/`: open data sets
- `decode`: turn stored bytes into grey or RGB images
- `transforms`: resize, crop and warp images as a model expects them
- `augment`: random changes to images, and the recipes for classification
- `randaugment`: RandAugment and random erasing
- `masks`: read class indices, cut windows out of images with masks
- `segment_augment`: the recipe for images with masks
- `readers`: read the images of a chunk with keyed randomness
- `chunks`: join chunks to batches
- `pipeline`: run all of this in the background
- `inputs`: a model's input from files, arrays and folders
- `first_look`: say before a run what becomes of images and masks
- `check`: read a data set once and report what is in it
"""
