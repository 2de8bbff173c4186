"""The Flax room: the only folder that imports `flax`."""
