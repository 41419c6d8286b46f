"""Paths of the leaves of a pytree, spelled in one way throughout ojax: `layers/0/kernel`."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax


def path_of(keys: tuple) -> str:
    """The path of a leaf from its JAX key path, the same for a dict, a list, an object and a Flax state."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Each leaf with its path, in the order of `jax.tree.leaves`."""
    return [(path_of(keys), leaf) for keys, leaf in leaves_with_keys(tree, is_leaf)]


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Returns the tree of `function(path, leaf, *leaves of the rest)`; all trees have one structure."""
    columns = [[leaf for _, leaf in named_leaves(each)] for each in (tree, *rest)]
    paths = [path for path, _ in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), list(map(function, paths, *columns)))


def leaves_with_keys(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[tuple, Any]]:
    """Each leaf with its JAX key path, without the key that Flax's boxes add, variables and partitioned parameters."""
    found: list[tuple[tuple, Any]] = []
    for keys, node in jax.tree.leaves_with_path(tree, is_leaf=lambda node: is_box(node) or bool(is_leaf and is_leaf(node))):
        if not is_box(node) or (is_leaf and is_leaf(node)):
            found.append((keys, node))
            continue
        # One level, which is the key to leave out, and then whatever is in the box.
        children = jax.tree.leaves_with_path(node, is_leaf=lambda child, box=node: child is not box)
        for _, child in children:
            found += [((*keys, *inner), leaf) for inner, leaf in leaves_with_keys(child, is_leaf)]
    return found


def is_box(node: Any) -> bool:
    """Whether it is a variable of NNX or a partitioned parameter of Linen, whose contents are at a key of their own."""
    nnx, meta = (sys.modules.get(name) for name in ("flax.nnx", "flax.core.meta"))  # Without Flax there are none.
    return bool((nnx and isinstance(node, nnx.Variable)) or (meta and isinstance(node, meta.AxisMetadata)))


def abbreviated(paths: Iterable[str], limit: int = 6) -> str:
    """The first few paths, for an error message."""
    paths = list(paths)
    return ", ".join(paths[:limit]) + (f" and {len(paths) - limit} more" if len(paths) > limit else "")


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters and without its closing full stop."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(". ")
