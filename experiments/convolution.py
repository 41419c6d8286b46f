"""Does Oja's rule help a convolutional network, whose kernels are shared over positions, to learn online, and how deep?

Networks of 4 and 8 layers have 3 x 3 kernels of 16 channels and a read-out, with strides of 2 in the first and the third
layer. They start from Glorot-uniform weights, from these halved, and from He's, which suit these units. From Glorot's and
He's weights they also learn with errors that come back through random kernels. Oja's rule is used in two ways: each patch
of an image is a sample (`oja`), or each layer is one matrix whose entries are tied (`oja_tied`). Each rule has its own best
rates.
"""

import numpy as np

from experiments.common import app, figures, statistics, verdicts
from experiments.tasks import convolution

SCHEMES = {"glorot_uniform": "Glorot", "he_normal": "He"}
RULES = {"oja": "Oja's rule on patches", "oja_tied": "Oja's rule with tied weights"}


def condition(init, gain, feedback):
    """Returns a network's initial weights and feedback in words."""
    start = SCHEMES.get(init, init.replace("_", " ")) + (f" x {gain:g}" if gain != 1 else "")
    return start if feedback == "backprop" else f"{start}, {feedback} feedback"


def tuned(results):
    """Yields the tuned comparisons by condition, per rule and depth."""
    for (rule, depth), rows in statistics.final_rows(results).by("rule", "depth"):
        found = statistics.comparisons(rows, "init", "init_gain", "feedback", sort=False)
        yield rule, depth, {condition(*values): comparison for values, comparison in found.items()}


def verdict(results):
    """Judges the tuned gains, and counts diverged runs. The control, He weights with backprop, is not part of the claim."""
    parts, evidence = [], []
    final = statistics.final_rows(results)
    for rule, depth, found in tuned(results):
        parts += [
            verdicts.part_of_comparison(f"{RULES.get(rule, rule)}, {depth} layers, {start}", comparison)
            for start, comparison in found.items()
            if start != SCHEMES["he_normal"]
        ]
        each = [f"{start} {comparison.gain().signed()}" for start, comparison in found.items()]
        runs = final.where(final.table["method"] != "backprop", rule=rule, depth=depth).table
        lost = f"{int(runs['diverged'].sum())} of its {len(runs)} runs diverged"
        evidence.append(f"Gains of {RULES.get(rule, rule)} with {depth} layers: {'; '.join(each)}; {lost}.")
    return verdicts.verdict_of(parts, evidence)


def accuracy_by_condition(results):
    """Draws the final test accuracy by rule, depth and condition, each at its own best; grey lines connect equal seeds."""
    parts = list(tuned(results))
    rules, depths = (list(dict.fromkeys(part[place] for part in parts)) for place in (0, 1))
    figure, panels = figures.make_panels(len(rules), len(depths), width=3.3, height=2.2, sharey=True)
    for rule, depth, found in parts:
        axes = panels[rules.index(rule)][depths.index(depth)]
        for place, comparison in enumerate(found.values()):
            figures.paired_bars(axes, place, comparison)
            axes.text(place, 1.0, comparison.gain().signed().replace(" ", "\n"), ha="center", va="top", fontsize=6)
        names = [name.replace(", ", ",\n").replace(" feed", "\nfeed") for name in found]
        axes.set_xticks(range(len(found)), names, fontsize=7)
        axes.set(title=f"{RULES.get(rule, rule)}, {depth} layers", xlim=(-0.5, len(found) - 0.5), ylim=(0, 1))
    for row in panels:
        row[0].set_ylabel("test accuracy")
    figures.legend(figure, panels[0][0])
    return figure


# Okabe and Ito's colours, with one for the second rule.
STYLES = {"oja": ("#009E73", "^"), "oja_tied": ("#D55E00", "s")}


def curves(part):
    """Yields the curves of a panel, without Oja and with each rule: name, colour, marker and runs."""
    yield "without Oja", "#0072B2", "o", part.where(method="backprop", rule=part.table["rule"].iloc[0])
    for rule, mine in part.where(part.table["method"] != "backprop").by("rule", sort=False):
        yield RULES.get(rule, rule), *STYLES.get(rule, ("#CC79A7", "v")), mine


def accuracy_by_learning_rate(results):
    """Draws the final test accuracy against the learning rate, by depth (rows) and initial weights (columns).

    Each rule is at its best Oja rate. Bars are 95 % intervals.
    """
    parts = list(statistics.final_rows(results).by("depth", "init", "init_gain", "feedback", sort=False))
    depths = list(dict.fromkeys(depth for (depth, *_), _ in parts))
    starts = list(dict.fromkeys(condition(*start) for (_, *start), _ in parts))
    figure, panels = figures.make_panels(len(depths), len(starts), width=1.6, height=1.7, sharex=True, sharey=True)
    for (depth, *start), rows in parts:
        axes = panels[depths.index(depth)][starts.index(condition(*start))]
        for place, (name, colour, marker, mine) in enumerate(curves(rows)):
            best = {eta: statistics.Tuned(part).scores for eta, part in mine.by("learning_rate")}
            rates = [eta * 1.06 ** (place - 1) for eta in best]
            mean, low, high, _ = np.array([statistics.mean_interval(scores) for scores in best.values()]).T
            style = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1, "capsize": 2}
            axes.errorbar(rates, mean, np.nan_to_num([mean - low, high - mean]), label=name, **style)
        axes.set(xscale="log", ylim=(0, 1))
        axes.set_xticks(sorted(rows.table["learning_rate"].unique()))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
    for axes, start in zip(panels[0], starts, strict=True):
        axes.set_title(start)
    for axes, depth in zip(panels[:, 0], depths, strict=True):
        axes.set_ylabel(f"{depth} layers\ntest accuracy")
    for axes in panels[-1]:
        axes.set_xlabel("learning rate η")
    figures.legend(figure, panels[0][0])
    return figure


QUESTION = app.Question(
    module="experiments.convolution",
    question=__doc__,
    claim="This project's own: Oja's rule helps convolutional networks with Glorot's or smaller weights, or random "
    "feedback, to learn online, as the paper claims for dense networks.",
    verdict=verdict,
    task=convolution.TASK,
    varies=("depth", "init", "init_gain", "feedback", "rule"),
    figures={
        "accuracy_by_condition": accuracy_by_condition,
        "accuracy_by_learning_rate": accuracy_by_learning_rate,
    },
    defaults={
        "depth": "4,8",
        "init": "glorot_uniform,he_normal",
        "init_gain": "1,0.5",
        "feedback": "backprop,random",
        "rule": "oja,oja_tied",
        "learning_rate": "3e-3,1e-2,3e-2",
        "oja_rate": "0,1e-4,1e-3",
    },
    keep=lambda run: run["init_gain"] == 1 or (run["init"], run["feedback"]) == ("glorot_uniform", "backprop"),
)

if __name__ == "__main__":
    app.run(QUESTION)
