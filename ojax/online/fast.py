"""Decides whether a training updates its first layer in windows of samples."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ojax import _compat
from ojax.datasets import Dataset
from ojax.datasets.dataset import is_shared
from ojax.online import checks, first_layer, windows
from ojax.online.first_layer import FirstLayer
from ojax.online.learner import Hyper, Learner
from ojax.online.plan import Plan
from ojax.online.run import initial_params
from ojax.plasticity import OjaSGD

Windows = Literal["auto", "require", "off"]


class FastPath(NamedTuple):
    """The method by which :func:`ojax.online.train` updates the first layer; printing it explains the choice.

    Attributes:
      layer: The first layer, updated in windows of samples (see :mod:`ojax.online.windows`). None if each sample updates
        every kernel as a whole, which takes longer and has equal results up to rounding.
      reason: The reason for the choice.
    """

    layer: FirstLayer | None
    reason: str

    def __str__(self) -> str:
        how = "each sample updates every kernel" if self.layer is None else f"windows of {windows.SIZE} samples"
        return f"{how}: {self.reason}"


def fast_path(
    learner: Learner, hyper: Sequence[str], dataset: Dataset, plan: Plan, *, windows: Windows = "auto"
) -> FastPath:
    """Returns the method by which :func:`ojax.online.train` updates a learner's first layer, and the reason.

    Args:
      learner: The learner.
      hyper: Names of its hyper-parameters.
      dataset: The training and test data.
      plan: Number of samples, batch size and evaluations.
      windows: `auto` uses windows if they are known to be exact for the learner, `require` raises an error if they are not,
        `off` never uses them.

    Returns:
      The fast path, or the reason why there is none.

    Raises:
      ValueError: If `windows` is not one of these, or is `require` and the learner cannot be trained in windows.
    """
    if windows not in ("auto", "require", "off"):
        raise ValueError(f'windows must be "auto", "require" or "off", got {windows!r}.')
    found = FastPath(None, 'windows="off"')
    if windows != "off":
        found = _found(learner, tuple(hyper), checks.shapes(dataset.train, dataset.test), plan.normalized())
    if windows == "require" and found.layer is None:
        raise ValueError(f'windows="require", but {found}. Pass windows="auto" to train all the same.')
    return found


@functools.lru_cache(maxsize=8)
def _found(learner: Learner, hyper_names: tuple[str, ...], shapes: checks.Shapes, plan: Plan) -> FastPath:
    """Finds the fast path; cached, like the compiled programs."""
    sample, _, hyper = checks.arguments(shapes, plan, hyper_names)
    if plan.batch_size != 1:
        return FastPath(None, f"a batch has {plan.batch_size} samples")
    if any(is_shared(node) for node in jax.tree.leaves(sample, is_leaf=is_shared)):
        return FastPath(None, "the data are passed whole to every step (ojax.datasets.Shared)")
    kind, mask = _kind_and_mask(learner, hyper)
    if not issubclass(kind, OjaSGD):
        return FastPath(None, "the optimizer is not ojax.oja_sgd alone, with scalar rates")
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    params, state = jax.eval_shape(functools.partial(initial_params, learner), hyper, seed)
    try:
        layer = first_layer.find(learner, params, state, sample, hyper)
    except _compat.UnknownProgramError as error:
        warnings.warn(f"{error}, so a first layer cannot be found: training is slower, with equal results.", stacklevel=3)
        return FastPath(None, str(error))
    if layer is None:
        return FastPath(None, "no kernel is only used to multiply the sample's own vector")
    if callable(mask) and _masked(mask, params) != _masked(mask, windows.with_rows(layer, params)):
        return FastPath(None, f"the mask of ojax.oja_sgd depends on the shape of {layer.kernel}")
    return FastPath(layer, f"{layer.kernel} multiplies the sample's own vector, and the optimizer is ojax.oja_sgd")


def _kind_and_mask(learner: Learner, hyper: Hyper) -> tuple[type, Any]:
    """Returns the type of the optimizer, and its mask; a stored transformation would leak traced hyper-parameters."""
    found: list[tuple[type, Any]] = []

    def look(hyper: Hyper) -> None:
        tx = learner.optimizer(hyper)
        found.append((type(tx), getattr(tx, "mask", None)))

    jax.eval_shape(look, hyper)
    return found[0]


def _masked(mask: Callable[[PyTree], PyTree], params: PyTree) -> list[Any]:
    """Returns the leaves of a mask of parameters, which are given as shapes."""
    found: list[PyTree] = []
    jax.eval_shape(lambda params: found.append(mask(params)), params)
    return jax.tree.leaves(found)
