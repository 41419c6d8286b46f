"""Image classification with rivals of Oja's rule: what the questions that compare rivals share."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.common import statistics
from experiments.common.flags import BATCH_SIZE, Axis
from experiments.common.parsers import Names, Numbers
from experiments.common.statistics import Tuned
from experiments.tasks import classification
from experiments.tasks.registry import Rival

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
TASK = classification.TASK._replace(
    axes=(*(axis for axis in classification.AXES if axis.name not in _OTHERS), BATCH_SIZE), canonical=None, baseline=None
)


def axes(rivals: Mapping[str, Rival]) -> list[Axis]:
    """Returns the axes of a question that compares these rivals."""
    return [Axis("rival", ",".join(rivals), "What is compared", Names(rivals)), STRENGTH]


def at(entry: Rival, best: Tuned) -> str:
    """Returns the best setting of a rival in words, with its own parameter, and what lies at the edge of its grid."""
    setting = best.setting
    eta, value = setting["learning_rate"], entry.parameter(setting["strength"])
    words = f"η = {eta:g}, {entry.symbol} = {value:.2g}" if entry.symbol else f"η = {eta * value:.2g}"
    strength = STRENGTH.named(setting["strength"])
    edges = ", ".join(edge.replace(strength, entry.symbol or strength) for edge in best.edges)
    return words + (f" (at the edge: {edges})" if edges else "")


def nearest(rule: Tuned, rivals: Mapping[str, Tuned], least: float) -> str:
    """Returns the rival that decides whether the rule beats all of them by the least that matters.

    It is one that the rule does not beat clearly and by enough, if there is one, and then the one that it beats least
    clearly.
    """
    gains = {name: statistics.gain(rule, rival) for name, rival in rivals.items()}
    beaten = {name for name, gain in gains.items() if gain.sign > 0 and gain.mean >= least}
    return max(rivals, key=lambda name: (name not in beaten, gains[name].p, -gains[name].mean))
