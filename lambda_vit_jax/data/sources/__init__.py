"""Data sets on disk and in TFDS, one file per kind of source."""
