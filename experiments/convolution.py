"""Does Oja's rule help a convolutional network, whose kernels are shared over positions, to learn online, and how deep?

Networks of 4 and 8 layers, 3 x 3 kernels of 16 channels and a read-out, strides of 2 in the first and the third layer. They
start from Glorot-uniform weights, from the same halved, and from He's, which suit these units; and from Glorot's and He's
with errors that come back through random kernels. Oja's rule is taken in two ways: of each patch of an image as a sample
(`oja`), and of each layer as one matrix whose entries are tied (`oja_tied`). Each rule has its own best rates.
"""

from experiments.common import app, figures, statistics, verdicts
from experiments.common.statistics import METHODS
from experiments.tasks import convolution

SCHEMES = {"glorot_uniform": "Glorot", "he_normal": "He"}
RULES = {"oja": "Oja's rule of patches", "oja_tied": "Oja's rule with tied weights"}


def condition(init, gain, feedback):
    """Where a network starts from and how its errors come back, in words."""
    start = SCHEMES.get(init, init.replace("_", " ")) + (f" x {gain:g}" if gain != 1 else "")
    return start if feedback == "backprop" else f"{start}, {feedback} feedback"


def tuned(tables):
    """For each rule and depth, the tuned comparisons by condition."""
    for (rule, depth), rows in statistics.final_rows(tables.results).groupby(["rule", "depth"]):
        found = {
            condition(*values): statistics.compare(part)
            for values, part in rows.groupby(["init", "init_gain", "feedback"], sort=False)
        }
        yield rule, depth, {name: comparison for name, comparison in found.items() if comparison is not None}


def verdict(tables):
    """The tuned gains, and the runs that diverged. Of the control, He weights with backprop, nothing is claimed."""
    gains, evidence = [], []
    for rule, depth, found in tuned(tables):
        name = f"{RULES.get(rule, rule)}, {depth} layers"
        gains += [comparison.gain() for start, comparison in found.items() if start != SCHEMES["he_normal"]]
        evidence += [verdicts.sentence(f"{name}, {start}", comparison) for start, comparison in found.items()]
    final = statistics.final_rows(tables.results)
    for rule, rows in final[final["method"] == "hybrid"].groupby("rule"):
        evidence.append(f"{RULES.get(rule, rule)}: {int(rows['diverged'].sum())} of {len(rows)} runs diverged.")
    return verdicts.verdict_of(gains, evidence)


def accuracy_by_condition(tables):
    """Final test accuracy by rule, depth and condition, each at its own best; grey lines join a seed's two runs."""
    parts = list(tuned(tables))
    rules, depths = (list(dict.fromkeys(part[place] for part in parts)) for place in (0, 1))
    figure, panels = figures.make_panels(len(rules), len(depths), width=3.3, height=2.2, sharey=True)
    for rule, depth, found in parts:
        axes = panels[rules.index(rule)][depths.index(depth)]
        for place, comparison in enumerate(found.values()):
            ends = [getattr(comparison, method)["test_accuracy"].to_numpy() for method in METHODS]
            axes.plot([place - 0.15, place + 0.15], ends, color="0.75", linewidth=0.6, zorder=0)
            for method, end, shift in zip(METHODS, ends, (-0.15, 0.15), strict=True):
                figures.interval_bar(axes, place + shift, end, method)
            axes.text(place, 1.0, comparison.gain().signed().replace(" ", "\n"), ha="center", va="top", fontsize=6)
        names = [name.replace(", ", ",\n").replace(" feed", "\nfeed") for name in found]
        axes.set_xticks(range(len(found)), names, fontsize=7)
        axes.set(title=f"{RULES.get(rule, rule)}, {depth} layers", xlim=(-0.5, len(found) - 0.5), ylim=(0, 1))
    for row in panels:
        row[0].set_ylabel("test accuracy")
    figures.legend(figure, panels[0][0])
    return figure


QUESTION = app.Question(
    module="experiments.convolution",
    question=__doc__,
    claim="Deep networks, sub-optimal initial weights and random feedback are learned online with Oja's rule where pure "
    "backprop fails; the paper shows it for dense networks.",
    verdict=verdict,
    task=convolution.TASK,
    varies=("depth", "init", "init_gain", "feedback", "rule"),
    figures={
        "accuracy_by_condition": accuracy_by_condition,
        "learning_curves": figures.learning_curves,
        "accuracy_plane": figures.accuracy_plane,
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
