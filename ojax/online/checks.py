"""Checks of the data and the learner against each other, before anything is compiled."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ojax.datasets import Dataset
from ojax.online import windows
from ojax.online.first_layer import FirstLayer
from ojax.online.learner import Learner
from ojax.online.run import initial_params
from ojax.online.schedule import Schedule
from ojax.trees import abbreviated, first_line, named_leaves

_OF_TRAIN = {"diverged_at", "diverged_layer"}


def check(learner: Learner, schedule: Schedule, hyper: tuple[str, ...], dataset: Dataset) -> FirstLayer | None:
    """Raises ValueError, in one line, where the data or the learner will not do.

    Returns:
      The learner's first layer if it can be carried over windows of samples, see :mod:`ojax.online.windows`.
    """
    schedule.check(dataset.num_train)
    for split, tree in (("train", dataset.train), ("test", dataset.test)):
        for name, leaf in named_leaves(tree):
            _check_finite(f"{split}.{name}" if name else split, np.asarray(leaf))
    leaves, structure = jax.tree.flatten((dataset.train, dataset.test))
    shapes = tuple(
        (np.shape(leaf), np.dtype(jax.dtypes.canonicalize_dtype(leaf.dtype))) for leaf in map(np.asarray, leaves)
    )
    layer = _first_layer(learner, schedule, hyper, shapes, structure)
    if learner.check is not None:
        learner.check(dataset)
    return layer


@functools.lru_cache(maxsize=8)
def _first_layer(
    learner: Learner, schedule: Schedule, hyper_names: tuple[str, ...], shapes: tuple, structure: Any
) -> FirstLayer | None:
    """Traces the learner's functions on those shapes; remembered, as are the programs made of them."""
    train, test = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    batch = () if schedule.batch_size == 1 else (schedule.batch_size,)
    sample = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*batch, *leaf.shape[1:]), leaf.dtype), train)
    hyper = dict.fromkeys(hyper_names, jax.ShapeDtypeStruct((), jnp.float32))
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    params, state = jax.eval_shape(partial(initial_params, learner), hyper, seed)
    found = _traced(learner.gradient, params, state, sample, hyper, what=f"learn from a sample {_described(sample)}")
    scores = _traced(learner.evaluate, params, state, test, hyper, what=f"be evaluated on test data {_described(test)}")
    _check_same("gradients", found.grads, "parameters", params)
    _check_same("new state", found.state, "state", state)
    twice = (set(scores) & set(found.sums)) | (_OF_TRAIN & (set(scores) | set(found.sums)))
    if twice:
        raise ValueError(f"Scores and sums of a learner need different names; {', '.join(sorted(twice))} occurs twice.")
    return windows.find(learner, schedule, hyper, sample)


def _check_finite(name: str, array: np.ndarray) -> None:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(index) for index in np.argwhere(~finite)[0])
        raise ValueError(
            f"The data are not finite: {name}{list(where)} is {array[where]}, one of {np.sum(~finite)} such numbers. "
            "Mend or leave out these samples."
        )


def _traced(function: Any, *arguments: Any, what: str) -> Any:
    try:
        return jax.eval_shape(function, *arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The learner cannot {what}: {first_line(error)}.") from error


def _check_same(what: str, found: PyTree, as_what: str, wanted: PyTree) -> None:
    """Both have the same leaves, of the same shapes and types."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (found, wanted)]
    sides = [
        {path: f"{leaf.dtype.name}{list(leaf.shape)}" for path, leaf in named_leaves(tree)} for tree in (found, wanted)
    ]
    if structures[0] == structures[1] and sides[0] == sides[1]:
        return
    differing = sorted(path for path in sides[0].keys() | sides[1].keys() if sides[0].get(path) != sides[1].get(path))
    raise ValueError(
        f"The learner's {what} must have the structure, shapes and types of its {as_what}; they differ at "
        f"{abbreviated(differing) or 'the containers'}."
    )


def _described(tree: PyTree) -> str:
    shapes = [f"{name} {leaf.dtype.name}{list(leaf.shape)}".strip() for name, leaf in named_leaves(tree)]
    return f"of {abbreviated(shapes)}" if shapes else "without arrays"
