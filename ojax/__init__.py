"""ojax: Oja's plasticity rule for Optax, and online learning of many networks at once."""

from ojax import datasets, feedback, measures, modules, online, plasticity, recurrent
from ojax.linen import apply_linen
from ojax.modules import MLP, record, value_and_grad, with_activity
from ojax.online.weights import load_weights
from ojax.plasticity import Activity, fading, hebb, oja, oja_per_neuron, oja_sgd, sanger

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "Activity",
    "apply_linen",
    "datasets",
    "fading",
    "feedback",
    "hebb",
    "load_weights",
    "measures",
    "modules",
    "oja",
    "oja_per_neuron",
    "oja_sgd",
    "online",
    "plasticity",
    "record",
    "recurrent",
    "sanger",
    "value_and_grad",
    "with_activity",
]
