"""Imports go one way: no circle of modules, nothing of `experiments` in `ojax`, nothing of the tasks in `common`."""

import ast
import functools
import graphlib
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# From bottom to top: a module imports nothing from a higher layer.
LAYERS = ("ojax", "experiments.common", "experiments.tasks", "experiments")


def sources():
    """Returns the text of each module, by its name."""
    paths = [path for folder in ("ojax", "experiments") for path in (REPOSITORY / folder).rglob("*.py")]
    parts = {path: path.relative_to(REPOSITORY).with_suffix("").parts for path in paths}
    return {".".join(parts[path]).removesuffix(".__init__"): path.read_text(encoding="utf-8") for path in paths}


@functools.cache
def named(text):
    """Returns pairs of a module that is imported anywhere in the text, in functions too, and a name of it or None."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def imports(text, modules):
    """Returns the modules that a module imports; `from package import name` counts as the module `name` if it exists."""
    full = {module: module for module in modules}
    return {full.get(f"{module}.{name}", module) for module, name in named(text)} & modules.keys()


def layer(name):
    """Returns the number of a module's layer, by the longest prefix of its name."""
    return LAYERS.index(max((prefix for prefix in LAYERS if f"{name}.".startswith(f"{prefix}.")), key=len))


def faults(modules):
    """Returns the faults in the imports of these modules, in words."""
    graph = {name: imports(text, modules) - {name} for name, text in modules.items()}
    found = [f"{name} imports {other}" for name in graph for other in graph[name] if layer(other) > layer(name)]
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        circle = error.args[1][:0:-1]
        first = circle.index(min(circle))  # The sorter may start anywhere in it.
        found.append(f"circle: {' -> '.join([*circle[first:], *circle[:first], circle[first]])}")
    return found


def test_no_circle_and_no_arrow_up():
    modules = sources()
    assert len(modules) > 80 and {"ojax", "ojax.plasticity", "experiments.deep_mlp"} <= modules.keys()
    assert faults(modules) == []


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ({"ojax.plasticity": "def f():\n    import experiments.deep_mlp"}, "ojax.plasticity imports experiments.deep_mlp"),
        (
            {"experiments.common.flags": "from experiments.tasks import classification"},
            "experiments.common.flags imports experiments.tasks.classification",
        ),
        (
            {"experiments.common.flags": "from experiments.common.results import Score"},
            "circle: experiments.common.flags -> experiments.common.results -> experiments.common.flags",
        ),
    ],
)
def test_a_fault_is_found(added, fault):
    assert fault in faults(sources() | added)


def test_the_library_names_no_flag_work_directory_or_study():
    """They are in no docstring and no error of `ojax`, since a user of the library does not have them."""
    words = re.compile(r"(?<!pip install )--[a-z]\w+|\bexperiments\.\w+|\bwork director|\bworkdir\b")
    texts = {name: text for name, text in sources().items() if name.startswith("ojax") and ".data." not in name}
    found = [f"{name}: {word}" for name, text in texts.items() for word in words.findall(text)]
    assert found == [] and words.search("There are none: a study keeps them with --save_weights.")
