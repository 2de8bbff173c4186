"""Package data: the dense model that the quickstart uses."""
