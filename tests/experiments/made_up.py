"""Made-up results of each question, in the shape of its flagfile, with a known truth."""

import functools
import importlib
import re
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.common import grid
from experiments.common.results import DIVERGED, GUESS, SEEN, Results
from experiments.common.tables import with_method
from experiments.tasks.registry import POOL
from tests.experiments.conducting import parse

# All questions, as the Makefile lists them.
_MAKEFILE = Path(__file__).parents[2] / "Makefile"
NAMES = re.search(r"QUESTIONS := ((?:.*\\\n)*.*)", _MAKEFILE.read_text(encoding="utf-8"))[1].replace("\\", "").split()
# For claims that one arm of the anatomy is not worse than another: without any effect it is worse, by the least difference
# that matters.
BEHIND = {"along_weights": 0.05, "rest": 0.05, "oja": 0.06, "homeostasis": 0.06}
SEEDS = 8


def question(name):
    """Returns the question of a name."""
    return importlib.import_module(f"experiments.{name}").QUESTION


@functools.cache
def shape(name):
    """Returns the runs of a study, one row per run and evaluation, without results."""
    asked = question(name)
    flags = [f"--flagfile=experiments/flagfiles/{name}.flags"]
    settings = parse(asked, *flags, f"--seeds={SEEDS}")
    runs = pd.concat([part.assign(**program) for program, part in grid.runs_of(asked, settings)], ignore_index=True)
    evals = settings["evals"]
    total = settings["num_train"] * settings["epochs"]
    if name == "continual":  # Its verdict takes the tasks apart: here eight of them.
        counts = [total * (task + 1) // 8 for task in range(8)]
    else:
        several = name in ("data_scarcity", "critical_period")
        counts = sorted({count for count in evals if count > 0} | {total}) if several else [total]
    return pd.concat([runs.assign(**{SEEN: count}) for count in counts], ignore_index=True)


def results(name, rng, effect=0.0, *, diverged=False):
    """Returns results of a question in which every rate is best in the middle of its grid, and nothing else has an effect.

    Args:
      name: The question.
      rng: Draws the scores: a level per seed that all methods share, and noise per run.
      effect: The effect of Oja's rule on each score.
      diverged: Whether all runs have diverged.
    """
    asked, table = question(name), with_method(shape(name))
    score = asked.schema.score
    scale = score.least / 0.01
    quality = np.full(len(table), 0.5)
    for axis in asked.schema.axes:
        if axis.tuned and axis.name in table and axis.name != "oja_half_life" and name != "transfer":
            place = table[axis.name].where(table[axis.name] > 0).rank(method="dense").to_numpy()
            middle = (1 + np.nanmax(place)) / 2
            quality -= np.nan_to_num(0.06 * (place - middle) ** 2)
    has_rule = (table["method"] != "backprop").to_numpy() if "method" in table else np.zeros(len(table), bool)
    quality += effect * has_rule
    if name == "transfer":  # It claims that a rule is not worse; without any effect it is, by the least that matters.
        quality += np.where(table["rule"] == "by_hand", 0.0, effect - 0.01)
    if name == "meta_learning":  # That random feedback with Oja's rule is not worse than backprop alone: it is, by as much.
        quality -= 0.01 * (table["feedback"] == "random").to_numpy()
    if name == "anatomy":
        quality += table["rival"].map(BEHIND).fillna(0.0).to_numpy()
        quality -= 0.01 * ((table["rival"] == "homeostasis") & (table["feedback"] == "backprop")).to_numpy()
    seeds = rng.normal(0, 0.03, 10**3)[table["seed"].to_numpy()]

    def noisy():
        return scale * (quality + seeds + rng.normal(0, 0.02, len(table)))

    columns = {score.chosen_by: noisy(), score.column: noisy()}
    if name == "short_term_memory":
        columns["test_capacity"] = noisy()
    if name == "meta_learning":
        columns |= {f"coefficient_{rule}": rng.normal(0, 1e-4, len(table)) for rule in POOL} | {"train_lost": 0.0}
    if diverged:
        columns = {column: 0.1 * scale for column in columns}
    if name in ("meta_learning", "transfer"):
        columns[GUESS] = 0.2
    table = table.assign(**columns, **{DIVERGED: diverged})
    if asked.task.score.column == "test_accuracy" and name not in ("meta_learning", "transfer", "copy_task"):
        table = table.assign(examples_per_class=table[SEEN] / 10)
    return Results(table, _measures(table, rng) if name == "mechanism" else None, asked.schema)


def _measures(table, rng):
    layers = [
        table.assign(
            layer=layer,
            effective_dimension=rng.normal(3, 0.3, len(table)),
            activity_gain=np.exp(rng.normal(0, 0.05, len(table))),
            error_gain=np.exp(rng.normal(0, 0.05, len(table))),
        )
        for layer in range(1, int(table["depth"].max()) + 1)
    ]
    found = pd.concat(layers, ignore_index=True)
    return found[found["layer"] <= found["depth"]]


def verdict(name, *args, **kwargs):
    """Returns the verdict of a question on made-up results."""
    return question(name).verdict(results(name, *args, **kwargs))
