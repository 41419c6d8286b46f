"""Checks the data and the learner against each other, before anything is compiled."""

import functools
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ojax.datasets import Dataset
from ojax.datasets.dataset import Examples, Stream
from ojax.online import samples
from ojax.online.learner import Gradient, Learner, Sum
from ojax.online.plan import Plan, as_seeds
from ojax.online.run import initial_params, optimizer_of, step
from ojax.trees import abbreviated, first_line, named_leaves

_OF_TRAIN = {"diverged_at", "diverged_layer"}


def check_runs(hyper: Any, seeds: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the hyper-parameters and seeds of the runs as arrays.

    Raises:
      ValueError: If they do not have one value per run, or a value is not a number.
    """
    seeds = as_seeds(seeds)
    if np.ndim(seeds) != 1 or not len(seeds):
        raise ValueError(f"seeds must be a sequence of whole numbers, one per run, got {seeds!r}.")
    given = np.asarray(seeds)
    if not np.issubdtype(given.dtype, np.integer) or given.min() < 0 or given.max() >= 2**32:
        raise ValueError(f"seeds must be whole numbers from 0 to {2**32 - 1}, got {given.dtype} from {given.min()}.")
    arrays = {}
    for name, values in dict(hyper).items():
        array = np.asarray(values)
        if array.shape != given.shape:
            raise ValueError(
                f"Each hyper-parameter needs one value per run: there are {len(given)} seeds, and {name} has shape "
                f"{array.shape}. ojax.online.grid makes every combination."
            )
        if array.dtype.kind not in "biuf" or np.isnan(array).any():
            raise ValueError(f"The hyper-parameter {name} must be numbers, and none of them NaN, got {array.tolist()[:6]}.")
        arrays[name] = array.astype(np.float32)
    return arrays, given.astype(np.uint32)


class Shapes(NamedTuple):
    """The shapes of a data set, as a key for caches.

    Attributes:
      leaves: Shape and type of each array.
      structure: The structure of training and test data.
      floats: JAX's type of a Python float, float64 with `jax_enable_x64`.
    """

    leaves: tuple
    structure: Any
    floats: Any


def shapes(train: PyTree, test: PyTree) -> Shapes:
    """Returns the shapes and JAX's types of training and test data."""
    leaves, structure = jax.tree.flatten((train, test))
    arrays = (leaf if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) else np.asarray(leaf) for leaf in leaves)
    of_leaves = tuple((array.shape, np.dtype(jax.dtypes.canonicalize_dtype(array.dtype))) for array in arrays)
    return Shapes(of_leaves, structure, jnp.result_type(float))


def arguments(shapes: Shapes, plan: Plan, hyper_names: tuple[str, ...]) -> tuple[PyTree, PyTree, dict[str, Any]]:
    """Returns the shapes of a sample or a batch, of the test data, and of the hyper-parameters.

    Raises:
      ValueError: If a stream's functions fail.
    """
    leaves = [jax.ShapeDtypeStruct(*shape) for shape in shapes.leaves]
    train, test = jax.tree.unflatten(shapes.structure, leaves)
    try:
        sample, test = samples.shapes(plan, train, test)
    except Exception as error:  # A user's stream may raise any error; it is kept as the cause.
        if not isinstance(train, Stream):
            raise
        raise ValueError(f"The stream fails: {first_line(error)}.") from error
    return sample, test, dict.fromkeys(hyper_names, jax.ShapeDtypeStruct((), jnp.float32))


def check(learner: Learner, plan: Plan, hyper: tuple[str, ...], dataset: Dataset) -> None:
    """Raises ValueError, with one line, if the data, the plan and the learner do not fit together."""
    plan.check(dataset.num_train)
    if isinstance(dataset.train, Stream) and plan.epochs > 1:
        total = plan.num_train * plan.epochs
        raise ValueError(f"A stream has no epochs, got epochs={plan.epochs}: for as many samples give num_train={total}.")
    for split, tree in (("train", dataset.train), ("test", dataset.test)):
        for name, leaf in named_leaves(tree):
            _check_finite(f"{split}.{name}" if name else split, np.asarray(leaf))
    traced(learner, plan, hyper, shapes(dataset.train, dataset.test))
    if learner.check is not None:
        learner.check(samples.as_arrays(dataset))


# Settings of JAX that change a traced program; 64-bit types are in the shapes.
_SETTINGS = ("jax_default_matmul_precision", "jax_default_prng_impl", "jax_numpy_dtype_promotion")


class Traced(NamedTuple):
    """What tracing a learner shows.

    Attributes:
      sums: The shapes of a gradient's sums.
      scores: The shapes of the scores of an evaluation.
      digest: A digest of its programs, which tells learners apart.
    """

    sums: PyTree
    scores: PyTree
    digest: str


def traced(learner: Learner, plan: Plan, hyper_names: Iterable[str], shapes: Shapes) -> Traced:
    """Checks the learner's functions by tracing them on these shapes; cached, like the compiled programs.

    An evaluation with measures takes seconds to trace.
    """
    settings = tuple(str(getattr(jax.config, name, None)) for name in _SETTINGS)
    with jax.disable_jit(False):  # As in training.
        # Names are sorted as JAX sorts the keys of a dict.
        return _traced_once(learner, plan, tuple(sorted(hyper_names)), shapes, settings)


@functools.lru_cache(maxsize=128)  # A study traces all its learners before it trains the first one.
def _traced_once(
    learner: Learner, plan: Plan, hyper_names: tuple[str, ...], shapes: Shapes, settings: tuple[str, ...]
) -> Traced:
    del settings  # A key of the cache.
    sample, test, hyper = arguments(shapes, plan, hyper_names)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    made, init = _shapes_of("init", partial(initial_params, learner), hyper, seed)
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError(f"The learner's init must return (params, state), got a {type(made).__name__}.")
    params, state = made
    is_number = isinstance(sample, Examples) and getattr(sample.inputs, "ndim", None) == int(plan.batch_size > 1)
    advice = " If inputs are one number per sample, give them an axis of features: x[:, None]." if is_number else ""
    found, _ = _shapes_of("gradient", learner.gradient, params, state, sample, hyper, given=sample, advice=advice)
    if not isinstance(found, Gradient):
        raise ValueError(f"The learner's gradient must return an ojax.online.Gradient, got a {type(found).__name__}.")
    _check_sums(found.sums)
    _check_same("gradients", found.grads, "parameters", params)
    _check_same("new state", found.state, "state", state)
    scores, evaluate = _shapes_of("evaluate", learner.evaluate, params, state, test, hyper, given=test)
    if not isinstance(scores, dict) or not all(hasattr(score, "shape") for score in scores.values()):
        raise ValueError("The learner's evaluate must return a dict of arrays.")
    if twice := set(scores) & set(found.sums):
        raise ValueError(f"Scores and sums of a learner need different names; {', '.join(sorted(twice))} is both.")
    if reserved := _OF_TRAIN & (set(scores) | set(found.sums)):
        raise ValueError(f"A score cannot be called {', '.join(sorted(reserved))}: train reports one of that name.")

    def learn_once(params: PyTree, state: PyTree, sample: PyTree, hyper: Any) -> Any:
        opt_state = optimizer_of(learner, hyper).init(params)
        return step(learner, hyper, params, state, opt_state, sample)

    _, update = _shapes_of("optimizer", learn_once, params, state, sample, hyper)
    return Traced(found.sums, scores, samples.digest_of(init, update, evaluate))


def _check_finite(name: str, array: np.ndarray) -> None:
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return
    finite = np.isfinite(array)
    if not finite.all():
        where = tuple(int(index) for index in np.argwhere(~finite)[0])
        raise ValueError(
            f"The data are not finite: {name}{list(where)} is {array[where]}, one of {np.sum(~finite)} such numbers. Fix "
            "or drop these samples."
        )


def _check_sums(sums: Any) -> None:
    fits = isinstance(sums, dict) and all(isinstance(found, Sum) for found in sums.values())
    if not fits or any(jnp.shape(number) for found in sums.values() for number in found):
        raise ValueError("The sums of a gradient must be a dict of ojax.online.Sum(total, weight), two scalars each.")


def _shapes_of(name: str, function: Any, *arguments: Any, given: PyTree = None, advice: str = "") -> tuple[Any, Any]:
    """Returns the shapes of the result of one of the learner's functions, and its traced program."""
    try:
        program, result = jax.make_jaxpr(function, return_shape=True)(*arguments)
        return result, program
    except KeyError as error:
        place = 0 if name == "init" else -1
        if _is_of_hyper(error, function, arguments, place):
            hyper = ", ".join(arguments[place]) or "nothing"
            raise ValueError(f"The learner's {name} reads {error}, but hyper only has {hyper}.") from error
        raise ValueError(f"The learner's {name} fails: KeyError {error}, which is no key of hyper.") from error
    except Exception as error:  # A user's function may raise any error; it is kept as the cause.
        what = "test data" if name == "evaluate" else "a sample"
        fault = "fails" if given is None else f"cannot take {what} {_described(given)}"
        raise ValueError(f"The learner's {name} {fault}: {first_line(error)}.{advice}") from error


def _is_of_hyper(error: KeyError, function: Any, arguments: tuple, place: int) -> bool:
    """Returns whether a missing key was read from `hyper`: with the key there, the function gets further."""
    (key,), more = error.args, list(arguments)
    if not isinstance(key, str) or key in arguments[place]:
        return False
    more[place] = {**arguments[place], key: jax.ShapeDtypeStruct((), jnp.float32)}
    try:
        jax.eval_shape(function, *more)
    except KeyError as later:
        return later.args != error.args
    except Exception:  # It failed later, so it has read the key.
        return True
    return True


def _check_same(what: str, found: PyTree, as_what: str, wanted: PyTree) -> None:
    """Raises ValueError unless both have equal paths, shapes and types of leaves."""
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
