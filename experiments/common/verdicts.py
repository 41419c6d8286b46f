"""Verdicts on a claim, from its comparisons.

A verdict is one of these words:

- *reproduced*: every part of the claim holds.
- *partly reproduced*: some parts hold, and none is reversed.
- *mixed*: some parts hold, and some are reversed.
- *not reproduced*: no gain is large enough to matter; or, after Holm's correction, no part holds and some are reversed.
- *undecided*: these runs cannot decide, for the reason that is printed.
- *not tested*: there is nothing to compare.

A part is a gain, paired by seed, which the claim states to be positive. It *holds* if the lower end of its 95 % interval by
Student's t is above zero and its mean is at least the least gain that matters. It is *reversed* if the upper end is below
zero and its mean is at most minus the least gain that matters. It is *below what matters* if the upper end is below the
least gain that matters. A part with a doubt has none of these outcomes. "All parts hold" needs no correction for their
number, as each must hold. "Some hold" uses Holm's correction over all parts, and so does "some are reversed" where none
holds.
"""

from __future__ import annotations

import collections
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.common import markdown, statistics
from experiments.common.results import MOST, Results
from experiments.common.statistics import Comparison, Interval, Tuned

REPRODUCED, PARTLY, MIXED, NOT_REPRODUCED = "reproduced", "partly reproduced", "mixed", "not reproduced"
UNDECIDED, NOT_TESTED = "undecided", "not tested"
# A difference in accuracy that matters: one percentage point.
LEAST = 0.01
# Fewer seeds estimate the variance between seeds too poorly.
FEWEST_SEEDS = 8
# The one-sided level at which a part holds.
LEVEL = (1 - statistics.LEVEL) / 2
# A network has learned if its score is clearly above a guess, by this many times the least difference that matters, or
# half-way to the highest score if that is less.
LEARNED = 5
TOO_LITTLE_LEARNED = "too little was learned"
_EDGE = "the first or last value tried"


class Part(NamedTuple):
    """One gain that a claim states to be positive.

    Attributes:
      name: The comparison, in words.
      gain: The gain, paired by seed.
      least: The least gain that matters.
      doubts: Reasons why the comparison decides nothing.
      margin: How far below zero the gain may be: it is judged with the margin added, see :func:`not_worse`.
      unit: The gain's unit; empty for a share, as accuracy is.
    """

    name: str
    gain: Interval
    least: float = LEAST
    doubts: Sequence[str] = ()
    margin: float = 0.0
    unit: str = ""

    @property
    def judged(self) -> Interval:
        """The gain with the margin added."""
        mean, low, high = (end + self.margin for end in self.gain[:3])
        return Interval(mean, low, high, self.gain.seeds)

    @property
    def holds(self) -> bool:
        """Whether the gain is clear and large enough to matter, without doubts; before Holm's correction."""
        return not self.doubts and self.judged.sign > 0 and self.judged.mean >= self.least

    @property
    def reversed(self) -> bool:
        """Whether the loss is clear and large enough to matter, without doubts."""
        return not self.doubts and self.judged.sign < 0 and self.judged.mean <= -self.least

    @property
    def too_small(self) -> bool:
        """Whether the gain is clearly below the least gain that matters, without doubts."""
        return not self.doubts and self.judged.known and self.judged.high < self.least

    @property
    def says(self) -> str:
        """Its outcome before Holm's correction, in words."""
        if self.doubts:
            return f"undecided: {'; '.join(self.doubts)}"
        if self.holds:
            return "holds"
        if self.reversed:
            return "reversed"
        if self.too_small:
            return "below what matters"
        return "clear, but perhaps too small to matter" if self.judged.sign > 0 else "not clear"


class Verdict(NamedTuple):
    """A study's verdict on a claim.

    Attributes:
      outcome: One of the words of this module.
      evidence: Sentences with the numbers and their intervals.
      reason: The reason why it is undecided, or not reproduced although some gain might matter; else empty.
      parts: Each part of the claim: its name, gain, p-value after Holm's correction, and outcome.
      gains: The gains of the claim's headline by name, for the table of claims: `constant`, `fading`, `rival`.
    """

    outcome: str
    evidence: Sequence[str]
    reason: str = ""
    parts: Sequence[Mapping[str, Any]] = ()
    gains: Mapping[str, str] = types.MappingProxyType({})

    def __str__(self) -> str:
        return f"{self.outcome}, as {self.reason}" if self.reason else self.outcome


def verdict_of(
    parts: Sequence[Part],
    evidence: Sequence[str],
    *,
    doubts: Sequence[str] = (),
    gains: Mapping[str, str] | None = None,
    corrected: bool = False,
) -> Verdict:
    """Returns the verdict on a claim that each of these gains is positive.

    Args:
      parts: The parts of the claim.
      evidence: The sentences of the verdict.
      doubts: Reasons why the whole claim is undecided; empty if the parts decide.
      gains: See :class:`Verdict`.
      corrected: Whether a part's outcome is the one after correction even if all parts hold without it.
    """
    p_values = statistics.holm([1.0 if part.doubts else part.judged.p for part in parts])
    seeds = min((part.gain.seeds for part in parts if not part.doubts), default=FEWEST_SEEDS)
    doubts = list(doubts)
    if parts and seeds < FEWEST_SEEDS:
        doubts.insert(0, f"a verdict needs at least {FEWEST_SEEDS} seeds, and there are {seeds}")
    clear = [part.holds and p < LEVEL for part, p in zip(parts, p_values, strict=True)]
    losses = statistics.holm([1 - part.judged.p if part.reversed else 1.0 for part in parts])
    every = bool(parts) and all(part.holds for part in parts)
    outcome, reason = UNDECIDED, ""
    if not parts:
        outcome, reason = (UNDECIDED, "; ".join(doubts)) if doubts else (NOT_TESTED, "")
    elif doubts:
        reason = "; ".join(doubts)
    elif every:
        outcome = REPRODUCED
    elif any(clear):
        outcome = MIXED if any(part.reversed for part in parts) else PARTLY
    elif all(part.too_small for part in parts):
        outcome = NOT_REPRODUCED
    elif min(losses) < LEVEL:
        outcome, reason = NOT_REPRODUCED, _none_holds(parts)
    else:
        reason = _why_undecided(parts)
    alone = every and not corrected
    told = [
        {
            "part": part.name,
            "gain": f"{part.gain.signed()} {part.unit}".strip() if part.gain.seeds else "",
            "mean": part.gain.mean,
            "low": part.gain.low,
            "high": part.gain.high,
            "p": p,
            "unit": part.unit,
            "says": part.says if alone or is_clear or not part.holds else "clear alone, not after correction",
        }
        for part, p, is_clear in zip(parts, p_values, clear, strict=True)
    ]
    return Verdict(outcome, evidence, reason, told, gains or {})


def _why_undecided(parts: Sequence[Part]) -> str:
    """Returns why no part decides: of a single part its doubts, of several how many have which outcome."""
    if len(parts) == 1:
        return "; ".join(parts[0].doubts) or "its gain is neither clearly large enough to matter nor clearly too small"
    return _none_holds(parts)


def _none_holds(parts: Sequence[Part]) -> str:
    """Returns how many parts have which outcome."""
    outcomes: collections.Counter[str] = collections.Counter()
    for part in parts:
        if part.doubts:
            # The table of parts has each best value at an edge; here they are one reason.
            reasons = dict.fromkeys(f"a best value is {_EDGE}" if _EDGE in doubt else doubt for doubt in part.doubts)
            outcomes[f"not judged ({'; '.join(reasons)})"] += 1
        else:
            outcomes["clear alone" if part.holds else part.says] += 1
    counts = [f"{count} {'is' if count == 1 else 'are'} {words}" for words, count in outcomes.items()]
    return f"none of {len(parts)} gains holds after correction: {', '.join(counts)}"


def part_of(name: str, one: Tuned, other: Tuned, *, least: float | None = None) -> Part:
    """Returns a part of a claim: one method is better than another in one network, after equal search."""
    score = one.part.schema.score
    least, doubts = score.least if least is None else least, doubts_about({"": one, "the baseline": other})
    return Part(name, statistics.gain(one, other), least, doubts, unit=score.unit)


def part_of_comparison(name: str, comparison: Comparison) -> Part:
    """Returns a part of a claim: the hybrid is better than backprop."""
    return part_of(name, comparison.hybrid, comparison.backprop)


def not_worse(name: str, gain: Interval, doubts: Sequence[str] = (), *, least: float = LEAST) -> Part:
    """Returns a part of a claim: one method is not worse than another by the least difference that matters.

    Args:
      name: The comparison, in words.
      gain: One method's score minus the other's, paired by seed.
      doubts: See :class:`Part`.
      least: The least difference that matters here.
    """
    return Part(f"{name}, within {least:g}", gain, 0.0, doubts, least)


def doubts_about(methods: Mapping[str, Tuned]) -> list[str]:
    """Returns reasons why a comparison of methods decides nothing; the methods are by name, each at its own best."""
    doubts = []
    for name, method in methods.items():
        of = f" of {name}" if name else ""
        if edges := method.edges:
            doubts.append(f"the best {', '.join(edges)}{of} is {_EDGE}")
        if (np.nanmean(method.diverged, axis=1) > 0.5).all():
            doubts.append(f"most runs{of} diverged at every setting tried")
        elif method.num_diverged > len(method.scores) / 2:
            doubts.append(f"most runs{of} diverged at its best setting")
    return doubts + too_little_learned(methods.values())


def too_little_learned(methods: Iterable[Tuned]) -> list[str]:
    """Returns a list with the doubt that no method has learned enough to be compared; empty if a method has."""
    return [] if any(learned(method) for method in methods) else [TOO_LITTLE_LEARNED]


def learned(method: Tuned) -> bool:
    """Returns whether the mean score is clearly and far enough above a guess, see `LEARNED`."""
    guess, score = statistics.chance(method.part), method.accuracy
    low = score.low if score.known else score.mean
    most = method.part.table[MOST].max() if MOST in method.part.table else np.inf
    far = min(LEARNED * method.part.schema.score.least, (most - guess) / 2)
    return low > guess and score.mean >= guess + far


def single(results: Results, axis: str) -> list[str]:
    """Returns a list with the doubt that an axis has a single value; empty if it has more."""
    values = results.table[axis].unique()
    return [f"there is a single {axis.replace('_', ' ')}, {values[0]:g}"] if len(values) == 1 else []


def sentence(name: str, comparison: Comparison) -> str:
    """Returns a comparison in words, with intervals and best settings."""
    hybrid, backprop = comparison.hybrid, comparison.backprop
    return (
        f"{name}: {hybrid.accuracy} with Oja ({hybrid.words}) against {backprop.accuracy} without ({backprop.words}), gain "
        f"{gain_in_words(hybrid, backprop)}."
    )


def gain_in_words(one: Tuned, other: Tuned) -> str:
    """Returns the gain of one method over another in words; with different numbers of settings, at equal search too."""
    tried, own_best = (one.setting.tried, other.setting.tried), statistics.difference(one, other).signed()
    if tried[0] == tried[1]:
        return own_best
    return f"{statistics.gain(one, other).signed()} at {min(tried)} settings each ({own_best} each at its own best)"


def table(verdict: Verdict) -> str:
    """Returns the parts of a claim as a table in Markdown, one row per part; empty without parts."""
    if not verdict.parts:
        return ""
    rows = []
    for part in verdict.parts:
        p = "" if part["says"].startswith(UNDECIDED) else f"{part['p']:.2g}"  # A part with doubts is not tested.
        rows.append([part["part"], part["gain"], p, part["says"]])
    return markdown.table(["part of the claim", "gain, paired by seed", "p after Holm's correction", "outcome"], rows)
