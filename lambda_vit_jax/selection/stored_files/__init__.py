"""Package data: selections of public weights, read by `stored`."""
