"""Writes the findings of a study, as sentences and one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.common import statistics, verdicts
from experiments.common.flags import BATCH_SIZE, LEARNING_RATE
from experiments.common.parsers import format_list
from experiments.common.results import DIVERGED, METHODS, SEED, SEEN, Results, Score
from experiments.common.statistics import Comparison, Interval, Tuned, by_method
from experiments.common.verdicts import Verdict

_HEADER = """\
| network | learning rate η | without Oja | with Oja | θ | gain, paired by seed |
|---|---|---|---|---|---|
"""


def summary(
    results: Results,
    facts: Mapping[str, Any],
    verdict: Verdict | None,
    figures: Sequence[str],
    *,
    equal_rates: bool,
    table: str | None = None,
) -> str:
    """Returns the text of `summary.md`: the verdict, the findings, one table with intervals, and the command to repeat it.

    Args:
      results: The results of the study.
      facts: The facts for `config.json`.
      verdict: The verdict on its claim, if it has one.
      figures: Names of the figures.
      equal_rates: Whether to compare the methods at equal learning rates too, in addition to each at its own best.
      table: A question's own table, in place of the table and sentences on both methods.
    """
    final, score = statistics.final_rows(results), results.schema.score
    lines = [f"# {facts['question']}", ""]
    lines += [f"The claim: {facts['claim']}", ""] if facts["claim"] else []
    if verdict is not None:
        lines += [f"**Verdict: {verdict}.**", "", *(f"- {sentence}" for sentence in verdict.evidence), ""]
        lines += [parts, ""] if (parts := verdicts.table(verdict)) else []
    runs = f"{len(final.table)} runs on `{facts['dataset']['name']}`"
    seen, drawn = f"{int(final.table[SEEN].max()):,} {score.samples} each", ""
    if figures:
        drawn = f"Figures: {', '.join(f'[{name}](figures/{name}.png)' for name in figures)}."
    varied = (BATCH_SIZE.name, LEARNING_RATE.name, results.schema.baseline)
    if {*varied, score.column} <= set(final.table):
        lines += _compared(final, runs, seen, facts, equal_rates=equal_rates, table=table)
        more = ", [each layer's measures](measures.csv)" if results.measures is not None else ""
        lines += [f"{drawn} Tables: [every run](results.csv){more}.".lstrip(), ""]
    else:  # Without learning rates, Oja rates or the score no comparison is possible.
        lines += [f"{runs}, {seen}.", ""]
        # A question that uses all rows, not only the last ones, explains its choice of settings in its own table.
        told = "" if score.column == score.chosen_by else f"{_what(score)} {_choice(score, facts)}"
        lines += [table, "", *([told, ""] if told else [])] if table else []
        lines += [drawn, ""] if drawn else []
        lines += ["Tables: [every run](results.csv).", ""]
    return "\n".join([*lines, "To repeat it:", "", f"    {facts['command']}", ""])


def _compared(
    final: Results, runs: str, seen: str, facts: Mapping[str, Any], *, equal_rates: bool, table: str | None
) -> list[str]:
    """Returns the lines on the grid, the findings and the table of both methods, or a question's own table."""
    score, parts, rows = final.schema.score, list(statistics.networks(final)), final.table
    varied = (BATCH_SIZE.name, LEARNING_RATE.name, str(final.schema.baseline))
    batch_sizes, etas, thetas = (format_list(sorted(rows[name].unique().tolist())) for name in varied)
    words = []
    if table is None:
        words = [f"- {sentence}" for name, part in parts for sentence in _findings(name, part, equal_rates)]
        table = _HEADER + "\n".join(line for name, part in parts for line in _table(name, part, equal_rates))
    return [
        f"{runs}: {seen}, batch size {batch_sizes}, {facts['epochs']} epoch(s), {rows[SEED].nunique()} seed(s) per "
        f"setting, learning rates {etas}, Oja rates {thetas}.",
        "",
        *words,
        "",
        table,
        "",
        f"{_what(score)} A gain is the score with Oja's rule minus the score without, paired by seed: the same initial "
        f"weights and the same order of samples. {_choice(score, facts)} {_tried(parts)}",
        "",
    ]


def _what(score: Score) -> str:
    """Returns a sentence on the numbers of a table."""
    return f"{score.words.capitalize()} after the last sample, the mean over seeds with its 95 % interval by Student's t."


def _choice(score: Score, facts: Mapping[str, Any]) -> str:
    """Returns sentences on the choice of settings."""
    by = score.chosen_by.replace("train_", "running training ").replace("_", " ")
    seen = "; after the first epoch these are samples seen before" if facts["epochs"] > 1 else ""
    if score.chosen_by.startswith("train_"):
        by += f" (each sample scored before its update{seen})"
    return (
        f"Settings are chosen by {by}, never by {score.words}: each seed has the setting that the other seeds choose, and "
        "the table names the one that all choose. If one method has more settings to choose from than the other, a gain "
        "takes the expected score of its best of as many settings as the other has, drawn at random."
    )


def _tried(parts: Sequence[tuple[str, Results]]) -> str:
    """Returns a sentence on the number of settings per method."""
    names = [axis.name for axis in statistics.axes_of(parts[0][1], tuned=True)]
    counts = {method: set[int]() for method in METHODS}
    for _, part in parts:
        for method, mine in by_method(part).items():
            counts[method] |= {len(mine.table[names].drop_duplicates())} - {0}
    without, with_oja = (format_list(sorted(counts[method])) or "none" for method in METHODS)
    return f"Settings to choose from: {without} without Oja's rule, {with_oja} with it."


def _findings(network: str, final: Results, equal_rates: bool) -> Iterator[str]:
    comparisons = statistics.comparisons(final, LEARNING_RATE.name)
    tuned = statistics.compare_tuned(final)
    if comparisons and (equal_rates or not tuned):
        gains = {eta: comparison.gain() for eta, comparison in comparisons.items()}
        widest = max(gains, key=lambda eta: abs(gains[eta].mean))
        better, worse = (", ".join(f"{eta:g}" for eta in gains if gains[eta].sign == sign) or "none" for sign in (1, -1))
        yield (
            f"**{network}, equal learning rates**: with Oja better at {better}, worse at {worse} of {len(gains)} rates; "
            f"the largest difference is at {widest:g}, {comparisons[widest].hybrid.accuracy} with Oja against "
            f"{comparisons[widest].backprop.accuracy} without."
        )
    if not comparisons:
        best = statistics.Tuned(final)
        at = f"{best.accuracy} at its best setting, {best.words}"
        yield f"**{network}**: {at}; there is no second method to compare with."
    if tuned:
        without, with_oja = (f"{tuned.of(method).accuracy} ({tuned.of(method).words})" for method in METHODS)
        says = {1: "with Oja better", -1: "with Oja worse", 0: "no clear difference"}[tuned.gain().sign]
        gain = verdicts.gain_in_words(tuned.hybrid, tuned.backprop)
        yield f"**{network}, each at its own best**: {says}, {gain}, {with_oja} with Oja against {without} without."
        named = (tuned.backprop.edges, "without Oja"), (tuned.hybrid.edges, "with it")
        if edge := ", ".join(f"{name} {where}" for edges, where in named for name in edges):
            yield f"**{network}**: the best {edge} lies at the edge; the true best may lie beyond it, so widen the grid."
    elif comparisons:
        yield (
            f"**{network}**: neither method is tuned, with one learning rate in the grid; give --learning_rate several "
            "values."
        )
    if diverged := int(final.table[DIVERGED].sum()):
        of_all = f"{diverged} of {len(final.table)} runs diverged"
        yield f"**{network}**: {of_all}; they count with the accuracy at which they froze."


def _table(network: str, final: Results, equal_rates: bool) -> Iterator[str]:
    tuned = statistics.compare_tuned(final)
    for eta, at_rate in final.by(LEARNING_RATE.name) if equal_rates or not tuned else ():
        if comparison := statistics.compare(at_rate):
            yield _row(f"| {network} | {eta:g}", comparison, comparison.gain())
            continue
        for method, part in by_method(at_rate).items():
            if not part.table.empty:
                best = statistics.Tuned(part)
                cells = {"backprop": f"{best.accuracy} | |", "hybrid": f"| {best.accuracy} | {_theta(best):g}"}[method]
                yield f"| {network} | {eta:g} | {cells} | |"
    if tuned is not None:
        without, with_rule = (f"{best.setting[LEARNING_RATE.name]:g}" for best in tuned)
        yield _row(f"| {network} | best: {without}, and {with_rule} with Oja", tuned, tuned.gain())


def _row(start: str, comparison: Comparison, gain: Interval) -> str:
    cells = [*(best.told for best in comparison), f"{_theta(comparison.hybrid):g}", gain.signed()]
    return f"{start} | {' | '.join(cells)} |"


def _theta(best: Tuned) -> float:
    """Returns the rate of the rule at a setting."""
    return best.setting[str(best.part.schema.baseline)]
