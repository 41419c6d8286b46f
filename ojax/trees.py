"""Paths of the leaves of a pytree, spelled in one way throughout ojax: `layers/0/kernel`."""

from collections.abc import Callable, Iterable
from typing import Any

import jax


def path_of(keys: tuple) -> str:
    """The path of a leaf from its JAX key path, the same for a dict, a list and a Flax state.

    The boxes of a Flax state add a key `.value`, which is left out.
    """
    boxed = [key for key in keys if not (isinstance(key, jax.tree_util.GetAttrKey) and key.name == "value")]
    return jax.tree_util.keystr(tuple(boxed), simple=True, separator="/")


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Each leaf with its path, in the order of `jax.tree.leaves`."""
    return [(path_of(keys), leaf) for keys, leaf in jax.tree.leaves_with_path(tree, is_leaf=is_leaf)]


def abbreviated(paths: Iterable[str], limit: int = 6) -> str:
    """The first few paths, for an error message."""
    paths = list(paths)
    return ", ".join(paths[:limit]) + (f" and {len(paths) - limit} more" if len(paths) > limit else "")


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 300 characters and without its closing full stop."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(". ")
