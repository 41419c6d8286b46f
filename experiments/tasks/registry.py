"""Registries: by the names that flags take, the dotted names of functions and classes, which are imported when used.

So `--help` knows all names without importing JAX. To add a rule, an initializer or a rival, add its line here. Here too are
the constants that a task shares with its learner.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Mapping
from typing import Any, NamedTuple

# From the widths of the layers to the initializer of all kernels; `--init_gain` scales what it draws.
INITIALIZERS = {
    name: f"experiments.tasks.networks.{name}"
    for name in ("glorot_uniform", "he_normal", "orthogonal", "normal", "same_scale", "lecun_third")
}
ACTIVATIONS = {"softplus": "ojax.modules.softplus", "tanh": "jax.numpy.tanh", "relu": "jax.nn.relu"}
NORMALIZATIONS = {"none": None, "layer": "flax.nnx.LayerNorm", "batch": "ojax.modules.BatchNorm"}
# From the learning rate to the transformation of the gradient.
OPTIMIZERS = {
    "sgd": "optax.sgd",
    "momentum": "experiments.tasks.networks.momentum",
    "rmsprop": "optax.rmsprop",
    "adam": "optax.adam",
}
# From the rate of the rule to the transformation that adds its change.
RULES = {name: f"ojax.{name}" for name in ("oja", "oja_tied", "oja_per_neuron", "sanger", "hebb")}

# Initializers of recurrent kernels.
RECURRENT_INITIALIZERS = {"normal": "ojax.recurrent.unit_normal", "orthogonal": "experiments.tasks.recurrent.orthogonal"}
# From a maker of the network and its optimizer to the learner.
LEARNING = {
    "readout": "ojax.recurrent.readout_alone",
    "rflo": "ojax.recurrent.rflo",
    "eprop": "experiments.tasks.recurrent.eprop",
    "tbptt": "ojax.recurrent.truncated_bptt",
    "rtrl": "ojax.recurrent.rtrl",
}
# Streams that are made on the device; the first two from the number of delays, of which inputs are to be recalled.
RECALLED = {"uniform": "ojax.streams.recall", "binary": "experiments.tasks.recurrent.recall_bits"}
STREAMS = RECALLED | {"narma10": "ojax.streams.narma10", "mackey_glass": "ojax.streams.mackey_glass"}
# Streams of images whose task changes, from the images and the samples of a task.
CHANGES = {
    "pixels": "ojax.streams.permuted_pixels",
    "labels": "ojax.streams.permuted_labels",
    "gain": "ojax.streams.drifting_gain",
    "classes": "ojax.streams.classes_in_sequence",
}
# The sign of Oja's rule on the input and on the recurrent kernel; the first is that of runs without the rule.
SIGNS = {"stacked": (1.0, 1.0), "recurrent": (0.0, 1.0), "anti": (-1.0, -1.0)}
# Delays whose r² is averaged in one column of the table of results.
DELAYS_PER_COLUMN = 5
# Steps over which the norm of the product of Jacobians is tabulated.
LAGS = (1, 2, 4, 8, 16, 32, 64)

# The published pool of local rules, in its order.
POOL = {
    name: f"ojax.plasticity.pool.{name}"
    for name in (
        "pseudo_gradient",
        "post_by_error",
        "ehebb",
        "weight_decay",
        "error_below",
        "summed_activity",
        "answered_error",
        "gated_by_answered_error",
        "gated_by_answer",
        "oja",
    )
}
# Pools from which a rule is learned, as names of rules: the pseudo-gradient alone, with each other rule, and with several.
POOLS: Mapping[str, tuple[str, ...]] = {
    "alone": ("pseudo_gradient",),
    **{name: ("pseudo_gradient", name) for name in POOL if name != "pseudo_gradient"},
    "ehebb_oja": ("pseudo_gradient", "ehebb", "oja"),
    "all": tuple(POOL),
}

# Kinds of what is compared: Oja's rule itself, a variant of it, a rival, or a rival that is given more than they are.
RULE, VARIANT, RIVAL, CEILING = "rule", "variant", "rival", "ceiling"


class Rival(NamedTuple):
    """A transformation, initial weights or a network to compare with backprop and Oja's rule.

    Attributes:
      label: Its name in figures.
      kind: `RULE`, `VARIANT`, `RIVAL` or `CEILING`.
      rule: From the learning rate and its own parameter to the Optax transformation, as a dotted name.
      symbol: The name of its own parameter in tables; empty if the parameter is a factor on the learning rate.
      base: The canonical value of its own parameter.
      power: The parameter is `base * strength**power`, by the axis `strength`.
      init: Its initial weights, as a name in `INITIALIZERS`; None for the run's.
      init_gain: The factor on its initial weights, if it has its own.
      before: What changes its initial weights before it learns, as a dotted name, see
        :func:`experiments.tasks.rivals.learner`.
      network: Its network, as a dotted name; it takes the arguments of `ojax.MLP`.
      learning: What it learns in addition to its weights, as a dotted name, see :func:`experiments.tasks.rivals.learner`.
      uses: Names of settings that its transformation takes by keyword.
      natural_ends: Ends of its own parameter, 0 or inf, at which it is no method any more: 0 for a rate, inf for a bound.
    """

    label: str
    kind: str
    rule: str = "experiments.tasks.rivals.backprop"
    symbol: str = ""
    base: float = 1.0
    power: float = 1 / 3
    init: str | None = None
    init_gain: float = 1.0
    before: str | None = None
    network: str = "ojax.MLP"
    learning: str | None = None
    uses: tuple[str, ...] = ()
    natural_ends: tuple[float, ...] = (0.0,)

    def parameter(self, strength: Any) -> Any:
        """Returns its own parameter, or a factor on the learning rate."""
        return self.base * strength**self.power


_HERE = "experiments.tasks.rivals"
RIVALS = {
    "backprop": Rival("nothing", RIVAL),
    "oja": Rival("constant Oja", RULE, "ojax.oja_sgd", "θ", 1e-3, 1),
    "fading_oja": Rival("fading Oja", RULE, f"{_HERE}.fading", "θ", 3e-3, 1),
    "oja_first": Rival("Oja first, then backprop", VARIANT, f"{_HERE}.oja_first", "samples", 500, 1),
    "oja_in_hidden": Rival("constant Oja, hidden layers", VARIANT, f"{_HERE}.oja_in_hidden", "θ", 1e-3, 1),
    "oja_in_readout": Rival("Oja in the read-out", VARIANT, f"{_HERE}.oja_in_readout", "θ", 1e-3, 1),
    "oja_in_first": Rival("Oja in the first layer", VARIANT, f"{_HERE}.oja_in_first", "θ", 1e-3, 1),
    "oja_per_neuron": Rival("Oja per neuron", VARIANT, f"{_HERE}.oja_per_neuron", "θ", 1e-3, 1),
    "sanger": Rival("Sanger's rule", VARIANT, f"{_HERE}.sanger", "θ", 1e-3, 1),
    "anti_oja": Rival("anti-Oja", RIVAL, f"{_HERE}.anti_oja", "θ", 1e-4, 2),
    "normalized_hebb": Rival("Hebb, normalized weights", RIVAL, f"{_HERE}.normalized_hebb", "θ", 1e-3, 2),
    "weight_decay": Rival("weight decay", RIVAL, f"{_HERE}.weight_decay", "decay", 1e-4, 2),
    "orthogonality": Rival("towards orthonormal weights", RIVAL, f"{_HERE}.orthogonality", "rate", 1e-3, 2),
    "orthogonal_weights": Rival("orthogonal initial weights", RIVAL, init="orthogonal"),
    "he_weights": Rival("He's initial weights", RIVAL, init="he_normal"),
    "scaled_weights": Rival("initial weights scaled by data", RIVAL, init="orthogonal", before=f"{_HERE}.scaled_once"),
    "clipping": Rival("gradient clipping", RIVAL, f"{_HERE}.clipping", "norm", 1, 2, natural_ends=(math.inf,)),
    "nlms": Rival("normalized steps (NLMS)", RIVAL, f"{_HERE}.nlms"),
    "obgd": Rival("bounded steps (ObGD)", RIVAL, f"{_HERE}.obgd", "κ", 0.2, 2),
    "residual": Rival("residual connections", RIVAL, network=f"{_HERE}.Residual"),
    "he_fading_oja": Rival("He's weights and fading Oja", VARIANT, f"{_HERE}.fading", "θ", 3e-3, 1, init="he_normal"),
}
_CONTINUAL, _ANATOMY = "experiments.tasks.continual_rivals", "experiments.tasks.anatomy_arms"
# Those of streams that change; Oja's rule and gain homeostasis act in the hidden layers where nothing else is said.
CONTINUAL = {
    "backprop": Rival("nothing (backprop)", RIVAL),
    "oja": Rival("constant Oja, hidden layers", RULE, f"{_HERE}.oja_in_hidden", "θ", 3e-4, 2),
    "fading_oja": Rival("fading Oja, hidden layers", RULE, f"{_HERE}.fading_in_hidden", "θ", 1e-3, 2, uses=("half_life",)),
    "fading_again": Rival(
        "Oja fading again, hidden layers", RULE, f"{_CONTINUAL}.fading_again", "θ", 1e-3, 2, uses=("half_life",)
    ),
    "oja_in_all": Rival("constant Oja, all layers", VARIANT, "ojax.oja_sgd", "θ", 3e-4, 2),
    "fading_in_all": Rival("fading Oja, all layers", VARIANT, f"{_HERE}.fading", "θ", 1e-3, 2, uses=("half_life",)),
    "l2": Rival("L2", RIVAL, f"{_CONTINUAL}.l2", "λ", 1e-3, 2),
    "l2_init": Rival("L2 towards initial weights", RIVAL, f"{_CONTINUAL}.l2_init", "λ", 1e-3, 2),
    "shrink_and_perturb": Rival("shrink and perturb", RIVAL, f"{_CONTINUAL}.shrink_and_perturb", "λ", 1e-3, 2),
    "upgd": Rival("UPGD, weights", RIVAL, f"{_CONTINUAL}.upgd", "σ", 1e-2, 2),
    "upgd_features": Rival("UPGD, features", RIVAL, f"{_CONTINUAL}.upgd_features", "σ", 1e-2, 2),
    "continual_backprop": Rival("continual backprop", RIVAL, f"{_CONTINUAL}.continual_backprop", "rate", 1e-4, 2),
    "spectral": Rival("spectral regularization", RIVAL, f"{_CONTINUAL}.spectral", "λ", 1e-3, 2),
    "isometry": Rival("isometry regularization", RIVAL, f"{_CONTINUAL}.isometry", "λ", 1e-3, 2),
    "obgd": RIVALS["obgd"],
    "weight_clipping": Rival(
        "weight clipping", RIVAL, f"{_CONTINUAL}.weight_clipping", "κ", 2, 0.5, natural_ends=(math.inf,)
    ),
    "layer_norm": Rival("layer norm", RIVAL, network=f"{_CONTINUAL}.normalized"),
    "adam": Rival("Adam", RIVAL, f"{_HERE}.adam"),
    "homeostasis": Rival("gain homeostasis", RIVAL, f"{_ANATOMY}.homeostasis", "rate", 1e-3, 2),
}
# Oja's rule and its parts, and what may explain it, in the hidden layers alone where nothing else is said.
ANATOMY = {
    "backprop": Rival("nothing", RIVAL),
    "oja": Rival("constant Oja, hidden layers", RULE, f"{_HERE}.oja_in_hidden", "θ", 3e-3, 1),
    "fading_oja": Rival("fading Oja, hidden layers", RULE, f"{_HERE}.fading_in_hidden", "θ", 3e-3, 1),
    "hebb_term": Rival("Hebbian term", VARIANT, f"{_ANATOMY}.hebb_term", "θ", 1e-4, 2),
    "decay_term": Rival("decay term", VARIANT, f"{_ANATOMY}.decay_term", "θ", 3e-3, 1),
    "along_weights": Rival("component along W", VARIANT, f"{_ANATOMY}.along_weights", "θ", 3e-3, 1),
    "rest": Rival("the rest", VARIANT, f"{_ANATOMY}.rest", "θ", 3e-3, 1),
    "along_neurons": Rival("component along each neuron", VARIANT, f"{_ANATOMY}.along_neurons", "θ", 3e-3, 1),
    "rest_of_neurons": Rival("the rest of each neuron", VARIANT, f"{_ANATOMY}.rest_of_neurons", "θ", 3e-4, 2),
    "rest_of_fixed_norm": Rival("the rest, norm of W fixed", VARIANT, f"{_ANATOMY}.rest_of_fixed_norm", "θ", 3e-3, 1),
    "on_direction": Rival("on the input's leading direction", VARIANT, f"{_ANATOMY}.on_direction", "θ", 3e-3, 1),
    "off_direction": Rival("off the input's leading direction", VARIANT, f"{_ANATOMY}.off_direction", "θ", 3e-3, 1),
    "diagonal_decay": Rival("diagonal decay (per neuron)", VARIANT, f"{_ANATOMY}.diagonal_decay", "θ", 3e-3, 1),
    "homeostasis": Rival("gain homeostasis", RIVAL, f"{_ANATOMY}.homeostasis", "rate", 5e-2, 2),
    "homeostasis_per_neuron": Rival(
        "gain homeostasis per neuron", RIVAL, f"{_ANATOMY}.homeostasis_per_neuron", "rate", 5e-2, 2
    ),
    "homeostasis_and_oja": Rival("homeostasis and Oja", VARIANT, f"{_ANATOMY}.homeostasis_and_oja", "θ", 3e-3, 1),
    "isometry": Rival("towards WᵀW = 2 I", RIVAL, f"{_ANATOMY}.isometry", "rate", 1e-3, 2),
    "normalized_weights": Rival(
        "normalized weights", RIVAL, f"{_ANATOMY}.normalized_weights", "norm", 2**0.5, 0.5, natural_ends=()
    ),
    "layer_norm": Rival("layer norm", RIVAL, network="experiments.tasks.continual_rivals.normalized"),
    "shuffled_first": Rival(
        "Oja on shuffled pixels first",
        VARIANT,
        symbol="θ",
        base=3e-3,
        power=1,
        before=f"{_ANATOMY}.shuffled_first",
        rule=f"{_HERE}.sgd_alone",
    ),
    "first_third": Rival("Oja in the first third", VARIANT, f"{_ANATOMY}.first_third", "θ", 3e-3, 1),
    "middle_third": Rival("Oja in the middle third", VARIANT, f"{_ANATOMY}.middle_third", "θ", 3e-3, 1),
    "last_third": Rival("Oja in the last third", VARIANT, f"{_ANATOMY}.last_third", "θ", 3e-3, 1),
    "with_readout": Rival("constant Oja, all layers", VARIANT, f"{_ANATOMY}.with_readout", "θ", 3e-3, 1),
}
# What other studies compare too.
RIVALS |= {
    "orthogonal_weights_2": Rival("orthogonal initial weights x √2", RIVAL, init="orthogonal", init_gain=2**0.5),
    "isometry": ANATOMY["isometry"],
    "homeostasis": ANATOMY["homeostasis"],
    "normalized_weights": ANATOMY["normalized_weights"],
    "layer_norm": ANATOMY["layer_norm"],
    "adam": CONTINUAL["adam"],
    "rmsprop": Rival("RMSProp", RIVAL, f"{_HERE}.rmsprop"),
    "momentum": Rival("momentum", RIVAL, f"{_HERE}.momentum"),
    "annealed": Rival("annealed learning rate", RIVAL, f"{_HERE}.annealed", "half-life", 1000, 1, natural_ends=(math.inf,)),
}
_FEEDBACK = "experiments.tasks.feedback_rivals"
# What may help where the error comes back through fixed random weights; the last two change these weights.
FEEDBACK = {
    "backprop": Rival("nothing", RIVAL),
    "oja": RIVALS["oja"]._replace(base=2e-3),
    "fading_oja": RIVALS["fading_oja"]._replace(base=5e-3),
    "oja_in_hidden": RIVALS["oja_in_hidden"]._replace(base=2e-3),
    "normalized_weights": ANATOMY["normalized_weights"]._replace(base=1.8, power=0.25),
    "normalized_everywhere": Rival(
        "normalized weights, read-out too", RIVAL, f"{_FEEDBACK}.normalized_everywhere", "norm", 1.8, 0.25, natural_ends=()
    ),
    "layer_norm": ANATOMY["layer_norm"],
    "noise_first": Rival(
        "pretrained on noise",
        RIVAL,
        symbol="η of noise",
        base=1e-3,
        power=1,
        before=f"{_FEEDBACK}.noise_first",
        rule=f"{_HERE}.sgd_alone",
    ),
    "decorrelated": Rival(
        "decorrelated inputs",
        RIVAL,
        symbol="ε",
        base=1e-4,
        power=1.5,
        network=f"{_FEEDBACK}.decorrelated",
        learning=f"{_FEEDBACK}.decorrelating",
        rule=f"{_HERE}.sgd_alone",
    ),
    "adam": CONTINUAL["adam"],
    "weight_decay": RIVALS["weight_decay"],
    "homeostasis": ANATOMY["homeostasis"]._replace(power=1),
    "he_weights": RIVALS["he_weights"],
    "scaled_weights": RIVALS["scaled_weights"],
    "kolen_pollack": Rival(
        "Kolen-Pollack feedback", CEILING, f"{_HERE}.weight_decay", "decay", 3e-5, 1, learning=f"{_FEEDBACK}.kolen_pollack"
    ),
    "sign_symmetric": Rival("sign-symmetric feedback", CEILING, learning=f"{_FEEDBACK}.sign_symmetric"),
}


def resolve(name: str | None) -> Any:
    """Returns what a dotted name stands for, importing it; None for None."""
    return None if name is None else pkgutil.resolve_name(name)
