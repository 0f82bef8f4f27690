"""`launch PRESET … --sweep …`: a grid of runs, each a process of its own, and one table."""
