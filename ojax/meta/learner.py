"""A meta-learner: what it learns are numbers of another learner, and its samples are that learner's whole episodes."""

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
    """How episodes are drawn from labelled images, on the device.

    Attributes:
      num_classes: Classes of an episode, M.
      num_train: Training samples a class, K; they are learned from one after the other, shuffled.
      num_query: Query samples a class, Q, by which what was learned is judged.
      among: Which classes of the data it draws from; all by default.
    """

    num_classes: int = 5
    num_train: int = 50
    num_query: int = 10
    among: slice = slice(None)

    def draw(self, key: PRNGKeyArray, images: Float[Array, "classes each n"]) -> tuple[Examples, Examples]:
        """The training and the query samples of an episode; a sample's label is the number of its class in `among`."""
        images = images[self.among]
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
        """Images as a meta-learner takes them, for that many episodes.

        Args:
          dataset: Inputs and labels; each class needs images for an episode among the training and the test data.
          count: Number of episodes of a run; each is drawn anew.

        Raises:
          ValueError: If there are fewer classes or images than an episode needs.
        """
        train, test = (self._by_class(part, split) for part, split in ((dataset.train, "training"), (dataset.test, "test")))
        numbers = np.arange(count, dtype=np.int32)
        return dataset._replace(train={"episode": numbers, "images": Shared(train)}, test=test)

    def _by_class(self, examples: Examples, split: str) -> np.ndarray:
        counts = np.bincount(examples.targets)
        counts = counts[counts > 0]
        if len(counts) < self.num_classes or np.min(counts) < self.num_train + self.num_query:
            needed = f"{self.num_train + self.num_query} images of {self.num_classes} classes"
            raise ValueError(
                f"An episode takes {needed}; the {split} data have {len(counts)} classes of {np.min(counts)} to "
                f"{np.max(counts)} images."
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
    """A learner of another learner's numbers: its rates, or the coefficients of its rules.

    Its sample is an episode: the inner learner starts anew, with new weights, and learns online from the episode's training
    samples, :func:`ojax.online.learn`. The loss on the query samples, differentiated through all of that learning, is the
    meta-loss. To its gradient comes that of the penalty times the sum of the absolute coefficients.

    A seed has the same episodes whatever the inner learner. Its sums are the inner learner's scores on the query samples of
    each episode, before the update that it causes: `train_accuracy`, `train_loss`, means of those that are vectors; and
    `meta_gradient`, the norm of its gradient. Its scores are those of the inner learner, means over `num_test` episodes
    drawn from the test data: `test_accuracy`, `test_loss`; and `coefficient_NAME` of each number.

    A training episode whose loss or gradient is not finite is lost: of its gradient only the penalty's part is left, it
    does not count in `train_loss`, and the learner goes on. The shares of such episodes are `train_lost` and, by the loss
    alone, `test_lost`. A score that is not finite is left out of its mean, which is NaN if none is finite. So a loss is the
    mean over finite episodes; an accuracy, in which logits that are not finite are wrong, is the mean over all.

    Args:
      inner: Its numbers are what is learned, beside the meta-learner's own. The gradient of its `test_loss` must be the
        true one, see :func:`learn`.
      initial: The first value of each number, by name.
      optimizer: From the meta-learner's own numbers to what moves the coefficients:
        `lambda hyper: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(hyper["meta_rate"]))`.
      episodes: How they are drawn, from data of :meth:`Episodes.of`.
      penalty: From the meta-learner's numbers to the weight of the L1 norm.
      num_test: Number of episodes of an evaluation.

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
        """What the inner learner scores on an episode's query samples, when it has learned."""
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
        # The penalty is known in any case, and draws coefficients back from where episodes are lost.
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
    """The number once, or nothing counted."""
    finite = jnp.isfinite(number)
    return Sum(jnp.where(finite, number, 0), finite.astype(jnp.float32))


def episode(
    inner: Learner, coefficients: Mapping[str, Array], key: PRNGKeyArray, images: Array, episodes: Episodes
) -> tuple[Learned, Examples]:
    """The inner learner after an episode of that key, and the episode's query samples."""
    of_data, of_weights = jax.random.split(key)
    train, query = episodes.draw(of_data, images)
    params, state = inner.init(of_weights, coefficients)
    steps = len(train.targets)
    # Near the square root, where a gradient needs least memory; a shorter last segment would be compiled a second time.
    segment = min((size for size in range(1, steps + 1) if steps % size == 0), key=lambda size: abs(size - steps**0.5))
    return learn(inner, coefficients, params, state, train, segment=segment), query
