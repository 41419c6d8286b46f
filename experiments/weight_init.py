"""From which initial weights does a network learn online, with Oja's rule and without?

Glorot-uniform weights are scaled by gains from 0.1 to 4. Four other kinds of weights are not scaled: orthogonal, He-normal,
normal with a fixed deviation of 0.1, and uniform with one range for all layers (the first layer's Glorot range, without
correction for a layer's own size). From each, both methods have their own best rates. A method learns at a gain if its test
accuracy reaches two thirds of the best accuracy of either method at that depth from Glorot-uniform weights, and is at least
half-way from chance to it. The width of its range of gains is in decades, interpolated between gains, for each seed.
"""

import numpy as np

from experiments.common import app, figures, statistics, verdicts
from experiments.common.statistics import METHODS
from experiments.tasks import classification


def by_depth(results):
    """Yields, per depth, the tuned comparisons by gain (Glorot), by scheme (gain 1), and the accuracy threshold."""
    for depth, rows in statistics.final_rows(results).by("depth"):
        glorot = statistics.comparisons(rows.where(init="glorot_uniform"), "init_gain")
        schemes = statistics.comparisons(rows.where(init_gain=1), "init")
        best = max(comparison.of(method).accuracy.mean for comparison in glorot.values() for method in METHODS)
        # Of few classes, two thirds of the best may be less than a guess.
        yield depth, glorot, schemes, max(2 / 3 * best, (statistics.chance(rows) + best) / 2)


def any_learned(glorot):
    """Returns whether a method has learned at any gain."""
    return any(verdicts.learned(method) for comparison in glorot.values() for method in comparison)


def widths(glorot, threshold, *, equal_search):
    """Returns the width of each method's range of gains, one per seed, each at its own best or at equal search."""
    accuracies = {
        method: [
            comparison.searched(method) if equal_search else comparison.of(method).scores for comparison in glorot.values()
        ]
        for method in METHODS
    }
    return {
        method: np.array([statistics.width(list(glorot), seed, threshold) for seed in np.transpose(table)])
        for method, table in accuracies.items()
    }


def verdict(results):
    """Judges, per depth, the gain of Oja's rule at each initial gain but 1."""
    parts, evidence = [], []
    for depth, glorot, _, threshold in by_depth(results):
        parts += [
            verdicts.part_of_comparison(f"{depth} layers, Glorot weights x {gain:g}", comparison)
            for gain, comparison in glorot.items()
            if gain != 1
        ]
        if not any_learned(glorot):
            evidence.append(f"With {depth} layers too little was learned at any gain.")
        elif len(glorot) > 1:
            best, equal = (widths(glorot, threshold, equal_search=equal) for equal in (False, True))
            without, with_oja = (statistics.mean_interval(best[method]) for method in METHODS)
            wider, wider_at_equal = (
                statistics.mean_interval(found["hybrid"] - found["backprop"]) for found in (best, equal)
            )
            evidence.append(
                f"{depth} layers learn (test accuracy of at least {threshold:.2f}) over {with_oja} decades of gain with "
                f"Oja, over {without} without, each at its own best: a difference of {wider.signed()}, or of "
                f"{wider_at_equal.signed()} at equal search, of "
                f"{np.log10(max(glorot) / min(glorot)):.2f} decades tried."
            )
        gain, comparison = max(glorot.items(), key=lambda pair: pair[1].gain().mean)
        evidence.append(
            verdicts.sentence(
                f"{depth} layers, Glorot weights x {gain:g}, where Oja's rule has its largest gain", comparison
            )
        )
    return verdicts.verdict_of(parts, evidence, doubts=verdicts.single(results, "init_gain"))


def accuracy_by_initial_weights(results):
    """Draws the final test accuracy against the gain of Glorot weights (left), and by kind of weights at gain 1 (right).

    Each method is at its own best. Points are seeds, bars 95 % intervals. The dashed line is the accuracy that counts as
    learned.
    """
    parts = list(by_depth(results))
    figure, panels = figures.make_panels(len(parts), 2, width=2.4, height=2.1, sharey=True, width_ratios=[1.3, 1])
    for (left, right), (depth, glorot, schemes, threshold) in zip(panels, parts, strict=True):
        for method, shift in zip(METHODS, (0.97, 1.03), strict=True):
            for gain, comparison in glorot.items():
                figures.interval_bar(left, gain * shift, comparison.of(method).scores, method)
            means = [comparison.of(method).accuracy.mean for comparison in glorot.values()]
            left.plot(np.array(list(glorot)) * shift, means, color=figures.COLOURS[method])
            for place, comparison in enumerate(schemes.values()):
                figures.interval_bar(right, place + 5 * np.log10(shift), comparison.of(method).scores, method)
        left.set(xscale="log", ylabel=f"{depth} layers\ntest accuracy", ylim=(0, 1))
        left.set_xticks(list(glorot), [f"{gain:g}" for gain in glorot])
        left.minorticks_off()
        if any_learned(glorot):
            found = {method: np.mean(values) for method, values in widths(glorot, threshold, equal_search=False).items()}
            left.axhline(threshold, color="0.6", linewidth=0.6, linestyle="--", zorder=0)
            left.set_title(f"learns over {found['backprop']:.2f} decades without Oja, {found['hybrid']:.2f} with")
        else:
            left.set_title(verdicts.TOO_LITTLE_LEARNED)
        right.set_xticks(range(len(schemes)), [name.replace("_", "\n") for name in schemes])
        right.tick_params(axis="x", labelsize=6)
    panels[-1][0].set_xlabel("gain of Glorot-uniform initial weights")
    panels[-1][1].set_xlabel("initial weights at gain 1")
    figures.legend(figure, panels[0][0])
    return figure


QUESTION = app.Question(
    module="experiments.weight_init",
    question=__doc__,
    task=classification.TASK,
    abstract=(
        "... sub-optimal weight initialization, Oja's rule can substantially improve the performance of pure "
        "backpropagation"
    ),
    claim=(
        "From Glorot weights times a factor other than 1, a network learns online better with Oja's rule than with pure "
        "backprop."
    ),
    verdict=verdict,
    varies=("depth", "init", "init_gain"),
    figures={"accuracy_by_initial_weights": accuracy_by_initial_weights},
    defaults={
        "init": "glorot_uniform,he_normal,orthogonal,normal,same_scale",
        "init_gain": "0.1,0.2,0.3,0.5,1,2,4",
    },
    requires={"init": ("glorot_uniform",)},
    keep=lambda run: run["init"] == "glorot_uniform" or run["init_gain"] == 1,
)

if __name__ == "__main__":
    app.run(QUESTION)
