"""Image classification with rivals of Oja's rule: what the questions that compare rivals share."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import figures, markdown, statistics
from experiments.common.errors import UserError
from experiments.common.flags import BATCH_SIZE, Axis, Settings
from experiments.common.parsers import Names, Numbers
from experiments.common.results import Results
from experiments.common.statistics import Tuned
from experiments.common.task import Setting
from experiments.tasks import classification
from experiments.tasks.registry import RIVAL, RULE, VARIANT, Rival, resolve

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree
    from matplotlib.figure import Figure

    from ojax.datasets import Dataset, Examples
    from ojax.online import Hyper, Learner

Rivals = Mapping[str, Rival]
# A network in which the effect is large: depth, gain of the initial weights, feedback.
Network = tuple[int, float, str]

DEEP, POOR, RANDOM = (15, 1.0, "backprop"), (5, 0.3, "backprop"), (10, 1.0, "random")
NETWORKS: Mapping[Network, str] = {
    DEEP: "15 layers, Glorot weights",
    POOR: "5 layers, Glorot weights x 0.3",
    RANDOM: "10 layers, random feedback",
}
# The defaults of a question that trains in these networks.
DEFAULTS: Mapping[str, Any] = {
    "depth": "15,5,10",
    "init_gain": "1,0.3",
    "feedback": "backprop,random",
    "learning_rate": "1e-3,3e-3,1e-2",
    "num_train": 3000,
}
# Test images, from the first, on which layers are measured.
NUM_PROBE = 200
COLOURS = {RULE: figures.COLOURS["hybrid"], VARIANT: "#E69F00", RIVAL: figures.COLOURS["backprop"]}
MARKERS = {RULE: "s", VARIANT: "D", RIVAL: "o"}
STRENGTH = Axis(
    "strength",
    "0.3,1,3",
    "Factors on the canonical value of the rival's own parameter, some of them to a power; without one, the cube roots are "
    "factors on the learning rate.",
    Numbers(float, 0, exclusive=True),
    traced=True,
    tuned=True,
    words="strength {:g}",
    natural_ends=(0.0,),
)
# The rule is the rival's own, so the task's axes of rules are not there.
_OTHERS = ("optimizer", "rule", "oja_rate", "oja_half_life", BATCH_SIZE.name)


def complete(settings: Settings) -> Settings:
    """Returns the settings after checking them: half-lives and phases of the compared methods count updates."""
    if settings["batch_size"] != (1,):
        raise UserError("The compared methods count each update as a sample: leave --batch_size at 1.")
    return classification.complete(settings)


TASK = classification.TASK._replace(
    complete=complete,
    axes=(*(axis for axis in classification.AXES if axis.name not in _OTHERS), BATCH_SIZE),
    canonical=None,
    baseline=None,
)


def learner(setting: Setting, data: Dataset, rivals: Rivals, measures: Collection[str]) -> Learner:
    """Returns the learner of a rival; if layers are measured, by these measures alone, on the first test images."""
    from experiments.tasks import networks
    from experiments.tasks import rivals as transformations
    from ojax import modules

    made = transformations.learner({**setting, "measures": False}, data, rivals)
    if not setting["measures"]:
        return made
    make = networks.maker(
        setting, classification.all_widths(setting, data), setting["init"][0], resolve(rivals[setting["rival"]].network)
    )
    measure = networks.measuring(modules.as_functions(make), measures, NUM_PROBE)

    def evaluate(params: PyTree, state: PyTree, test: Examples, hyper: Hyper) -> dict[str, Array]:
        return made.evaluate(params, state, test, hyper) | measure(params, state, test)

    return made._replace(evaluate=evaluate)


def axes(rivals: Rivals) -> list[Axis]:
    """Returns the axes of a question that compares these rivals."""
    return [Axis("rival", ",".join(rivals), "What is compared", Names(rivals)), STRENGTH]


def at(entry: Rival, best: Tuned) -> str:
    """Returns the best setting of a rival in words, with its own parameter, and what lies at the edge of its grid."""
    setting = best.setting
    eta, value = setting["learning_rate"], entry.parameter(setting["strength"])
    words = f"η = {eta:g}, {entry.symbol} = {value:.2g}" if entry.symbol else f"η = {_rate(entry, setting):g}"
    strength = STRENGTH.named(setting["strength"])
    edges = ", ".join(edge.replace(strength, entry.symbol) for edge in best.edges)
    return words + (f" (at the edge: {edges})" if edges else "")


def _rate(entry: Rival, setting: Mapping[str, float]) -> float:
    """Returns the learning rate, to two digits, of a rival whose parameter is a factor on it."""
    return float(f"{setting['learning_rate'] * entry.parameter(setting['strength']):.2g}")


def by_rival(results: Results, rivals: Rivals) -> dict[str, Tuned]:
    """Returns each rival at its own best among the final rows of one network."""
    found = {}
    for rival, rows in results.by("rival", sort=False):
        entry = rivals[rival]
        rate = None if entry.symbol else functools.partial(_rate, entry)
        found[rival] = Tuned(rows, rate, {STRENGTH.name: entry.natural_ends})
    return found


def nearest(rule: Tuned, rivals: Mapping[str, Tuned], least: float) -> str:
    """Returns the rival that decides whether the rule beats all of them by the least that matters.

    It is one that the rule does not beat clearly and by enough, if there is one; of several, the one over which the lower
    end of the rule's gain is lowest.
    """
    gains = {name: statistics.gain(rule, rival) for name, rival in rivals.items()}
    beaten = {name for name, gain in gains.items() if gain.sign > 0 and gain.mean >= least}
    lower = {name: gain.low if gain.known else gain.mean for name, gain in gains.items()}
    return min(rivals, key=lambda name: (name in beaten, lower[name]))


def keep(run: Mapping[str, Any]) -> bool:
    """Returns whether a run is in one of the networks."""
    return (run["depth"], run["init_gain"], run["feedback"]) in NETWORKS


def by_network(results: Results, rivals: Rivals) -> dict[Network, dict[str, Tuned]]:
    """Returns, for each network of the results, each rival at its own best among the final rows."""
    final, found = statistics.final_rows(results), {}
    for network in NETWORKS:
        rows = final.where(**dict(zip(("depth", "init_gain", "feedback"), network, strict=True)))
        if not rows.table.empty:
            found[network] = by_rival(rows, rivals)
    return found


def titled(network: Network) -> str:
    """Returns the name of a network in two lines, as the title of a narrow panel."""
    return NETWORKS[network].replace(", ", ",\n")


def best_first(best: Mapping[str, Tuned]) -> list[str]:
    """Returns the names of rivals by their mean score, the best first."""
    return sorted(best, key=lambda rival: -best[rival].scores.mean())


def table(results: Results, rivals: Rivals) -> str:
    """Returns a row in Markdown for each rival, best first in each network."""
    rows = []
    for network, best in by_network(results, rivals).items():
        backprop = best.get("backprop")
        for rival in best_first(best):
            gain = "" if backprop is None or rival == "backprop" else statistics.gain(best[rival], backprop).signed()
            where = at(rivals[rival], best[rival])
            rows.append([NETWORKS[network], rivals[rival].label, best[rival].told, gain, where, best[rival].setting.tried])
    columns = ["network", "method", "test accuracy", "gain over no rule", "best setting", "settings tried"]
    return markdown.table(columns, rows)


def chart(results: Results, rivals: Rivals, kinds: Sequence[str] = ()) -> Figure:
    """Draws the final test accuracy of each rival at its own best, networks next to each other.

    Dashed lines are constant Oja, dotted lines fading Oja.

    Args:
      results: The study's.
      rivals: Those that are compared.
      kinds: The kinds in the order of their rows; by default only the mean over networks orders the rivals.
    """
    found = by_network(results, rivals)
    order = [rival for rival in rivals if any(rival in parts for parts in found.values())]
    mean = {rival: np.mean([parts[rival].scores.mean() for parts in found.values() if rival in parts]) for rival in order}
    order.sort(key=lambda rival: (kinds.index(rivals[rival].kind) if kinds else 0, -mean[rival]))
    size = {"width": (figures.WIDTH - 1.2) / max(len(found), 2), "height": 0.5 + 0.17 * len(order)}
    figure, panels = figures.make_panels(1, len(found), **size, sharey=True, sharex=True)
    for axes, (network, parts) in zip(panels[0], found.items(), strict=True):
        for row, rival in enumerate(order):
            if rival in parts:
                kind = rivals[rival].kind
                figures.interval_bar(axes, row, parts[rival].scores, COLOURS[kind], horizontal=True, marker=MARKERS[kind])
        for rule, style in (("oja", "--"), ("fading_oja", ":")):
            if rule in parts:
                axes.axvline(parts[rule].scores.mean(), color=COLOURS[RULE], linewidth=0.7, linestyle=style, zorder=0)
        axes.set(title=titled(network), xlabel="test accuracy", xlim=(0, 1), ylim=(len(order) - 0.5, -0.5))
        axes.set_xticks([0, 0.5, 1])
    panels[0][0].set_yticks(range(len(order)), [rivals[rival].label for rival in order])
    return figure
