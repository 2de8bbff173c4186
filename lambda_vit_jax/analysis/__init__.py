"""What the layers of a network carry: moments, entropy, spectrum."""
