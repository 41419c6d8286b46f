"""The number and order of a run's samples, and the times of its evaluations."""

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

# Samples between two evaluations: a 32-bit sum of ones stops growing at this number.
MOST_SAMPLES = 2**24


class Plan(NamedTuple):
    """The number and order of a run's samples, and the times of its evaluations.

    Attributes:
      num_train: Number of training samples of each run.
      evaluate_at: Counts of samples seen at which to evaluate, ascending multiples of `batch_size`; the last ends the run.
      epochs: Number of passes over the samples.
      batch_size: Samples per step; 1 is online learning. A partial last batch of an epoch is dropped.
      shuffle: True draws the samples by the run's seed without replacement, and shuffles them again in each epoch. False
        reads the data in their own order, from the first sample in each epoch. It has no effect on a
        :class:`ojax.datasets.Stream`, which has its own order.
      random_start: With `shuffle=False`, whether the seed draws the first sample of a run's epochs. Runs then train on
        different stretches of the data.
    """

    num_train: int
    evaluate_at: tuple[int, ...]
    epochs: int = 1
    batch_size: int = 1
    shuffle: bool = True
    random_start: bool = False

    @classmethod
    def evenly(
        cls,
        num_evaluations: int,
        *,
        num_train: int,
        epochs: int = 1,
        batch_size: int = 1,
        shuffle: bool = True,
        random_start: bool = False,
    ) -> "Plan":
        """Returns a plan with that many evenly spaced evaluations, each after whole batches, the last at the end.

        Example:
          >>> from ojax import online
          >>> online.Plan.evenly(4, num_train=2000).evaluate_at
          (500, 1000, 1500, 2000)
        """
        total = num_train // batch_size * epochs
        counts = np.unique(np.linspace(0, total, min(num_evaluations, total) + 1).round().astype(int))
        evaluate_at = tuple(int(count) * batch_size for count in counts if count > 0)
        return cls(num_train, evaluate_at, epochs, batch_size, shuffle, random_start)

    def normalized(self) -> "Plan":
        """Returns the plan with a tuple for `evaluate_at`, which may be a list, an array or a single number.

        Raises:
          ValueError: If one of the numbers is not a whole number.
        """
        try:
            counts = tuple(operator.index(count) for count in np.atleast_1d(np.asarray(self.evaluate_at)).tolist())
            sizes: Any = {name: operator.index(getattr(self, name)) for name in ("num_train", "epochs", "batch_size")}
        except TypeError:
            raise ValueError(f"A plan needs whole numbers of samples, got {self}.") from None
        return self._replace(evaluate_at=counts, **sizes)

    def check(self, train_size: int) -> None:
        """Raises ValueError if the plan does not fit a data set of `train_size` training samples."""
        if not 1 <= self.num_train <= train_size:
            raise ValueError(f"num_train must be from 1 to the data set's {train_size} samples, got {self.num_train}.")
        if not 1 <= self.batch_size <= self.num_train:
            raise ValueError(f"batch_size must be from 1 to num_train={self.num_train}, got {self.batch_size}.")
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}.")
        if self.shuffle and self.random_start:
            raise ValueError("random_start goes with shuffle=False: shuffled samples have no start to draw.")
        total = self.num_train // self.batch_size * self.batch_size * self.epochs
        counts = np.asarray(self.evaluate_at, np.int64)
        rising = len(counts) > 0 and counts[0] >= 0 and np.all(np.diff(counts) > 0)
        if not rising or counts[-1] > total or np.any(counts % self.batch_size):
            raise ValueError(
                f"evaluate_at must be ascending multiples of batch_size={self.batch_size} up to {total}, got "
                f"{self.evaluate_at}."
            )
        if np.max(np.diff(counts, prepend=0)) > MOST_SAMPLES:
            raise ValueError(
                f"evaluate_at must have at most {MOST_SAMPLES:,} samples between two evaluations, since sums over more are "
                f"not exact in 32 bits; got {self.evaluate_at}."
            )


def as_seeds(seeds: Any) -> Any:
    """Returns `range(seeds)` for a single number, and any other value unchanged."""
    is_number = np.ndim(seeds) == 0 and isinstance(seeds, int | np.integer) and not isinstance(seeds, bool)
    return range(int(seeds)) if is_number else seeds


def sample_order(plan: Plan, train_size: int, seed: Int[Array, ""]) -> Int[Array, "steps batch"]:
    """Returns the indices of a seed's training samples in their order, see :class:`Plan`."""
    key = jax.random.fold_in(jax.random.key(seed), 1)
    if plan.shuffle:
        chosen = jax.random.permutation(key, train_size)[: plan.num_train]
        keys = jax.random.split(key, plan.epochs)
        later = jax.vmap(lambda key: jax.random.permutation(key, chosen))(keys[1:])
        order = jnp.concatenate([chosen[None], later])  # The first epoch keeps the order of the draw.
    else:
        last = train_size - plan.num_train if plan.random_start else 0
        start = jax.random.randint(key, (), 0, last + 1, jnp.int32)  # Else x64 would draw another one.
        order = jnp.broadcast_to(start + jnp.arange(plan.num_train), (plan.epochs, plan.num_train))
    steps = plan.num_train // plan.batch_size
    return order[:, : steps * plan.batch_size].reshape(-1, plan.batch_size).astype(jnp.int32)
