"""The command line: the only room that knows a config or a workdir."""
