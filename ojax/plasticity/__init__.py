"""Local plasticity rules as Optax gradient transformations.

Each rule *adds* its own change of the weights to the updates that come in. So it comes **after** the scaled optimizer, and
its rate is independent of the optimizer's::

    tx = optax.chain(optax.sgd(1e-3), ojax.oja(1e-4))
    updates, state = tx.update(grads, state, params, activity=activity)

`activity` is a pytree that holds an :class:`ojax.Activity`, a layer's input and output, at the path of each plastic kernel.
All arguments are pytrees of arrays; no neural-network library is assumed.

:func:`rule` makes every rule, custom ones too.

References:
  Shervani-Tabar, Mirhoseini, Rosenbaum, "Oja's plasticity rule overcomes several challenges of training neural networks
  under biological constraints", https://arxiv.org/abs/2408.08408
"""

from ojax.plasticity.hebbian import bcm, hebb, reward_hebb
from ojax.plasticity.homeostasis import homeostasis
from ojax.plasticity.layer import Layer
from ojax.plasticity.oja import OjaSGD, oja, oja_per_neuron, oja_sgd, oja_tied, sanger
from ojax.plasticity.outer import Outer
from ojax.plasticity.pool import POOL, pool
from ojax.plasticity.rule import RuleState, rule

__all__ = [
    "POOL",
    "Layer",
    "OjaSGD",
    "Outer",
    "RuleState",
    "bcm",
    "hebb",
    "homeostasis",
    "oja",
    "oja_per_neuron",
    "oja_sgd",
    "oja_tied",
    "pool",
    "reward_hebb",
    "rule",
    "sanger",
]
