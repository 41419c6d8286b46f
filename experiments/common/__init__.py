"""What the experiments share: flags, the grid of runs, the work directory, statistics and figures."""
