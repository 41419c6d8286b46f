"""ojax: Oja's plasticity rule for Optax, and online learning of many networks at once.

`import ojax` loads the rules, which need only JAX and Optax. All other modules are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ojax import plasticity
from ojax.activity import Activity
from ojax.patches import Patches
from ojax.plasticity import bcm, hebb, homeostasis, oja, oja_per_neuron, oja_sgd, oja_tied, reward_hebb, sanger
from ojax.schedules import fading

if TYPE_CHECKING:
    from ojax import datasets, feedback, measures, meta, modules, online, recurrent, streams
    from ojax.linen import TrainState, apply_linen
    from ojax.modules import record, value_and_grad, with_activity
    from ojax.networks import CNN, MLP, hidden_layers
    from ojax.online.weights import load_weights

__version__ = "0.2.0.dev0"

__all__ = [
    "CNN",
    "MLP",
    "Activity",
    "Patches",
    "TrainState",
    "apply_linen",
    "bcm",
    "datasets",
    "fading",
    "feedback",
    "hebb",
    "hidden_layers",
    "homeostasis",
    "load_weights",
    "measures",
    "meta",
    "modules",
    "oja",
    "oja_per_neuron",
    "oja_sgd",
    "oja_tied",
    "online",
    "plasticity",
    "record",
    "recurrent",
    "reward_hebb",
    "sanger",
    "streams",
    "value_and_grad",
    "with_activity",
]

# Names that are loaded on first use, with the module of each; and modules that are loaded on first use.
_LATER = {
    "CNN": "networks",
    "MLP": "networks",
    "TrainState": "linen",
    "apply_linen": "linen",
    "hidden_layers": "networks",
    "load_weights": "online.weights",
    "record": "modules",
    "value_and_grad": "modules",
    "with_activity": "modules",
}
_MODULES = {"datasets", "feedback", "linen", "measures", "meta", "modules", "networks", "online", "recurrent", "streams"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ojax.{name}")
    if name in _LATER:
        found = getattr(importlib.import_module(f"ojax.{_LATER[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'ojax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
