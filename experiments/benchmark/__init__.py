"""How long does a sample of online learning take, here and in what a user would write instead?

`python -m experiments.benchmark` (or `make bench`) runs all sides in turn, each in a process of its own, on the same
images, networks and numbers (float32), and prints microseconds per sample and run: one sample of one run, forward,
backward and update; first of dense networks, then of convolutional ones. `benchmark.csv` has every measurement,
`benchmark.png` the cost of dense ones against runs, depth, width and samples. It takes some six minutes on two cores, and
half an hour with --full. It also writes `ratios.json` beside this file, which `--check` (or `make bench-check`) guards: it
fails where ojax has become slower compared with what a user would write instead.
"""
