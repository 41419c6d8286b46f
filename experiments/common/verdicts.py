"""Verdicts on a claim, and the evidence that each of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from experiments.common.statistics import FEWEST_SEEDS, Comparison, Interval

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly reproduced", "not reproduced"
UNDECIDED, NOT_TESTED = "undecided", "not tested"
# A difference in accuracy that matters: one percentage point.
LEAST = 0.01


class Verdict(NamedTuple):
    """What a study says of one of the paper's claims.

    Attributes:
      outcome: One of `REPRODUCED`, `PARTLY`, `NOT_REPRODUCED` and `UNDECIDED`; `NOT_TESTED` where there is nothing to
        compare.
      evidence: Sentences with the numbers and their intervals.
    """

    outcome: str
    evidence: Sequence[str]


def verdict_of(gains: Sequence[Interval], evidence: Sequence[str], *, least: float | Sequence[float] = LEAST) -> Verdict:
    """The verdict on a claim that each of these gains is positive.

    Fewer than four seeds give no verdict but "undecided". A gain counts where it is clear, its interval above zero, and at
    least as large as the least that matters. The claim is reproduced where all gains count, partly where some do, and not
    where none does and all intervals lie below the least that matters. Otherwise it is undecided.

    Args:
      gains: Paired by seed.
      evidence: The sentences of the verdict.
      least: The least gain that matters, one for all or one for each.
    """
    if not gains:
        return Verdict(NOT_TESTED, evidence)
    most = [least] * len(gains) if isinstance(least, float | int) else least
    if min(gain.seeds for gain in gains) < FEWEST_SEEDS:
        return Verdict(UNDECIDED, [*evidence, f"A verdict takes at least {FEWEST_SEEDS} seeds."])
    counting = [counts(gain, wanted) for gain, wanted in zip(gains, most, strict=True)]
    absent = [gain.high < wanted for gain, wanted in zip(gains, most, strict=True)]
    if all(counting):
        return Verdict(REPRODUCED, evidence)
    if any(counting):
        return Verdict(PARTLY, evidence)
    return Verdict(NOT_REPRODUCED if all(absent) else UNDECIDED, evidence)


def and_matches(verdict: Verdict, gains: Sequence[Interval]) -> Verdict:
    """The verdict on a claim that also says "as well as", which is no more than partly reproduced if it may be worse.

    To do as well is to be behind by no more than would matter, and clearly so.

    Args:
      verdict: That on the rest of the claim.
      gains: Over what it does as well as, paired by seed.
    """
    matched = all(gain.low >= -LEAST for gain in gains)
    return verdict if matched or verdict.outcome != REPRODUCED else verdict._replace(outcome=PARTLY)


def counts(gain: Interval, least: float = LEAST) -> bool:
    """Whether a gain is clear, and large enough to matter."""
    return gain.sign > 0 and gain.mean >= least


def sentence(name: str, comparison: Comparison) -> str:
    """A comparison in words, with intervals and the rates it was made at."""
    hybrid, backprop = comparison.accuracy("hybrid"), comparison.accuracy("backprop")
    return (
        f"{name}: {hybrid} with Oja ({comparison.rates('hybrid')}) against {backprop} without "
        f"({comparison.rates('backprop')}), gain {comparison.gain().signed()}."
    )
