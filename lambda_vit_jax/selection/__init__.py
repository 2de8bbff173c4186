"""Which attention layers go: NOSE and the other criteria."""
