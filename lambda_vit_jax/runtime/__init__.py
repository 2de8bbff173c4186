"""The machine: compiling, mesh, processes, signals and progress."""
