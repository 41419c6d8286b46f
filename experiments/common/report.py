"""The findings of a study, in words and one table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from experiments.common import statistics
from experiments.common.config import Config, format_list
from experiments.common.statistics import Comparison, by_learning_rate

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from experiments.common.study import Tables

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly reproduced", "not reproduced"
NOT_TESTED = "not tested"

_HEADER = """\
| network | learning rate η | without Oja | with Oja | θ | gain, paired by seed |
|---|---|---|---|---|---|
"""


class Verdict(NamedTuple):
    """What a study says of one of the paper's claims.

    Attributes:
      outcome: One of `REPRODUCED`, `PARTLY` and `NOT_REPRODUCED`; `NOT_TESTED` where there is nothing to compare, or one
        seed, of which nothing can be told from chance.
      evidence: Sentences with the numbers and their intervals.
    """

    outcome: str
    evidence: Sequence[str]


def verdict_of(gains: Sequence[statistics.Interval], evidence: Sequence[str]) -> Verdict:
    """Reproduced where each of the gains is clearly above zero, partly where some are, not where none is."""
    if not gains or not all(gain.known for gain in gains):
        return Verdict(NOT_TESTED, evidence)
    clear = [gain.sign > 0 for gain in gains]
    return Verdict(REPRODUCED if all(clear) else PARTLY if any(clear) else NOT_REPRODUCED, evidence)


def sentence(name: str, comparison: Comparison) -> str:
    """A comparison in words, with intervals and the rates it was made at."""
    hybrid, backprop = comparison.accuracy("hybrid"), comparison.accuracy("backprop")
    return (
        f"{name}: {hybrid} with Oja ({_setting(comparison.hybrid_setting)}) against {backprop} without "
        f"({_setting(comparison.backprop_setting)}), gain {comparison.gain().signed()}."
    )


def summary(
    tables: Tables, config: Config, *, title: str, claim: str, verdict: Verdict, command: str, figures: Sequence[str],
    equal_rates: bool,
) -> str:  # fmt: skip
    """The text of `summary.md`: the verdict, what was found, one table with intervals, and how to repeat it.

    Args:
      tables: With a column `rule`.
      config: What was asked for.
      title: The study's question.
      claim: What the paper says, in one sentence.
      verdict: What the study says of it.
      command: What repeats the study.
      figures: Their names.
      equal_rates: Whether to compare the rules at equal learning rates too, beside each at its own best.
    """
    final = statistics.final_rows(tables.results)
    parts = list(statistics.networks(final))
    seen = int(final["examples_seen"].max())
    more = "and [each layer's measures](measures.csv) " if tables.measures is not None else ""
    lines = [
        f"# {title}",
        "",
        f"The paper's claim: {claim}",
        "",
        f"**Verdict: {verdict.outcome}.** {' '.join(verdict.evidence)}",
        "",
        f"{len(final)} runs on `{config.dataset}`: {seen:,} samples each, batch size {format_list(config.batch_size)}, "
        f"{config.epochs} epoch(s), {config.seeds} seed(s) a setting, learning rates "
        f"{format_list(config.learning_rate)}, Oja rates {format_list(config.oja_rate)}.",
        "",
        *(f"- {sentence}" for name, rows in parts for sentence in _findings(name, rows, equal_rates)),
        "",
        _HEADER + "\n".join(line for name, rows in parts for line in _table(name, rows, equal_rates)),
        "",
        "Test accuracy after the last sample, the mean over seeds with its 95 % bootstrap interval. A gain is with minus "
        "without Oja's rule on the same seeds: the same initial weights and the same order of samples. Settings are chosen "
        "by running training accuracy (each sample scored before its update), never by test accuracy"
        + ("; after the first epoch these are samples seen before." if config.epochs > 1 else "."),
        "",
        f"Figures: {', '.join(f'[{name}](figures/{name}.png)' for name in figures)}. "
        f"Every [run](results.csv) {more}as a table.",
        "",
        "To repeat it:",
        "",
        f"    {command}",
        "",
    ]
    return "\n".join(lines)


def _findings(network: str, rows: pd.DataFrame, equal_rates: bool) -> Iterator[str]:
    comparisons = [(eta, comparison) for eta, comparison in by_learning_rate(rows) if comparison]
    tuned = statistics.compare_tuned(rows)
    if comparisons and (equal_rates or not tuned):
        eta, widest = max(comparisons, key=lambda pair: abs(pair[1].gain().mean))
        better = [f"{eta:g}" for eta, comparison in comparisons if comparison.gain().sign > 0]
        worse = [f"{eta:g}" for eta, comparison in comparisons if comparison.gain().sign < 0]
        yield (
            f"**{network}, equal learning rates**: with Oja better at {_listed(better)}, worse at {_listed(worse)} of "
            f"{len(comparisons)}; the largest difference is at {eta:g}, {widest.accuracy('hybrid')} against "
            f"{widest.accuracy('backprop')}."
        )
    if not comparisons:
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
        f"η = {eta:g} without Oja": _is_edge(eta, etas),
        f"η = {hybrid_eta:g} with it": _is_edge(hybrid_eta, etas),
        f"θ = {theta:g}": _is_edge(theta, thetas),
    }
    return ", ".join(name for name, on_edge in found.items() if on_edge)


def _is_edge(value: float, values: np.ndarray) -> bool:
    return len(values) > 1 and value in (values.min(), values.max())


def _table(network: str, rows: pd.DataFrame, equal_rates: bool) -> Iterator[str]:
    tuned = statistics.compare_tuned(rows)
    for eta, comparison in by_learning_rate(rows) if equal_rates or not tuned else ():
        if comparison is not None:
            yield _row(f"| {network} | {eta:g}", comparison)
        else:
            for rule in statistics.RULES:
                part = rows[(rows["learning_rate"] == eta) & (rows["rule"] == rule)]
                if not part.empty:
                    setting = statistics.best_setting(part)
                    accuracy = statistics.mean_interval(statistics.at_setting(part, setting)["test_accuracy"].to_numpy())
                    cells = {"backprop": f"{accuracy} | |", "hybrid": f"| {accuracy} | {setting[1]:g}"}[rule]
                    yield f"| {network} | {eta:g} | {cells} | |"
    if tuned is not None:
        etas = f"best: {tuned.backprop_setting[0]:g} and {tuned.hybrid_setting[0]:g}"
        yield _row(f"| {network} | {etas}", tuned)


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
