"""How long does a sample of online learning take, here and in what a user would write instead?

`python -m experiments.benchmark` (or `make bench`) runs all sides alternately, each in its own process, on equal images,
networks and numbers (float32). It prints microseconds per sample and run, for forward pass, backward pass and update; first
for dense networks, then for convolutional ones. `benchmark.csv` has every measurement, `benchmark.png` the cost of dense
networks against runs, depth, width and samples. It takes some six minutes on two cores, and half an hour with --full. It
also writes `ratios.json` next to this file. `--check` (or `make bench-check`) fails if ojax has become slower relative to
the other sides.
"""
