"""Schedules for the rate of a plasticity rule, in addition to Optax's own."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def fading(rate: float | Float[Array, ""], half_life: float | Float[Array, ""]) -> optax.Schedule:
    """Returns a schedule for a rule that is strong early and fades, as plasticity does after a critical period.

    Args:
      rate: The rate before the first update; a float or a traced scalar.
      half_life: Number of updates after which the rate has halved; `inf` keeps it constant. A float or a traced scalar.

    Returns:
      `rate * 2 ** (-count / half_life)` as a function of the count of updates, for the rate of any rule.

    Raises:
      ValueError: If the half-life is a Python number that is not above 0.

    Example:
      >>> import ojax
      >>> schedule = ojax.fading(1e-3, half_life=500)
      >>> [round(float(schedule(count)), 6) for count in (0, 500, 1000)]
      [0.001, 0.0005, 0.00025]
    """
    if isinstance(half_life, int | float) and not half_life > 0:
        raise ValueError(f"half_life must be above 0, got {half_life}.")
    return lambda count: rate * jnp.exp2(-jnp.asarray(count, jnp.float32) / half_life)
