"""The meta-learners of the experiments."""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from experiments.common.results import GUESS
from experiments.common.task import Setting
from experiments.tasks.registry import POOL, POOLS, resolve
from ojax import meta, online
from ojax.datasets import Dataset


def learner(setting: Setting, data: Dataset) -> online.Learner:
    """Returns the meta-learner of :mod:`experiments.tasks.episodes`. The hyper-parameter `pool` is an index into this axis.

    One program has the rules of all pools. Rules outside of a run's pool keep the coefficient 0.
    """
    pools = [POOLS[name] for name in setting["pool"]]
    rules = {name: resolve(rule) for name, rule in POOL.items() if any(name in pool for pool in pools)}
    is_in = {name: jnp.array([name in pool for pool in pools]) for name in rules}

    def coefficients(hyper: online.Hyper) -> dict[str, Array]:
        pool = hyper["pool"].astype(jnp.int32)
        return {name: jnp.where(is_in[name][pool], hyper[name], 0) for name in rules}

    widths = [np.shape(data.test)[-1], *setting["widths"], setting["outputs"]]
    shape = (len(widths) - 1,) if setting["coefficients"] == "by_layer" else ()
    start = {name: np.full(shape, setting["start"] if name == "pseudo_gradient" else 0.0) for name in rules}
    learned = meta.learner(
        meta.classifier(widths, rules, feedback=setting["feedback"], coefficients=coefficients),
        start,
        lambda hyper: optax.chain(optax.clip_by_global_norm(setting["clip"]), optax.adam(hyper["meta_rate"])),
        episodes=episodes_of(setting, slice(len(data.test) - setting["held_out"])),
        penalty=lambda hyper: hyper["l1"],
        num_test=setting["num_test"],
    )

    def evaluate(params: PyTree, state: PyTree, test: Array, hyper: online.Hyper) -> dict[str, Array]:
        # All runs need equal columns, so layers' columns are written in addition to their mean.
        scores = learned.evaluate(params, state, test, hyper)
        by_layer = {f"layer_{name}": value for name, value in params.items() if shape}
        means = {f"coefficient_{name}": jnp.mean(value) for name, value in params.items()}
        return scores | by_layer | means | guess_of(setting)

    return learned._replace(evaluate=evaluate)


def guess_of(setting: Setting) -> dict[str, Array]:
    """Returns the accuracy of a guess in an episode, as a score."""
    return {GUESS: jnp.float32(1 / setting["classes"])}


def episodes_of(setting: Setting, among: slice = slice(None)) -> meta.Episodes:
    """Returns the episodes of a setting."""
    return meta.Episodes(setting["classes"], setting["images"], setting["queries"], among)
