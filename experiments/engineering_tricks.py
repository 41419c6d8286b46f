"""How much does each engineering trick improve online learning, and how much does Oja's rule?

The paper names these tricks: batches, layer and batch normalization, momentum, RMSProp and Adam. Each is used alone, from
good (Glorot) and from poor (Glorot x 0.3) initial weights, with Oja's rule and without. All see the same number of samples.
Batch normalization is also combined with every batch size. At batch size 1 it normalizes by running statistics, as a user
would have to. Every combination has its own best rates.
"""

import numpy as np

from experiments.common import app, figures, statistics, verdicts
from experiments.common.statistics import METHODS
from experiments.tasks import classification

TRICK = ["batch_size", "normalization", "optimizer"]
NO_TRICK = (1, "none", "sgd")


def makes_sense(run):
    """Keeps one trick at a time; only batch normalization is also combined with batches."""
    tricks = [run[name] != plain for name, plain in zip(TRICK, NO_TRICK, strict=True)]
    return sum(tricks) <= 1 or (run["normalization"] == "batch" and run["optimizer"] == "sgd")


def name_of(batch_size, normalization, optimizer):
    """Returns a trick's name."""
    names = {"momentum": "momentum", "rmsprop": "RMSProp", "adam": "Adam", "layer": "layer norm", "batch": "batch norm"}
    used = [names[name] for name in (normalization, optimizer) if name in names]
    return ", ".join(used + [f"batch {batch_size}"] * (batch_size > 1)) or "no trick"


def by_network(results):
    """Yields, per depth and gain of the initial weights, the comparisons of both rules by trick."""
    for (depth, gain), rows in statistics.final_rows(results).by("depth", "init_gain"):
        tricks = statistics.comparisons(rows, *TRICK, sort=False)
        order = sorted(tricks, key=lambda trick: (trick[1] != "none", trick[1] == "batch", trick[2] != "sgd", trick))
        yield f"{depth} layers, initial weights x {gain:g}", {name_of(*trick): tricks[trick] for trick in order}


def verdict(results):
    """Judges whether Oja's rule alone gains more than half of what each helpful trick gains alone."""
    parts, evidence, gains, num_tricks = [], [], {}, 0
    for network, tricks in by_network(results):
        plain = tricks.pop("no trick")
        bought = {name: statistics.gain(trick.backprop, plain.backprop) for name, trick in tricks.items()}
        helpful = [name for name, gain in bought.items() if gain.sign > 0 and gain.mean >= verdicts.LEAST]
        num_tricks += len(tricks)
        for name in helpful:
            trick = tricks[name].backprop
            budget = min(method.setting.tried for method in (plain.hybrid, plain.backprop, trick))
            alone, without, with_trick = (m.searched(budget) for m in (plain.hybrid, plain.backprop, trick))
            more = statistics.mean_interval(alone - (without + with_trick) / 2)
            doubts = verdicts.doubts_about({"Oja's rule": plain.hybrid, name: trick})
            parts.append(
                verdicts.Part(f"{network}: Oja's rule over half of the gain of {name}", more, verdicts.LEAST, doubts)
            )
        against = {name: statistics.gain(plain.hybrid, trick.backprop) for name, trick in tricks.items()}
        if tricks:
            best = max(tricks, key=lambda name: tricks[name].backprop.accuracy.mean)
            gains[network] = f"{best} {tricks[best].backprop.accuracy}"
        reached = f"Oja's rule alone reaches {plain.hybrid.accuracy}, backprop without tricks {plain.backprop.accuracy}"
        evidence.append(f"{network}: {reached}.")
        if against and all(gain.known for gain in against.values()):
            evidence.append(f"{network}: Oja's rule alone is {_compared(against)}.")
    doubts = ["no trick was clearly better than none"] if num_tricks and not parts else []
    return verdicts.verdict_of(parts, evidence, doubts=doubts, gains=gains)


def tricks(results):
    """Draws the final test accuracy per trick, with and without Oja's rule; the dashed line is Oja's rule alone.

    Each is at its own best. Points are seeds, bars 95 % intervals.
    """
    networks = list(by_network(results))
    height = 0.6 + 0.22 * len(networks[0][1])
    figure, panels = figures.make_panels(1, len(networks), width=3.0, height=height, sharey=True, sharex=True)
    for axes, (network, comparisons) in zip(panels[0], networks, strict=True):
        for row, comparison in enumerate(comparisons.values()):
            for method, shift in zip(METHODS, (-0.13, 0.13), strict=True):
                figures.interval_bar(axes, row + shift, comparison.of(method).scores, method, horizontal=True)
        axes.axvline(comparisons["no trick"].hybrid.accuracy.mean, color=figures.COLOURS["hybrid"], lw=0.7, ls="--")
        axes.axhspan(-0.5, 0.5, color="0.95", zorder=0)
        axes.set(title=network, xlabel="test accuracy", xlim=(0, 1), ylim=(len(comparisons) - 0.5, -0.5))
        axes.set_yticks(np.arange(len(comparisons)), list(comparisons))
    figures.legend(figure, panels[0][0])
    return figure


def _compared(against):
    """Returns the tricks that Oja's rule is better than, not different from and worse than, in words."""
    words = {1: "clearly better than", 0: "not clearly different from", -1: "clearly worse than"}
    named = {sign: [f"{name} ({gain.signed()})" for name, gain in against.items() if gain.sign == sign] for sign in words}
    return "; ".join(f"{words[sign]} {', '.join(names)}" for sign, names in named.items() if names)


QUESTION = app.Question(
    module="experiments.engineering_tricks",
    question=__doc__,
    task=classification.TASK,
    abstract=("... obviating the need for carefully engineered tricks"),
    claim=(
        "Oja's rule alone gains more than half as much accuracy as batches, normalization layers, momentum and adaptive "
        "optimizers do, wherever one of them helps."
    ),
    verdict=verdict,
    varies=("depth", "init_gain", *TRICK),
    figures={"tricks": tricks},
    defaults={
        "init_gain": "1,0.3",
        "batch_size": "1,8,32,128",
        "normalization": "none,layer,batch",
        "optimizer": "sgd,momentum,rmsprop,adam",
    },
    requires={name: (plain,) for name, plain in zip(TRICK, NO_TRICK, strict=True)},
    keep=makes_sense,
)

if __name__ == "__main__":
    app.run(QUESTION)
