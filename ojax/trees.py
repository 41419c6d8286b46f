"""Paths of the leaves of a pytree, as strings such as `layers/0/kernel`."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax


def path_of(keys: tuple) -> str:
    """Returns the path of a leaf from its JAX key path; dicts, lists, objects and Flax states give equal paths."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Returns each leaf with its path, in the order of `jax.tree.leaves`."""
    return [(path_of(keys), leaf) for keys, leaf in leaves_with_keys(tree, is_leaf)]


def map_named(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Returns the tree of `function(path, leaf, *leaves of the rest)`; all trees have one structure."""
    columns = [[leaf for _, leaf in named_leaves(each)] for each in (tree, *rest)]
    paths = [path for path, _ in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), list(map(function, paths, *columns)))


def leaves_with_keys(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[tuple, Any]]:
    """Returns each leaf with its JAX key path, without the key that Flax's variables and partitioned parameters add."""
    found: list[tuple[tuple, Any]] = []
    for keys, node in jax.tree.leaves_with_path(tree, is_leaf=lambda node: is_box(node) or bool(is_leaf and is_leaf(node))):
        if not is_box(node) or (is_leaf and is_leaf(node)):
            found.append((keys, node))
            continue
        # The box's own key is left out; the keys of its contents are kept.
        children = jax.tree.leaves_with_path(node, is_leaf=lambda child, box=node: child is not box)
        for _, child in children:
            found += [((*keys, *inner), leaf) for inner, leaf in leaves_with_keys(child, is_leaf)]
    return found


def is_box(node: Any) -> bool:
    """Returns whether a node is an NNX variable or a partitioned Linen parameter, whose contents have their own key."""
    nnx, meta = (sys.modules.get(name) for name in ("flax.nnx", "flax.core.meta"))  # Without Flax there are no boxes.
    return bool((nnx and isinstance(node, nnx.Variable)) or (meta and isinstance(node, meta.AxisMetadata)))


def abbreviated(paths: Iterable[str], limit: int = 6) -> str:
    """Returns the first few paths, for an error message."""
    paths = list(paths)
    return ", ".join(paths[:limit]) + (f" and {len(paths) - limit} more" if len(paths) > limit else "")


def first_line(error: BaseException) -> str:
    """Returns an error's message as one line of at most 300 characters, without its final full stop."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(". ")
