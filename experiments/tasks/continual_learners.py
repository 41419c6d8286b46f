"""The learners of streams that change, and their measures at the end of each task."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PyTree

from experiments.common.task import Setting
from experiments.tasks import classification, networks
from experiments.tasks.registry import CONTINUAL, resolve
from ojax import measures, modules, online
from ojax.datasets import Dataset, Examples

# Number of test images, from the first, on which units are measured.
NUM_PROBE = 200
# The rival whose transformation reads the loss.
_TOLD = "fading_again"


def learner(setting: Setting, data: Dataset) -> online.Learner:
    """Returns the learner of a setting's rival, with measures of each task."""
    rival, widths = CONTINUAL[setting["rival"]], classification.all_widths(setting, data)
    rule, options = resolve(rival.rule), {name: setting[name] for name in rival.uses}

    def network(widths: Sequence[int], **more: Any) -> nnx.Module:
        return resolve(rival.network)(widths, use_bias=setting["use_bias"], **more)

    plain = {"feedback": "backprop", "normalization": "none", "measures": False}
    made = networks.learner(
        {**setting, **plain},
        widths,
        network=network,
        rule=lambda hyper: rule(hyper["learning_rate"], rival.parameter(hyper["strength"]), **options),
    )
    functions = modules.as_functions(networks.maker({**setting, **plain}, widths, setting["init"][0], network))

    def gradient(params: PyTree, state: PyTree, sample: PyTree, hyper: online.Hyper) -> online.Gradient:
        found = made.gradient(params, state, sample, hyper)
        total, weight = found.sums["train_loss"]
        return found._replace(signals={"loss": total / weight}) if setting["rival"] == _TOLD else found

    def evaluate(params: PyTree, state: PyTree, test: dict[str, Examples], hyper: online.Hyper) -> dict[str, Array]:
        scores = made.evaluate(params, state, test["now"], hyper)
        scores |= {"test_first_accuracy": made.evaluate(params, state, test["first"], hyper)["test_accuracy"]}
        _, activity, _ = functions.apply(params, state, test["now"].inputs[:NUM_PROBE])
        hidden: list[Array] = [activity["layers"][layer]["kernel"][0].post for layer in range(len(widths) - 2)]
        if not hidden:
            return scores
        return scores | {
            "dead_units": measures.dead_units(jnp.concatenate(hidden, axis=1)),
            "effective_rank": measures.effective_rank(hidden[-1]),
        }

    return made._replace(gradient=gradient, evaluate=evaluate)
