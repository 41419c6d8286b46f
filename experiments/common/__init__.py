"""Code of all experiments: flags, the grid of runs, the work directory, statistics and figures."""
