"""From a configuration to a tidy table: the grid of runs, trained and scored."""

import hashlib
import itertools

import jax
import numpy as np
import pandas as pd

import ojax
from experiments.common.config import Config
from experiments.common.progress import Progress
from ojax import modules, online
from ojax.datasets import Dataset

Grid = dict[str, list[float]]


def run(config: Config, dataset: Dataset, schedule: online.Schedule, progress: Progress) -> pd.DataFrame:
    """Trains every run of the configuration's grid.

    Returns:
      A tidy table, a row a run and evaluation. `train_accuracy` and `train_loss` are means over the samples since the
      last evaluation, each scored before its update; `weight_norm_1` is the first layer's Frobenius norm, and so on;
      `diverged_at` is empty for a run whose numbers stayed finite.
    """
    tables = []
    for depth in config.depth:  # Depth changes the shapes, so it compiles anew; all else is one program's `runs` axis.
        hyper, seeds = grid(config)
        scores = online.train(learner(config, depth, dataset), hyper, seeds, dataset, schedule)
        progress.start(f"depth {depth}", len(seeds))
        for seen, score in scores:
            progress.advance(seen, score)
            tables.append(_rows(config, depth, hyper, seeds, seen, score))
    table = pd.concat(tables, ignore_index=True)
    keys = ["depth", *hyper, "seed", "examples_seen"]
    return table.sort_values(keys, kind="stable", ignore_index=True)


def grid(config: Config) -> tuple[Grid, list[int]]:
    """Every setting with every seed: the hyper-parameters and the seeds along one `runs` axis."""
    axes = {"init_gain": config.init_gain, "learning_rate": config.learning_rate, "oja_rate": config.oja_rate}
    runs = list(itertools.product(*axes.values(), config.run_seeds()))
    *columns, seeds = zip(*runs, strict=True)
    return {name: list(column) for name, column in zip(axes, columns, strict=True)}, list(seeds)


def learner(config: Config, depth: int, dataset: Dataset) -> online.Learner:
    """The paper's network of that depth, and its rule: gradient descent with Oja's."""
    widths = [dataset.train_images.shape[1], *config.hidden_widths(depth), len(dataset.class_names)]
    init, apply = modules.as_functions(lambda rngs: ojax.MLP(widths, rngs=rngs))
    return online.Learner(
        init=lambda key, hyper: jax.tree.map(lambda kernel: hyper["init_gain"] * kernel, init(key)),
        apply=apply,
        optimizer=lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"]),
    )


def fingerprint(dataset: Dataset) -> dict[str, object]:
    """Sizes and a hash of the data, by which a repeat knows that it has the same."""
    digest = hashlib.sha256()
    for array in dataset[1:5]:
        digest.update(np.ascontiguousarray(array).data)
    return {
        "name": dataset.name,
        "train": len(dataset.train_labels),
        "test": len(dataset.test_labels),
        "pixels": dataset.train_images.shape[1],
        "classes": len(dataset.class_names),
        "sha256": digest.hexdigest(),
    }


def _rows(config: Config, depth: int, hyper: Grid, seeds: list[int], seen: int, score: online.Score) -> pd.DataFrame:
    norms = {f"weight_norm_{layer}": column for layer, column in enumerate(score.weight_norms.T, start=1)}
    diverged = score.diverged_at >= 0
    return pd.DataFrame(
        {
            "depth": depth,
            **hyper,
            "feedback": config.feedback,
            "batch_size": config.batch_size,
            "seed": seeds,
            "examples_seen": seen,
            "test_accuracy": score.test_accuracy,
            "test_loss": score.test_loss,
            "train_accuracy": score.train_accuracy,
            "train_loss": score.train_loss,
            "diverged": diverged,
            "diverged_at": pd.Series(score.diverged_at, dtype="Int64").where(diverged),
            **norms,
        }
    )
