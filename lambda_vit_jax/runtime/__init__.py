"""The machine: compilation, devices, processes, signals, progress.

- `startup`: compilation cache and memory, set up before JAX starts.
- `compilation`: `jax.jit` with the XLA options that are fastest here.
- `matmul`: matrix products, split where a CPU is faster with it.
- `sharding`: the device mesh, and how arrays are sharded over it.
- `processes`: jobs of several processes.
- `roll_call`: which processes of a job have not come yet.
- `supervise`: the work in a child process, so that a crash is reported.
- `interrupts`: SIGTERM and Ctrl-C, noted and never lost.
- `signals`: SIGTERM and Ctrl-C while training: save first.
- `resident`: memory that a piece of work adds to the process.
- `progress`: progress bars and messages.
"""
