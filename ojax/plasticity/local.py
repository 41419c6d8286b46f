"""The states that a rule stores for its kernels, in trees of the parameters' structure."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ojax.activity import is_masked
from ojax.plasticity.shapes import Axes, as_matrix
from ojax.trees import named_leaves

Init = Callable[[Array], PyTree]


def initial(name: str, params: PyTree, axes: Axes, init: Init) -> PyTree:
    """Returns the initial states of all kernels: the result of `init`, with a tree of parameters in place of each array."""
    structure: Any = structure_of(name, params, axes, init)
    leaves = jax.tree.leaves(params, is_leaf=is_masked)
    treedef: Any = jax.tree.structure(params, is_leaf=is_masked)
    paths = [path for path, _ in named_leaves(params, is_masked)]
    of_each = []
    for path, leaf in zip(paths, leaves, strict=True):
        if is_masked(leaf):
            of_each.append([leaf] * structure.num_leaves)
        elif not axes.is_kernel(leaf):
            of_each.append([jnp.zeros([]) for _ in range(structure.num_leaves)])  # JAX donates no array twice.
        else:
            of_each.append(structure.flatten_up_to(_of_kernel(name, path, leaf, axes, init)))
    columns = list(zip(*of_each, strict=True)) if of_each else [()] * structure.num_leaves
    unflatten: Any = treedef.unflatten
    return structure.unflatten([unflatten(column) for column in columns])


def structure_of(name: str, params: PyTree, axes: Axes, init: Init) -> Any:
    """Returns the structure of a kernel's state."""
    kernels = [(path, leaf) for path, leaf in named_leaves(params, is_masked) if axes.is_kernel(leaf)]
    if not kernels:  # optax.tree.map_params has a placeholder for the parameters.
        return jax.tree.structure(jax.eval_shape(init, jax.ShapeDtypeStruct((1, 1), jnp.float32)))
    path, kernel = kernels[0]
    return jax.tree.structure(jax.eval_shape(lambda kernel: _of_kernel(name, path, kernel, axes, init), kernel))


def by_path(name: str, states: PyTree, params: PyTree, axes: Axes, init: Init | None) -> dict[str, PyTree]:
    """Returns the state of each kernel by its path; empty for a rule without a state."""
    if init is None:
        return {}
    structure = structure_of(name, params, axes, init)
    columns = [dict(named_leaves(column, is_masked)) for column in structure.flatten_up_to(states)]
    kernels = [path for path, leaf in named_leaves(params, is_masked) if not is_masked(leaf) and axes.is_kernel(leaf)]
    return {
        path: structure.unflatten([column[path] for column in columns])
        for path in kernels
        if all(path in column for column in columns)
    }


def replaced(states: PyTree, new: Mapping[str, PyTree]) -> PyTree:
    """Returns the states with the new states of some kernels, which are given by path."""
    if not new:
        return states
    structure: Any = jax.tree.structure(next(iter(new.values())))
    flat = {path: structure.flatten_up_to(state) for path, state in new.items()}
    columns = []
    for number, column in enumerate(structure.flatten_up_to(states)):
        leaves = [flat[path][number] if path in flat else leaf for path, leaf in named_leaves(column, is_masked)]
        columns.append(jax.tree.unflatten(jax.tree.structure(column, is_leaf=is_masked), leaves))
    return structure.unflatten(columns)


def axes_of_outputs(init: Init, kernel: Float[Array, "n_in n_out"], groups: int, name: str, path: str) -> PyTree:
    """Returns the axis of each array of a kernel's state that has one entry per output unit.

    Raises:
      ValueError: If an array has no such axis or several, so that the kernel's groups cannot divide it.
    """
    (n_in, n_out), dtype = kernel.shape, kernel.dtype
    whole, part = (jax.eval_shape(init, jax.ShapeDtypeStruct((n_in, n), dtype)) for n in (n_out, n_out // groups))

    def axis_of(whole: jax.ShapeDtypeStruct, part: jax.ShapeDtypeStruct) -> int:
        differing = [axis for axis, sizes in enumerate(zip(whole.shape, part.shape, strict=True)) if sizes[0] != sizes[1]]
        if len(differing) != 1:
            raise ValueError(
                f"{name}: {path} has {groups} groups, and its state of shape {whole.shape} cannot be divided among them: "
                "let init return one entry per output unit, along an axis of size kernel.shape[1]."
            )
        return differing[0]

    return jax.tree.map(axis_of, whole, part)


def _of_kernel(name: str, path: str, param: Array, axes: Axes, init: Init) -> PyTree:
    for _ in axes.batch:
        init = jax.vmap(init)
    return init(as_matrix(name, path, axes, param))
