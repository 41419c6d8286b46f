"""Digests of functions and values, by which a study knows that its question is still the same."""

import functools
import hashlib
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def digest(value: Any, module: str) -> str:
    """Changes with a value: with the source of a function of that module, and of all that it uses, closes over or binds.

    Functions and classes of other modules count by their names, and with what they bind and close over.
    """
    return hashlib.sha256("\n".join(_parts(value, module, {})).encode()).hexdigest()[:16]


def _parts(value: Any, module: str, seen: dict[int, Any]) -> Iterator[str]:
    if isinstance(value, str | bytes | int | float | complex | bool | types.NoneType | types.EllipsisType):
        yield repr(value)
        return
    if id(value) in seen:
        return
    seen[id(value)] = value  # Kept, so that no other value gets its number.
    if isinstance(value, types.ModuleType):
        yield value.__name__
    elif isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords), module, seen)
    elif isinstance(value, types.MethodType):
        yield from _parts((value.__func__, value.__self__), module, seen)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, module, seen)
    elif isinstance(value, type):
        yield _name(value, module)
        if value.__module__ == module:
            yield _source(value)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield repr(key)
            yield from _parts(value[key], module, seen)
    elif isinstance(value, set | frozenset):
        yield repr(sorted(map(repr, value)))
    elif isinstance(value, list | tuple):
        yield type(value).__name__
        for item in value:
            yield from _parts(item, module, seen)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    else:
        yield from _parts(type(value), module, seen)
        yield from _parts(getattr(value, "__dict__", {}), module, seen)


def _of_function(function: types.FunctionType, module: str, seen: dict[int, Any]) -> Iterator[str]:
    yield _name(function, module)
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # It is not filled yet.
            continue
    yield from _parts((function.__defaults__, function.__kwdefaults__, cells), module, seen)
    if function.__module__ == module:
        yield _source(function)
        for name in sorted(_names_in(function.__code__)):
            if name in function.__globals__:
                yield name
                yield from _parts(function.__globals__[name], module, seen)


def _name(value: Any, module: str) -> str:
    """A file has one name as a command, `__main__`, and another where it is imported; both are the same here."""
    return f"{'' if value.__module__ == module else value.__module__}.{value.__qualname__}"


def _source(value: Any) -> str:
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):  # Typed into an interpreter.
        code = getattr(value, "__code__", None)
        return value.__qualname__ if code is None else code.co_code.hex() + repr(code.co_names)


def _names_in(code: types.CodeType) -> set[str]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names_in, inner))
