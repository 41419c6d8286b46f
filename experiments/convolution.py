"""Does Oja's rule help a convolutional network, whose kernels are shared over positions, to learn online, and how deep?

Networks of 4 and 8 layers, 3 x 3 kernels of 16 channels and a read-out, strides of 2 in the first and the third layer. The
rule sees each position of an image as a sample, and averages over them. From Glorot-uniform weights, from the same weights
halved, and with errors that come back through random kernels; each rule at its own best rates.
"""

from experiments.common import app, figures, statistics, verdicts
from experiments.common.statistics import METHODS
from experiments.tasks import convolution


def condition(gain, feedback):
    """What is not as usual, in words."""
    unusual = [f"gain {gain:g}"] * (gain != 1) + [f"{feedback} feedback"] * (feedback != "backprop")
    return ", ".join(unusual) or "as usual"


def by_depth(tables):
    """For each depth, the tuned comparisons by condition."""
    for depth, rows in statistics.final_rows(tables.results).groupby("depth"):
        found = {
            condition(gain, feedback): statistics.compare(part)
            for (gain, feedback), part in rows.groupby(["init_gain", "feedback"], sort=False)
        }
        yield depth, {name: comparison for name, comparison in found.items() if comparison is not None}


def verdict(tables):
    """The tuned gain of each depth and condition, and the runs that diverged."""
    gains, evidence = [], []
    for depth, found in by_depth(tables):
        gains += [comparison.gain() for comparison in found.values()]
        evidence += [verdicts.sentence(f"{depth} layers, {name}", comparison) for name, comparison in found.items()]
    final = statistics.final_rows(tables.results)
    without, with_oja = (int(final.loc[final["method"] == method, "diverged"].sum()) for method in METHODS)
    if without or with_oja:
        evidence.append(f"Over the whole grid {with_oja} runs with Oja and {without} without diverged.")
    return verdicts.verdict_of(gains, evidence)


def accuracy_by_condition(tables):
    """Final test accuracy by depth and condition, each rule at its own best; grey lines join a seed's two runs."""
    parts = list(by_depth(tables))
    figure, panels = figures.make_panels(1, len(parts), width=2.9, height=2.4, sharey=True)
    for axes, (depth, found) in zip(panels[0], parts, strict=True):
        for place, comparison in enumerate(found.values()):
            ends = [getattr(comparison, method)["test_accuracy"].to_numpy() for method in METHODS]
            axes.plot([place - 0.15, place + 0.15], ends, color="0.75", linewidth=0.6, zorder=0)
            for method, end, shift in zip(METHODS, ends, (-0.15, 0.15), strict=True):
                figures.interval_bar(axes, place + shift, end, method)
            axes.text(place, 1.0, comparison.gain().signed().replace(" ", "\n"), ha="center", va="top", fontsize=6)
        axes.set_xticks(range(len(found)), [name.replace(", ", ",\n").replace(" ", "\n") for name in found])
        axes.set(title=f"{depth} layers", xlim=(-0.5, len(found) - 0.5), ylim=(0, 1))
    panels[0][0].set_ylabel("test accuracy")
    figures.legend(figure, panels[0][0])
    return figure


QUESTION = app.Question(
    module="experiments.convolution",
    question=__doc__,
    claim="Deep networks, sub-optimal initial weights and random feedback are learned online with Oja's rule where pure "
    "backprop fails; the paper shows it for dense networks.",
    verdict=verdict,
    task=convolution.TASK,
    varies=("depth", "init_gain", "feedback"),
    figures={
        "accuracy_by_condition": accuracy_by_condition,
        "learning_curves": figures.learning_curves,
        "accuracy_plane": figures.accuracy_plane,
    },
    defaults={"depth": "4,8", "init_gain": "1,0.5", "feedback": "backprop,random"},
    keep=lambda run: run["init_gain"] == 1 or run["feedback"] == "backprop",
)

if __name__ == "__main__":
    app.run(QUESTION)
