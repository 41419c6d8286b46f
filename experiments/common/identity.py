"""The identity of runs in a work directory: question, fixed settings, data and version.

A version is the source on which results depend, the packages and the kind of device. It leaves out facts that do not change
a bit: numbers of devices and processes, the block size, paths of data.
"""

from __future__ import annotations

import ast
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import logging
import platform
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ojax
from experiments.common.errors import UserError
from ojax.trees import first_line

if TYPE_CHECKING:
    from experiments.common.flags import Settings
    from experiments.common.question import Question

_EXPERIMENTS = Path(__file__).parents[1]
# Modules of experiments/common that only report results; they are not part of the identity.
REPORTERS = ("dry_run", "figures", "markdown", "output", "progress", "statistics", "summary", "tracking", "verdicts")
# The code flag of a docstring, from Python 3.14 on. Before 3.14 a function's first constant is its docstring or None.
_HAS_DOCSTRING = getattr(inspect, "CO_HAS_DOCSTRING", 0)
_MOST_NAMES = 6
# Types that say nothing by themselves, and what each class has.
_PLAIN = {str, bytes, int, float, complex, bool, types.NoneType, types.EllipsisType, dict, set, frozenset, list, tuple}
_OF_ANY_CLASS = {
    *("__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__annotate__", "__hash__"),
    *("__annotate_func__", "__annotations_cache__", "__conditional_annotations__", "__static_attributes__", "__slots__"),
    *("__firstlineno__", "__abstractmethods__", "__parameters__", "__orig_bases__", "__type_params__", "__match_args__"),
}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Settings of JAX that change random numbers, and their default values.
_SETTINGS = {"jax_default_prng_impl": "threefry2x32", "jax_threefry_partitionable": "True", "jax_enable_x64": "False"}


def of(question: Question, settings: Settings, sha256: str) -> dict[str, Any]:
    """Returns the identity of a study as JSON values, from its settings and the hash of its data.

    Axes and seeds differ between runs and are left out.
    """
    task = question.task
    own: dict[str, Any] = {"learner": question.learner or task.learner, "data": question.data or task.load}
    own |= {"samples": (task.shown, task.apart, task.shuffle, task.random_start)}
    return {
        "question": question.module,
        "settings": settings.fixed(),
        "data": sha256,
        "version": {
            "source": source() | {f"{name} of {question.module}": digest(function) for name, function in own.items()},
            "packages": _packages(),
            "device": device(),
        },
    }


def of_report(question: Question) -> str:
    """Returns a digest of the code that makes a report from the rows: claim, verdict, figures, schema and all modules."""
    drawings = {**question.figures, **question.measure_figures}
    own = (question.question, question.claim, question.equal_rates, question.verdict, question.table, drawings)
    return digest((own, question.abstract, question.methods, question.schema, source(), _reporters()))


def check_same(held: Mapping[str, Any], mine: Mapping[str, Any], folder: Path) -> None:
    """Checks that runs of both identities belong into one folder; versions may differ.

    Raises:
      UserError: If they do not; the message names the difference.
    """
    if held["question"] != mine["question"]:
        raise UserError(f"--workdir={folder} holds runs of {held['question']}: name another folder.")
    old, new = held["settings"], mine["settings"]
    if differing := [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]:
        changes = ", ".join(f"--{name}={old.get(name)} there, {new.get(name)} now" for name in differing)
        raise UserError(f"--workdir={folder} holds runs of another configuration ({changes}): name another folder.")
    if held["data"] != mine["data"]:
        raise UserError(f"--workdir={folder} holds runs of other data: name another folder.")


def differences(held: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    """Returns the differences between two versions, in words; empty if they are equal."""
    old, new = held["source"], mine["source"]
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    pythons = {str(version["packages"].get("python")).rpartition(".")[0] for version in (held, mine)}
    if len(pythons) > 1:
        changed = []  # With another Python, digests of all files differ.
    more = [f"{len(changed) - _MOST_NAMES} more files"] if len(changed) > _MOST_NAMES else []
    packages = {"device": (held["device"], mine["device"])}
    names = [*mine["packages"], *(name for name in held["packages"] if name not in mine["packages"])]
    packages |= {name: (held["packages"].get(name), mine["packages"].get(name)) for name in names}
    words = [
        f"{name} {there or _SETTINGS.get(name)} there, {now or _SETTINGS.get(name)} now"
        for name, (there, now) in packages.items()
        if there != now
    ]
    return ", ".join([*changed[:_MOST_NAMES], *more, *words])


@functools.cache  # Cached, since loaded modules do not change with the files.
def source() -> dict[str, str]:
    """Returns digests, by path, of the modules of ojax and experiments on which results depend, but for the questions."""
    paths = {path: package for package in (Path(ojax.__file__).parent, _EXPERIMENTS) for path in package.rglob("*.py")}
    reporters = {_EXPERIMENTS / "common" / f"{name}.py" for name in REPORTERS}
    return {
        path.relative_to(package.parent).as_posix(): _of_file(path)
        for path, package in sorted(paths.items())
        if path not in reporters
        and path.parent not in (_EXPERIMENTS, _EXPERIMENTS / "benchmark")
        and not path.name.startswith(".")  # An editor's lock, or a backup.
    }


@functools.cache
def _reporters() -> dict[str, str]:
    """Returns a digest of each module that only reports."""
    return {name: _of_file(_EXPERIMENTS / "common" / f"{name}.py") for name in REPORTERS}


def device() -> str:
    """Returns the kind of the training device: a GPU's or TPU's kind in JAX, or the kind of this processor."""
    import jax

    from experiments.common import compilation

    kind = jax.devices()[0]
    return compilation.processor() if kind.platform == "cpu" else kind.device_kind


def _packages() -> dict[str, str]:
    """Returns the versions of Python and packages, and settings of JAX for random numbers that are no default."""
    import jax

    settings = {name: str(getattr(jax.config, name, default)) for name, default in _SETTINGS.items()}
    changed = {name: value for name, value in settings.items() if value != _SETTINGS[name]}
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | versions | changed


def _of_file(path: Path) -> str:
    """Returns a digest of a file that does not depend on its comments, docstrings and formatting.

    It hashes the syntax tree: from Python 3.13 on, instructions depend on line breaks.
    """
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is no module of Python ({first_line(error)}): mend it or move it away.") from None
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node, clean=False) is not None
        ):
            del node.body[0]
    return _hash(ast.dump(tree))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(value: Any) -> str:
    """Returns a digest of a value and of all values that it uses, closes over or binds.

    Functions and classes of a question's own file, and of other files that are not installed, are hashed by their code.
    Functions and classes of ojax, of experiments and of installed packages are hashed by their names.
    """
    return _hash("\n".join(_parts(value, {})))


def _parts(value: Any, seen: dict[Any, Any]) -> Iterator[str]:
    if isinstance(value, str | bytes | int | float | complex | bool | types.NoneType | types.EllipsisType):
        # Libraries turn numbers that they close over into floats when they are first called.
        yield repr(int(value) if isinstance(value, float) and value.is_integer() else value)
        if type(value) not in _PLAIN:
            yield from _parts(type(value), seen)
        return
    if id(value) in seen:
        yield f"as number {seen[id(value)][0]}"
        return
    seen[id(value)] = len(seen), value  # With a reference, so that no other value gets its id.
    if isinstance(value, types.ModuleType):
        yield value.__name__
    elif isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords), seen)
    elif isinstance(value, types.MethodType):
        yield from _parts((value.__func__, value.__self__), seen)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, seen)
    elif isinstance(value, staticmethod | classmethod):
        yield from _parts((type(value).__name__, value.__func__), seen)
    elif isinstance(value, property):
        yield from _parts((value.fget, value.fset, value.fdel), seen)
    elif isinstance(value, type):
        yield from _of_class(value, seen)
    elif isinstance(value, logging.Logger):  # Its name differs between a command and a notebook.
        yield "logger"
    elif isinstance(value, Mapping | set | frozenset | list | tuple):
        yield from [type(value).__name__] if type(value) in _PLAIN else _parts(type(value), seen)
        if isinstance(value, Mapping):
            for pair in list(value.items()):
                yield from _parts(pair, seen)
        elif isinstance(value, set | frozenset):
            yield from sorted(_hash("\n".join(_parts(item, dict(seen)))) for item in value)
        else:
            for item in value:
                yield from _parts(item, seen)
    elif (array := _as_array(value)) is not None:
        yield f"{array.dtype} {array.shape}"
        yield from _parts(array.tolist(), seen) if array.dtype == object else [hashlib.sha256(array.tobytes()).hexdigest()]
    else:
        yield from _parts((type(value), _content(value)), seen)


def _as_array(value: Any) -> np.ndarray | None:
    """Returns the numbers of an array of NumPy or JAX; None for anything else."""
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    if not (type(value).__module__.startswith("jax") and hasattr(value, "__array__")):
        return None
    import jax

    is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)


def _content(value: Any) -> Any:
    """Returns what makes up a value: its attributes, if it wraps a function, else what pickle would store."""
    own = getattr(value, "__dict__", {})
    if "__wrapped__" in own:
        # The other names with two underscores are documentation, and JAX's own has the line of the function.
        return {
            name: item for name, item in own.items() if name == "__wrapped__" or not name.startswith(("__", "_jit_info"))
        }
    try:
        stored = value.__reduce_ex__(4)
    except Exception:  # A value of any kind may refuse.
        return own
    if any(base.__module__.startswith("flax.linen") for base in type(value).__mro__):  # Each one has another number.
        return {name: item for name, item in own.items() if name not in ("_id", "_state", "scope")}
    return [list(part) if isinstance(part, Iterator) else part for part in stored] if isinstance(stored, tuple) else stored


def _of_function(function: types.FunctionType, seen: dict[Any, Any]) -> Iterator[str]:
    yield _qualified(function)
    cells = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            cells[name] = cell.cell_contents
        except ValueError:  # The cell is still empty.
            continue
    yield from _parts((function.__defaults__, function.__kwdefaults__, cells), seen)
    if _is_own(function):
        yield from _of_code(function.__code__)
        names = sorted(_names_in(function.__code__))
        used = {name: function.__globals__[name] for name in _globals_in(function.__code__) if name in function.__globals__}
        used |= cells | _imported(function)
        for name, value in sorted(used.items()):
            yield name
            yield from _of_module(value, names, seen) if isinstance(value, types.ModuleType) else _parts(value, seen)


def _of_module(module: types.ModuleType, names: Sequence[str], seen: dict[Any, Any]) -> Iterator[str]:
    """Yields the parts of a module that a function with these names uses: `rules.oja` has both names."""
    yield module.__name__
    if not _is_own_module(module.__name__):
        return
    for name in names:
        if name in vars(module) and (module.__name__, name) not in seen:
            value = vars(module)[name]
            seen[module.__name__, name] = len(seen), value
            yield name
            yield from _of_module(value, names, seen) if isinstance(value, types.ModuleType) else _parts(value, seen)


def _of_class(cls: type, seen: dict[Any, Any]) -> Iterator[str]:
    yield _qualified(cls)
    if _is_own(cls):
        yield from _parts((cls.__bases__, type(cls)), seen)
        for name, member in sorted(vars(cls).items()):
            if name not in _OF_ANY_CLASS and not name.startswith("_abc_"):
                yield name
                yield from _parts(member, seen)


def _of_code(code: types.CodeType) -> Iterator[str]:
    """Yields a code's instructions, and the names and constants that they use."""
    constants = code.co_consts
    is_function = bool(code.co_flags & inspect.CO_OPTIMIZED) and not code.co_name.startswith("<")
    documented = code.co_flags & _HAS_DOCSTRING if _HAS_DOCSTRING else is_function
    if documented and constants and isinstance(constants[0], str):
        constants = constants[1:]
    yield f"{code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars}"
    for constant in constants:
        if isinstance(constant, types.CodeType):
            yield from _of_code(constant)
        else:
            yield repr(sorted(map(repr, constant))) if isinstance(constant, frozenset) else repr(constant)


def _names_in(code: types.CodeType) -> set[str]:
    return set(code.co_names).union(*map(_names_in, _inner(code)))


def _globals_in(code: types.CodeType) -> set[str]:
    found = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return found.union(*map(_globals_in, _inner(code)))


def _imported(function: types.FunctionType) -> dict[str, types.ModuleType]:
    """Returns the user's modules that a function itself imports, also from a package."""
    found = {}
    for name in sorted(_imports_in(function.__code__, function.__globals__.get("__package__") or "")):
        try:
            if _is_own_module(name):
                found[name] = importlib.import_module(name)
        except Exception:  # The function may expect that; any error may come from a user's module.
            continue
    return found


def _imports_in(code: types.CodeType, package: str) -> Iterator[str]:
    """Yields absolute names: `import a.b`, `from a import b`, where `b` may be a module, and `from .a import b`."""
    constants: list[Any] = []
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_CONST", "LOAD_SMALL_INT"):
            constants.append(step.argval)
        elif step.opname == "IMPORT_NAME":
            level, names = constants[-2:]
            if level and not package:
                continue
            name = importlib.util.resolve_name("." * level + step.argval, package) if level else step.argval
            yield from (name, *(f"{name}.{item}" for item in names or ()))
    for inner in _inner(code):
        yield from _imports_in(inner, package)


def _inner(code: types.CodeType) -> list[types.CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _qualified(value: Any) -> str:
    """Returns a name without its module for a question's own values, since the module is `__main__` in a command."""
    return value.__qualname__ if _is_own(value) else f"{value.__module__}.{value.__qualname__}"


def _is_own(value: Any) -> bool:
    """Returns whether a value's file is neither installed nor covered by :func:`source`."""
    return _is_own_module(str(value.__module__))


def _is_own_module(name: str) -> bool:
    if name == "__main__":
        return True
    if name in ("ojax", "experiments") or name.startswith(("ojax.", "experiments.common.", "experiments.tasks.")):
        return False
    path = _file_of(name)
    if path is None or any(path.is_relative_to(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")):
        return False
    return not any(_is_of_packages(folder) for folder in sys.path if folder and path.is_relative_to(folder))


@functools.cache
def _is_of_packages(folder: str) -> bool:
    """Returns whether a folder has installed packages, which are known by their versions."""
    return Path(folder).name in ("site-packages", "dist-packages") or any(Path(folder).glob("*.dist-info"))


def _file_of(name: str) -> Path | None:
    """Returns the file of a module, which may not be imported yet, or the folder of a package without a file."""
    module = sys.modules.get(name)
    if file := getattr(module, "__file__", None):
        return Path(file)
    try:
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    return Path(places[0]) if places and places[0] else None
