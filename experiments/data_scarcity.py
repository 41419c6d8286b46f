"""With how few samples does a network learn online, and when does pure backprop catch up?

Accuracy is measured against samples seen, from 50 to 50,000, in networks of 5 and 10 layers. At each number of samples both
methods have their own best rates for that number, chosen by the running training accuracy up to it. If the training set is
smaller than 50,000, its samples are seen again, in a new order each time.
"""

import numpy as np
import pandas as pd

from experiments.common import app, figures, statistics, verdicts
from experiments.common.statistics import METHODS
from experiments.tasks import classification

FEW = 1000


def by_count(results):
    """Yields, per network, the tuned comparison at each number of samples seen."""
    for title, network in statistics.networks(results):
        yield title, statistics.comparisons(network.where(network.table["examples_seen"] > 0), "examples_seen")


def verdict(results):
    """Judges the gain at each number of samples up to FEW; the evidence tells where it is clear, and where a loss is."""
    parts, evidence = [], []
    for title, comparisons in by_count(results):
        parts += [
            verdicts.part_of_comparison(f"{title}, {seen:,} samples", comparison)
            for seen, comparison in comparisons.items()
            if seen <= FEW
        ]
        signs = {seen: comparison.gain().sign for seen, comparison in comparisons.items()}
        better = [seen for seen, sign in signs.items() if sign > 0]
        last = max(better, default=0)
        level = next((seen for seen, sign in signs.items() if sign <= 0 and seen > last), None)
        behind = next((seen for seen, sign in signs.items() if sign < 0 and seen > last), None)
        never = "nowhere later" if better else "nowhere"
        evidence += [
            f"{title}: with Oja clearly better at {_listed(better)} samples"
            + (f"; not clearly at {level:,}" if better and level else "")
            + (f"; backprop is first clearly ahead at {behind:,}" if behind else f"; backprop is {never} clearly ahead")
            + ".",
            *(verdicts.sentence(f"{title}, {seen:,} samples", comparisons[seen]) for seen in _ends(comparisons)),
        ]
    return verdicts.verdict_of(parts, evidence)


def accuracy_by_samples(results):
    """Draws test accuracy (top) and the gain with Oja's rule, paired by seed (bottom), against samples seen."""
    parts = list(by_count(results))
    figure, panels = figures.make_panels(
        2, len(parts), width=3.0, height=2.0, sharex=True, sharey="row", height_ratios=[1.4, 1]
    )
    for top, bottom, (title, comparisons) in zip(*panels, parts, strict=True):
        counts = list(comparisons)
        for method in METHODS:
            rows = [comparison.of(method).runs.table for comparison in comparisons.values()]
            figures.curve(top, results.of(pd.concat(rows)), method)
        mean, low, high, _ = np.array([comparison.gain() for comparison in comparisons.values()]).T
        bottom.errorbar(counts, mean, np.nan_to_num([mean - low, high - mean]), color="0.2", marker=".", capsize=2)
        bottom.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        bottom.set(xscale="log", xlabel="samples seen")
        top.set_ylim(0, 1)
        rows = results.table
        per_class = float((rows["examples_seen"] / rows["examples_per_class"]).max())
        classes = top.secondary_xaxis("top", functions=(lambda x, n=per_class: x / n, lambda x, n=per_class: x * n))
        classes.set_xlabel(f"{title}\nsamples per class, on average", fontsize=8)
        for axes in (top, bottom):
            once = rows["num_train"].max()
            if once < max(counts):
                axes.axvline(once, color="0.6", linewidth=0.6, linestyle=":")
    panels[0][0].set_ylabel("test accuracy")
    panels[1][0].set_ylabel("gain with Oja")
    figures.legend(figure, panels[0][0])
    return figure


def _ends(comparisons):
    """Returns the first count, the last one up to FEW, and the last one."""
    few = [seen for seen in comparisons if seen <= FEW]
    return sorted({min(comparisons), max(few, default=min(comparisons)), max(comparisons)})


def _listed(counts):
    return ", ".join(f"{count:,}" for count in counts) or "no number of"


QUESTION = app.Question(
    module="experiments.data_scarcity",
    question=__doc__,
    task=classification.TASK,
    claim=f"This project's own: with {FEW:,} samples or fewer, learning online does better with Oja's rule than without.",
    verdict=verdict,
    figures={"accuracy_by_samples": accuracy_by_samples},
    defaults={"num_train": 10000, "epochs": 5, "evals": "50,100,200,500,1000,2000,5000,10000,20000,50000"},
)

if __name__ == "__main__":
    app.run(QUESTION)
