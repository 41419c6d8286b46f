"""Hebb's rule and the rules that bound or gate it."""

from typing import Unpack

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ojax.plasticity.layer import Layer
from ojax.plasticity.outer import Outer
from ojax.plasticity.rule import Options, check_rate, rule, takes_options


@takes_options
def hebb(rate: optax.ScalarOrSchedule, **options: Unpack[Options]) -> optax.GradientTransformationExtraArgs:
    """Adds Hebb's rule, `rate * x^T y` averaged over the batch, to the updates.

    Nothing bounds the weights. A negative rate makes it anti-Hebbian.

    Args, Returns, Raises: As :func:`ojax.oja`. A negative rate is allowed.

    References:
      Hebb, "The Organization of Behavior", 1949.
    """
    return rule(_hebb, rate, name="ojax.hebb", **options)


def _hebb(layer: Layer) -> Array:
    return layer.pre.T @ layer.post / len(layer.pre)


@takes_options
def reward_hebb(
    rate: optax.ScalarOrSchedule,
    *,
    signal: str = "reward",
    **options: Unpack[Options],
) -> optax.GradientTransformationExtraArgs:
    """Adds a reward-modulated Hebbian rule, `rate * r x^T y` averaged over the batch, to the updates.

    The reward r is a keyword of `tx.update(..., reward=r)`: one number, or one per sample. If the rule should learn from
    the difference to an expected reward, pass this difference.

    Args:
      rate: A float of either sign, a traced scalar, or an Optax schedule.
      signal: The keyword of the reward.
      **options: Those that every rule takes, see :func:`ojax.plasticity.rule`: `mask`, `in_axis`, `out_axis` (0 for Equinox
        and PyTorch), `batch_axis`, `axis_name` and `signals`.

    Returns, Raises: As :func:`ojax.plasticity.rule`.

    References:
      Fremaux and Gerstner, "Neuromodulated spike-timing-dependent plasticity, and theory of three-factor learning rules",
      Frontiers in Neural Circuits 9:85, 2016, R-STDP without its eligibility trace.
    """

    def change(layer: Layer) -> Outer:
        reward = jnp.reshape(jnp.asarray(layer.signals[signal], layer.post.dtype), (-1, 1))
        if len(reward) not in (1, len(layer.post)):
            raise ValueError(
                f"ojax.reward_hebb: {signal} must be one number or one per sample, {len(layer.post)}; got {len(reward)}."
            )
        return Outer(layer.pre, reward * layer.post)

    others = options.get("signals", ())
    options["signals"] = (signal, *([others] if isinstance(others, str) else others))
    return rule(change, rate, name="ojax.reward_hebb", **options)


@takes_options
def bcm(
    rate: optax.ScalarOrSchedule,
    *,
    threshold_rate: float = 0.1,
    **options: Unpack[Options],
) -> optax.GradientTransformationExtraArgs:
    """Adds the rule of Bienenstock, Cooper and Munro, `rate * x^T y (y - t)` averaged over the batch, to the updates.

    Each unit's threshold t is a running mean of its squared output: at each update it moves by `threshold_rate` towards the
    batch's mean of `y^2`, from 0. It bounds the weights where `threshold_rate` is large compared with `rate`.

    Args:
      rate: A float, a traced scalar, or an Optax schedule.
      threshold_rate: The rate of the threshold, from 0 to 1.
      **options: Those that every rule takes, see :func:`ojax.plasticity.rule`: `mask`, `in_axis`, `out_axis` (0 for Equinox
        and PyTorch), `batch_axis`, `axis_name` and `signals`.

    Returns, Raises: As :func:`ojax.plasticity.rule`. A negative rate is refused. The state is the thresholds, (n_out,).

    References:
      Bienenstock, Cooper, Munro, "Theory for the development of neuron selectivity", J. Neuroscience 2(1), 1982, with the
      threshold of Intrator and Cooper, "Objective function formulation of the BCM theory", Neural Networks 5, 1992.
    """
    check_rate("ojax.bcm", rate, lowest=0)

    def change(layer: Layer, threshold: Float[Array, " n_out"]) -> tuple[Outer, Float[Array, " n_out"]]:
        threshold = threshold + threshold_rate * (jnp.mean(layer.post**2, axis=0) - threshold)
        return Outer(layer.pre, layer.post * (layer.post - threshold[None, :])), threshold

    return rule(
        change,
        rate,
        init=lambda kernel: jnp.zeros(kernel.shape[1], kernel.dtype),
        name="ojax.bcm",
        **options,
    )
