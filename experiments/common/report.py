"""The findings of a study, in words and one table."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.common import statistics
from experiments.common.config import Config, format_numbers
from experiments.common.statistics import Comparison

_HEADER = """\
| layers | init gain | learning rate η | backprop | backprop + Oja | θ | gain, paired by seed |
|---|---|---|---|---|---|---|
"""


def summary(results: pd.DataFrame, config: Config, command: str, figure_names: Sequence[str]) -> str:
    """The text of `summary.md`: what was found, one table with intervals, and how to repeat it."""
    final = statistics.final_rows(statistics.with_rule(results))
    parts = list(final.groupby(["depth", "init_gain"]))
    seen = int(final["examples_seen"].iloc[0])
    lines = [
        "# Backprop and Oja's rule: what was found",
        "",
        f"{len(final)} runs on `{config.dataset}`: {seen:,} samples each, batch size {config.batch_size}, "
        f"{config.epochs} epoch(s), {config.seeds} seed(s) a setting, learning rates "
        f"{format_numbers(config.learning_rate)}, Oja rates {format_numbers(config.oja_rate)}.",
        "",
        *(f"- {sentence}" for key, rows in parts for sentence in _findings(key, rows)),
        "",
        _HEADER + "\n".join(line for key, rows in parts for line in _table(key, rows)),
        "",
        "Test accuracy after the last sample, the mean over seeds with its 95 % bootstrap interval. A gain is the hybrid "
        "minus backprop on the same seeds: the same initial weights and the same order of samples. Settings are chosen by "
        "running training accuracy (each sample scored before its update), never by test accuracy"
        + ("; after the first epoch these are samples seen before." if config.epochs > 1 else "."),
        "",
        f"Figures: {', '.join(f'[{name}](figures/{name}.png)' for name in figure_names)}. "
        "Every run: [results.csv](results.csv).",
        "",
        "To repeat it:",
        "",
        f"    {command}",
        "",
    ]
    return "\n".join(lines)


def _findings(key: Any, rows: pd.DataFrame) -> Iterator[str]:
    depth, gain = key
    network = f"{depth} layers" + (f", initial weights x {gain:g}" if gain != 1 else "")
    comparisons = [(eta, comparison) for eta, comparison in _by_learning_rate(rows) if comparison]
    tuned = statistics.compare_tuned(rows)
    if comparisons:
        eta, widest = max(comparisons, key=lambda pair: abs(pair[1].gain().mean))
        better = [f"{eta:g}" for eta, comparison in comparisons if comparison.gain().sign > 0]
        worse = [f"{eta:g}" for eta, comparison in comparisons if comparison.gain().sign < 0]
        yield (
            f"**{network}, equal learning rates**: with Oja better at {_listed(better)}, worse at {_listed(worse)} of "
            f"{len(comparisons)}; the largest difference is at {eta:g}, {widest.accuracy('hybrid')} against "
            f"{widest.accuracy('backprop')}."
        )
    else:
        best = statistics.best_setting(rows)
        accuracy = statistics.mean_interval(statistics.at_setting(rows, best)["test_accuracy"].to_numpy())
        yield f"**{network}**: {accuracy} at its best setting, {_setting(best)}; there is no second rule to compare with."
    if tuned:
        yield (
            f"**{network}, each at its own best**: {_verdict(tuned)}, {tuned.accuracy('hybrid')} "
            f"({_setting(tuned.hybrid_setting)}) against {tuned.accuracy('backprop')} ({_setting(tuned.backprop_setting)})."
        )
        edge = _on_the_edge(rows, tuned)
        if edge:
            yield f"**{network}**: at the edge of the grid lies {edge}; the true best may lie beyond it, so widen the grid."
    elif comparisons:
        yield f"**{network}**: neither rule is tuned, with one learning rate in the grid; give --learning_rate several."
    diverged = int(rows["diverged"].sum())
    if diverged:
        yield f"**{network}**: {diverged} of {len(rows)} runs diverged; they count with the accuracy at which they froze."


def _verdict(comparison: Comparison) -> str:
    gain = comparison.gain()
    words = {1: "with Oja better", -1: "with Oja worse", 0: "no clear difference"}
    return f"{words[gain.sign]}, {gain.signed()}"


def _on_the_edge(rows: pd.DataFrame, tuned: Comparison) -> str:
    """A caution where a rule's best rate is the first or last of its grid."""
    (eta, _), (hybrid_eta, theta) = tuned.backprop_setting, tuned.hybrid_setting
    etas, thetas = rows["learning_rate"].unique(), rows.loc[rows["oja_rate"] > 0, "oja_rate"].unique()
    found = {
        f"backprop's η = {eta:g}": _is_edge(eta, etas),
        f"the hybrid's η = {hybrid_eta:g}": _is_edge(hybrid_eta, etas),
        f"the hybrid's θ = {theta:g}": _is_edge(theta, thetas),
    }
    return ", ".join(name for name, on_edge in found.items() if on_edge)


def _is_edge(value: float, values: np.ndarray) -> bool:
    return len(values) > 1 and value in (values.min(), values.max())


def _by_learning_rate(rows: pd.DataFrame) -> Iterator[tuple[float, Comparison | None]]:
    for eta, part in rows.groupby("learning_rate"):
        yield eta, statistics.compare(part)


def _table(key: Any, rows: pd.DataFrame) -> Iterator[str]:
    start = f"| {key[0]} | {key[1]:g} |"
    for eta, comparison in _by_learning_rate(rows):
        if comparison is not None:
            yield _row(f"{start} {eta:g}", comparison)
        else:
            for rule in statistics.RULES:
                part = rows[(rows["learning_rate"] == eta) & (rows["rule"] == rule)]
                if not part.empty:
                    setting = statistics.best_setting(part)
                    accuracy = statistics.mean_interval(statistics.at_setting(part, setting)["test_accuracy"].to_numpy())
                    cells = {"backprop": f"{accuracy} | |", "hybrid": f"| {accuracy} | {setting[1]:g}"}[rule]
                    yield f"{start} {eta:g} | {cells} | |"
    tuned = statistics.compare_tuned(rows)
    if tuned is not None:
        etas = f"best: {tuned.backprop_setting[0]:g} and {tuned.hybrid_setting[0]:g}"
        yield _row(f"{start} {etas}", tuned)


def _row(start: str, comparison: Comparison) -> str:
    cells = []
    for rule in statistics.RULES:
        lost = comparison.num_diverged(rule)
        cells.append(f"{comparison.accuracy(rule)}" + (f" ({lost} diverged)" if lost else ""))
    return f"{start} | {cells[0]} | {cells[1]} | {comparison.hybrid_setting[1]:g} | {comparison.gain().signed()} |"


def _setting(setting: tuple[float, float]) -> str:
    return f"η = {setting[0]:g}" + (f", θ = {setting[1]:g}" if setting[1] else "")


def _listed(items: list[str]) -> str:
    return ", ".join(items) if items else "none"
