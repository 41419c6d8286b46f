"""A meta-learner: it learns the hyper-parameters of another learner, and its samples are whole episodes of that learner."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree
from numpy.typing import ArrayLike

from ojax.datasets import Dataset, Examples, Shared
from ojax.online.learner import Gradient, Hyper, Learner, Sum
from ojax.online.run import Learned, learn


class Episodes(NamedTuple):
    """Draws episodes from labelled images, on the device.

    Attributes:
      num_classes: Classes per episode, M.
      num_train: Training samples per class, K, learned sequentially in a random order.
      num_query: Query samples per class, Q, on which the trained network is evaluated.
      among: Classes of the data to draw from; all by default.
    """

    num_classes: int = 5
    num_train: int = 50
    num_query: int = 10
    among: slice = slice(None)

    def draw(self, key: PRNGKeyArray, images: Float[Array, "classes each n"]) -> tuple[Examples, Examples]:
        """Returns an episode's training and query samples; a sample's label is the number of its class in `among`."""
        images = images[self.among]
        if len(images) < self.num_classes:
            raise ValueError(f"An episode takes {self.num_classes} classes; there are {len(images)} in {self.among}.")
        of_classes, of_images, of_order = jax.random.split(key, 3)
        classes = jax.random.permutation(of_classes, len(images))[: self.num_classes]
        size, each = self.num_train + self.num_query, images.shape[1]
        keys = jax.random.split(of_images, self.num_classes)
        rows = jax.vmap(lambda key: jax.random.permutation(key, each)[:size])(keys)
        drawn = Examples(images[classes[:, None], rows], jnp.broadcast_to(classes[:, None], rows.shape))
        flat = [
            jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), part)
            for part in (
                Examples(*(leaf[:, : self.num_train] for leaf in drawn)),
                Examples(*(leaf[:, self.num_train :] for leaf in drawn)),
            )
        ]
        order = jax.random.permutation(of_order, self.num_classes * self.num_train)
        return Examples(*(leaf[order] for leaf in flat[0])), flat[1]

    def of(self, dataset: Dataset, count: int) -> Dataset:
        """Returns a meta-learner's data: images by class, for `count` episodes.

        Args:
          dataset: Inputs and labels; training and test data each need enough images per class for an episode.
          count: Number of episodes per run; each is a new random draw.

        Raises:
          ValueError: If there are fewer classes in `among`, or fewer images, than an episode needs.
        """
        train, test = (self._by_class(part, split) for part, split in ((dataset.train, "training"), (dataset.test, "test")))
        numbers = np.arange(count, dtype=np.int32)
        return dataset._replace(train={"episode": numbers, "images": Shared(train)}, test=test)

    def _by_class(self, examples: Examples, split: str) -> np.ndarray:
        counts = np.bincount(examples.targets)
        counts = counts[counts > 0]
        among = len(counts[self.among])
        if among < self.num_classes or np.min(counts) < self.num_train + self.num_query:
            needed = f"{self.num_train + self.num_query} images of {self.num_classes} classes"
            chosen = "" if among == len(counts) else f" ({among} of them in {self.among})"
            raise ValueError(
                f"An episode takes {needed}; the {split} data have {len(counts)} classes{chosen} of "
                f"{np.min(counts)} to {np.max(counts)} images."
            )
        rows = np.argsort(examples.targets, kind="stable")
        starts = np.cumsum([0, *counts[:-1]])
        return np.asarray(examples.inputs)[rows[starts[:, None] + np.arange(np.min(counts))]]


# 5 classes, 50 training and 10 query images of each.
PUBLISHED = Episodes()


def learner(
    inner: Learner,
    initial: Mapping[str, ArrayLike],
    optimizer: Callable[[Hyper], optax.GradientTransformation],
    *,
    episodes: Episodes = PUBLISHED,
    penalty: Callable[[Hyper], Float[Array, ""]] = lambda hyper: jnp.float32(0),
    num_test: int = 10,
) -> Learner:
    """Returns a learner of another learner's hyper-parameters: its rates, or the coefficients of its rules.

    Its sample is an episode: the inner learner starts with new weights, and learns online from the episode's training
    samples by :func:`ojax.online.learn`. The meta-loss is the loss on the query samples, differentiated through this whole
    training, plus the penalty times the sum of the absolute coefficients.

    A seed has the same episodes for any inner learner. The sums are the inner learner's scores on the query samples of each
    episode, before the meta-update: `train_accuracy`, `train_loss`, means if they are vectors; and `meta_gradient`, the
    norm of the meta-gradient. The scores are the inner learner's, means over `num_test` episodes of the test data:
    `test_accuracy`, `test_loss`; and `coefficient_NAME` for each learned number.

    A training episode whose loss or gradient is not finite is lost: only the penalty's part of its gradient is used, and it
    does not count in `train_loss`. The shares of lost episodes are `train_lost` and, by the loss alone, `test_lost`. A
    score that is not finite is left out of its mean, which is NaN if no score is finite. So a loss is the mean over finite
    episodes. An accuracy is the mean over all: logits that are not finite count as wrong.

    Args:
      inner: The inner learner, whose numbers in `initial` are learned. The gradient of its `test_loss` must be the true
        one, see :func:`ojax.online.learn`.
      initial: The initial value of each learned number, by name.
      optimizer: Maps the meta-learner's own hyper-parameters to the optimizer of the learned numbers: `lambda hyper:
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(hyper["meta_rate"]))`.
      episodes: Draws the episodes, from data of :meth:`Episodes.of`.
      penalty: Maps the meta-learner's own hyper-parameters to the weight of the L1 norm.
      num_test: Number of episodes per evaluation.

    Returns:
      A learner for :func:`ojax.online.train`.

    Source: Shervani-Tabar and Rosenbaum 2023, https://doi.org/10.1038/s41467-023-37562-1, algorithm 1 and equation 6; there
    without clipping.
    """

    def init(key: PRNGKeyArray, hyper: Hyper) -> tuple[PyTree, PyTree]:
        del hyper
        train, test = jax.random.split(key)
        return {name: jnp.asarray(value, jnp.float32) for name, value in initial.items()}, {"train": train, "test": test}

    def scores_of(params: PyTree, hyper: Hyper, key: PRNGKeyArray, images: Array) -> dict[str, Array]:
        """Returns the inner learner's scores on an episode's query samples, after its training."""
        numbers = {**hyper, **params}
        learned, query = episode(inner, numbers, key, images, episodes)
        return inner.evaluate(learned.params, learned.state, query, numbers)

    def gradient(params: PyTree, state: PyTree, sample: PyTree, hyper: Hyper) -> Gradient:
        key = jax.random.fold_in(state["train"], sample["episode"])

        def meta_loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            scores = scores_of(params, hyper, key, sample["images"].arrays)
            return scores["test_loss"], jax.lax.stop_gradient(scores)

        grads, scores = jax.grad(meta_loss, has_aux=True)(params)
        norm, weight = optax.tree.norm(grads), penalty(hyper)
        lost = ~(jnp.isfinite(scores["test_loss"]) & jnp.isfinite(norm))
        means = {name.replace("test_", "train_"): jnp.mean(score) for name, score in scores.items()}
        means |= {"meta_gradient": norm, "train_loss": jnp.where(lost, jnp.nan, means["train_loss"])}
        sums = {name: _if_finite(mean) for name, mean in means.items()}
        sums["train_lost"] = Sum(lost.astype(jnp.float32), jnp.float32(1))
        # The penalty's gradient is used in any case: it shrinks coefficients that lose episodes.
        grads = jax.tree.map(lambda grad, param: jnp.where(lost, 0, grad) + weight * jnp.sign(param), grads, params)
        return Gradient(grads, {}, state, sums)

    def evaluate(params: PyTree, state: PyTree, test: Array, hyper: Hyper) -> dict[str, Array]:
        keys = jax.random.split(state["test"], num_test)
        scores = jax.lax.map(lambda key: scores_of(params, hyper, key, test), keys)
        found = {
            f"test_{name.removeprefix('test_')}": jnp.mean(score, axis=0, where=jnp.isfinite(score))
            for name, score in scores.items()
        }
        found["test_lost"] = jnp.mean(~jnp.isfinite(scores["test_loss"]), dtype=jnp.float32)
        return found | {f"coefficient_{name}": value for name, value in params.items()}

    return Learner(init, gradient, optimizer, evaluate)


def _if_finite(number: Float[Array, ""]) -> Sum:
    """Returns a sum over the number if it is finite, else an empty sum."""
    finite = jnp.isfinite(number)
    return Sum(jnp.where(finite, number, 0), finite.astype(jnp.float32))


def episode(
    inner: Learner, coefficients: Mapping[str, Array], key: PRNGKeyArray, images: Array, episodes: Episodes
) -> tuple[Learned, Examples]:
    """Returns the inner learner after the episode of a key, and the episode's query samples."""
    of_data, of_weights = jax.random.split(key)
    train, query = episodes.draw(of_data, images)
    params, state = inner.init(of_weights, coefficients)
    steps = len(train.targets)
    # A divisor near the square root, which needs least memory; a shorter last segment would be compiled a second time.
    segment = min((size for size in range(1, steps + 1) if steps % size == 0), key=lambda size: abs(size - steps**0.5))
    return learn(inner, coefficients, params, state, train, segment=segment), query
