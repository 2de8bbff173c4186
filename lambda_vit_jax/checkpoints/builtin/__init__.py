"""Package data: the dense model that the quickstart starts from."""
