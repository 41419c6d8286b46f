"""The studies: one module a scientific question, over the machinery in `experiments.common`."""
