"""The stages of `lambda-vit`, one file each, and their registry."""
