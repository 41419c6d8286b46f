"""Is it Oja's rule, or would something simpler do?

Where Oja's rule helps most (15 layers of Glorot weights; 5 layers of poor weights, Glorot x 0.3; 10 layers with random
feedback), with what might explain its effect: good initial weights (He's, orthogonal, or scaled by data so that each
layer's signals have unit variance), weight decay, a pull towards orthonormal weights without any activity, normalized,
bounded or clipped steps, residual connections, Hebb's rule with normalized weights, Oja's rule with the wrong sign; and
beside variants of the rule: fading, alone first and then backprop alone, in some layers alone, neuron by neuron, Sanger's.
Each is tuned over the same number of settings: learning rates times three values of its own parameter, or, where it has
none, three times as many learning rates.
"""

import numpy as np

from experiments.common import app, figures, statistics, verdicts
from experiments.tasks import comparing
from experiments.tasks.registry import RIVAL, RIVALS, RULE, VARIANT

# Networks in which the effect is large, by depth, gain of the initial weights and feedback.
NETWORKS = {
    (15, 1.0, "backprop"): "15 layers, Glorot weights",
    (5, 0.3, "backprop"): "5 layers, Glorot weights x 0.3",
    (10, 1.0, "random"): "10 layers, random feedback",
}
COLOURS = {RULE: figures.COLOURS["hybrid"], VARIANT: "#E69F00", RIVAL: figures.COLOURS["backprop"]}
MARKERS = {RULE: "s", VARIANT: "D", RIVAL: "o"}


def learner(setting, data):
    """The network, initial weights and rule of a rival."""
    from experiments.tasks import rivals

    return rivals.learner(setting, data)


def keep(run):
    """The networks in which Oja's rule helps most."""
    return (run["depth"], run["init_gain"], run["feedback"]) in NETWORKS


def by_network(results):
    """For each network, by name, the final rows of each rival."""
    final = statistics.final_rows(results)
    for (depth, gain, feedback), name in NETWORKS.items():
        rows = final.where(depth=depth, init_gain=gain, feedback=feedback)
        if not rows.table.empty:
            yield name, dict(rows.by("rival", sort=False))


def verdict(results):
    """In each network, the better of the constant and the fading rule against the nearest rival."""
    places, evidence, gains = [], [], {}
    for name, parts in by_network(results):
        best = {rival: statistics.Tuned(part) for rival, part in parts.items()}
        rules = {rival: best[rival] for rival in best if RIVALS[rival].kind == RULE}
        if not rules or len(rules) == len(best):
            continue
        rule = max(rules, key=lambda rival: _training(rules[rival]))
        against = {rival: statistics.gain(rules[rule], other) for rival, other in best.items() if rival not in rules}
        simpler = {rival: other for rival, other in best.items() if RIVALS[rival].kind == RIVAL}
        if simpler:
            nearest = comparing.nearest(rules[rule], simpler, verdicts.LEAST)
            places.append(
                verdicts.part_of(
                    f"{name}: {RIVALS[rule].label} over the nearest rival, {RIVALS[nearest].label}",
                    rules[rule],
                    simpler[nearest],
                )
            )
            strongest = max(simpler, key=lambda rival: simpler[rival].scores.mean())
            gains[name] = f"{RIVALS[strongest].label} {simpler[strongest].accuracy}"
        as_good = {rival: gain for rival, gain in against.items() if gain.low <= verdicts.LEAST or not gain.known}
        named = [f"{RIVALS[r].label} ({gain.signed()})" for r, gain in sorted(as_good.items(), key=lambda i: i[1].mean)]
        evidence.append(
            f"{name}: {RIVALS[rule].label} reaches {rules[rule].accuracy}; it is not clearly ahead, by {verdicts.LEAST:g}, "
            f"of {', '.join(named) or 'none'} (its gain over each in brackets)."
        )
    return verdicts.verdict_of(places, evidence, gains=gains)


def _training(best):
    """The running training accuracy, by which settings are chosen."""
    return best.runs.table[best.runs.schema.score.chosen_by].mean()


def table(results):
    """A row for each rival, best first in each network."""
    lines = ["| place | rival | test accuracy | gain over backprop | at | settings tried |", "|---" * 6 + "|"]
    for name, parts in by_network(results):
        best = {rival: statistics.Tuned(part) for rival, part in parts.items()}
        backprop = best.get("backprop")
        for rival in sorted(parts, key=lambda rival: -best[rival].scores.mean()):
            lost = best[rival].num_diverged
            gain = "" if backprop is None or rival == "backprop" else statistics.gain(best[rival], backprop).signed()
            diverged = f" ({lost} diverged)" if lost else ""
            cells = [RIVALS[rival].label, f"{best[rival].accuracy}{diverged}", gain]
            cells += [comparing.at(RIVALS[rival], best[rival]), str(best[rival].setting.tried)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rivals(results):
    """Final test accuracy of each rival at its own best; dashed lines are Oja's rule, dotted ones the fading rule."""
    found = [(name, {r: statistics.Tuned(part).scores for r, part in parts.items()}) for name, parts in by_network(results)]
    order = [rival for rival in RIVALS if any(rival in parts for _, parts in found)]
    mean = {rival: np.mean([parts[rival].mean() for _, parts in found if rival in parts]) for rival in order}
    order.sort(key=lambda rival: ([RULE, VARIANT, RIVAL].index(RIVALS[rival].kind), -mean[rival]))
    size = {"width": (figures.WIDTH - 1.2) / max(len(found), 2), "height": 0.5 + 0.17 * len(order)}
    figure, panels = figures.make_panels(1, len(found), **size, sharey=True, sharex=True)
    for axes, (name, parts) in zip(panels[0], found, strict=True):
        for row, rival in enumerate(order):
            if rival in parts:
                kind = RIVALS[rival].kind
                figures.interval_bar(axes, row, parts[rival], COLOURS[kind], horizontal=True, marker=MARKERS[kind])
        for rule, style in (("oja", "--"), ("fading_oja", ":")):
            if rule in parts:
                axes.axvline(parts[rule].mean(), color=COLOURS[RULE], linewidth=0.7, linestyle=style, zorder=0)
        axes.set(title=name.replace(", ", ",\n"), xlabel="test accuracy", xlim=(0, 1), ylim=(len(order) - 0.5, -0.5))
        axes.set_xticks([0, 0.5, 1])
    panels[0][0].set_yticks(range(len(order)), [RIVALS[rival].label for rival in order])
    return figure


QUESTION = app.Question(
    module="experiments.controls",
    question=__doc__,
    claim="This project's own: nothing simpler does what Oja's rule does where it helps most.",
    verdict=verdict,
    figures={"rivals": rivals},
    task=comparing.TASK,
    axes=comparing.axes(RIVALS),
    learner=learner,
    methods="rival",
    keep=keep,
    varies=("depth", "init_gain", "feedback", "rival"),
    defaults={
        "depth": "15,5,10",
        "init_gain": "1,0.3",
        "feedback": "backprop,random",
        "learning_rate": "1e-3,3e-3,1e-2",
        "num_train": 3000,
        "evals": "1",
        "seeds": 8,
    },
    table=table,
)

if __name__ == "__main__":
    app.run(QUESTION)
