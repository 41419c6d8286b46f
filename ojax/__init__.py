"""ojax: Oja's plasticity rule for Optax, and online learning of many networks at once."""

from ojax import datasets, feedback, measures, meta, modules, online, plasticity, recurrent
from ojax.activity import Activity
from ojax.linen import apply_linen
from ojax.modules import record, value_and_grad, with_activity
from ojax.networks import CNN, MLP
from ojax.online.weights import load_weights
from ojax.patches import Patches
from ojax.plasticity import bcm, hebb, homeostasis, oja, oja_per_neuron, oja_sgd, oja_tied, reward_hebb, sanger
from ojax.schedules import fading

__version__ = "0.1.0"

__all__ = [
    "CNN",
    "MLP",
    "Activity",
    "Patches",
    "apply_linen",
    "bcm",
    "datasets",
    "fading",
    "feedback",
    "hebb",
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
    "value_and_grad",
    "with_activity",
]
