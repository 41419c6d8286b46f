"""A digest changes with a question's behaviour, and with nothing else."""

import functools
import importlib
import linecache
import os
import subprocess
import sys
import textwrap
import time

import jax
import optax
import pytest
from flax import linen

from experiments import continual
from experiments.common import identity
from experiments.common.identity import digest

SETTINGS = continual.QUESTION.parsed()
FILE = """
    import dataclasses
    import functools
    import logging
    from typing import NamedTuple
    import jax
    import numpy as np
    import optax
    import pandas as pd

    FACTOR = 2.0
    TABLE = {"a": lambda x: x + 1.0, "b": {"z", "y"}}
    LIBRARY = optax.sgd(0.5)
    ARRAY = np.arange(3000)

    class Net:
        def call(self, x):
            return 1.0 * x

    class Slotted:
        __slots__ = ("number",)

        def __init__(self, number):
            self.number = number

        @staticmethod
        def fixed(x):
            return x + 6.0

        @property
        def double(self):
            return self.number * 7.0

    def wrapping(function):
        @functools.wraps(function)
        def wrapped(*args):
            return function(*args)
        return wrapped

    @wrapping
    def decorated(x):
        return x - 8.0

    @jax.jit
    def compiled(x):
        return x / 3.0

    @jax.custom_vjp
    def sent(x):
        return x

    sent.defvjp(lambda x: (x, None), lambda _, g: (g * 11.0,))
    one, two = (lambda x: x + 1), (lambda x: x + 2)
    TWICE = [one, two, one]
    KEYED = {one: 1.6, two: 1.4}
    EITHER = {one, two}
    OBJECTS = np.array(["text", one], dtype=object)
    FRAME = pd.DataFrame({"column": ["x", "y"]})
    KEY = jax.random.key(12)
    SHAPE = jax.ShapeDtypeStruct((13,), np.float32)

    def values(x):
        return Slotted(9.0), range(10), decorated(x), compiled(x), sent(x)

    class Pair(NamedTuple):
        one: float = 21.0

        def sum(self):
            return self.one + 22.0

    class Called:
        @functools.partial(jax.jit, static_argnums=0)
        def __call__(self, x):
            return x * 23.0

    class Bounded(float):
        top = 24.0

    @dataclasses.dataclass
    class Made:
        items: list = dataclasses.field(default_factory=lambda: [25.0])

    SIZES = {"a": 26, "b": 27}
    LOG = logging.getLogger(__name__)

    def classes(x):
        LOG.info("x")
        return Pair(), Called(), Bounded(1), Made, SIZES

    def others(x):
        return TWICE, KEYED, EITHER, OBJECTS, FRAME, KEY, SHAPE

    def helper(x, by=3.0):
        '''Multiplies.'''
        return x * by * FACTOR  # By both.

    def make(closed):
        return lambda x: closed * x

    def learner(x):
        return helper(x), TABLE, LIBRARY, ARRAY, Net()

    bound = functools.partial(learner, x=4.0)
    closed = make(5.0)
    method = Net().call
"""
CHANGES = [
    ("learner", "FACTOR = 2.0", "FACTOR = 2.5"),
    ("learner", "x + 1.0", "x + 1.5"),
    ("learner", "optax.sgd(0.5)", "optax.sgd(0.25)"),
    ("learner", "np.arange(3000)", "np.arange(3001)[1:]"),
    ("learner", "return 1.0 * x", "return -1.0 * x"),
    ("learner", "by=3.0", "by=3.5"),
    ("learner", '"z", "y"', '"z", "x"'),
    ("values", "x + 6.0", "x + 6.5"),
    ("values", "number * 7.0", "number * 7.5"),
    ("values", "x - 8.0", "x - 8.5"),
    ("values", "Slotted(9.0)", "Slotted(9.5)"),
    ("values", "range(10)", "range(11)"),
    ("values", "x / 3.0", "x / 3.5"),
    ("values", "g * 11.0", "g * 12.0"),
    ("others", "[one, two, one]", "[one, two, two]"),
    ("others", "one: 1.6", "one: 1.7"),
    ("others", "{one, two}", "{one}"),
    ("others", '"text"', '"texts"'),
    ("others", '"y"', '"z"'),
    ("others", '"column"', '"columns"'),
    ("others", "key(12)", "key(13)"),
    ("others", "(13,)", "(14,)"),
    ("classes", "21.0", "21.5"),
    ("classes", "+ 22.0", "- 22.0"),
    ("classes", "x * 23.0", "x * 24.0"),
    ("classes", "top = 24.0", "top = 24.5"),
    ("classes", "[25.0]", "[25.5]"),
    ("classes", '"a": 26, "b": 27', '"b": 27, "a": 26'),
    ("bound", "x=4.0", "x=4.5"),
    ("bound", "FACTOR = 2.0", "FACTOR = 2.5"),
    ("closed", "make(5.0)", "make(5.5)"),
    ("method", "return 1.0 * x", "return -1.0 * x"),
]


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    # Python would not notice a change of equal length within one second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def of(name, old="", new=""):
        text = textwrap.dedent(FILE)
        assert old in text
        (tmp_path / "own_question.py").write_text(text.replace(old, new) if old else text)
        importlib.invalidate_caches()
        linecache.clearcache()
        sys.modules.pop("own_question", None)
        return digest(getattr(importlib.import_module("own_question"), name))

    return of


@pytest.mark.parametrize(("name", "old", "new"), CHANGES)
def test_it_changes_with_what_the_function_does(digest_of, name, old, new):
    before = digest_of(name)
    assert digest_of(name) == before  # The same file, imported again, with its objects elsewhere in memory.
    assert digest_of(name, old, new) != before


def test_it_is_equal_in_another_process(digest_of, tmp_path):
    """Addresses and the order of sets differ between processes."""
    names = ("values", "others", "classes")
    mine = [digest_of(name) for name in names]
    code = "import own_question\nfrom experiments.common.identity import digest\n"
    code += "".join(f"print(digest(own_question.{name}))\n" for name in names)
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.getcwd()}"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.stdout.split() == mine, run.stderr


def test_it_does_not_change_with_what_the_function_does_not_use(digest_of):
    assert digest_of("helper") == digest_of("helper", "x + 1.0", "x + 1.5")
    for old, new in (("Multiplies", "Divides"), ("By both", "Twice"), ("x * by * FACTOR", "(x * by\n * FACTOR)")):
        assert digest_of("learner") == digest_of("learner", old, new)
    assert digest_of("values") == digest_of("values", "@jax.jit", "# A line more.\n@jax.jit")
    assert digest(functools.partial(int, base=2)) != digest(functools.partial(int, base=3))


RULES = """
    import own_numbers

    def rule(x):
        return own_numbers.FACTOR * x

    def other(x):
        return x
"""
QUESTIONS = ("import own_rules\n\ndef learner(x):\n    return own_rules.rule(x)\n",
             "def learner(x):\n    import own_rules\n\n    return own_rules.rule(x)\n",
             "def learner(x):\n    from own_rules import rule\n\n    return rule(x)\n")  # fmt: skip


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_changes_with_what_is_used_of_a_module_of_ones_own(tmp_path, monkeypatch, question):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def digest_with(rules, numbers):
        files = {"own_question": question, "own_rules": rules, "own_numbers": numbers}
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return digest(importlib.import_module("own_question").learner)

    before = digest_with(RULES, "FACTOR = 2.0")
    assert digest_with(RULES, "FACTOR = 2.0") == before
    assert digest_with(RULES, "FACTOR = 2.5") != before
    assert digest_with(RULES.replace("FACTOR * x", "FACTOR / x"), "FACTOR = 2.0") != before
    assert digest_with(RULES.replace("return x", "return -x"), "FACTOR = 2.0") == before


def test_using_a_value_does_not_change_it():
    """Optax turns a number of a schedule into a float when it is first called; each linen module has another number."""
    schedule = optax.cosine_decay_schedule(1.0, 200)
    before = digest(schedule)
    schedule(3)
    assert digest(schedule) == before != digest(optax.cosine_decay_schedule(1.0, 201))
    assert digest(linen.Dense(3)) == digest(linen.Dense(3)) != digest(linen.Dense(4))


def test_modules_that_import_one_another_are_followed_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    names = [f"own_{number}" for number in range(12)]
    for name in names:
        (tmp_path / f"{name}.py").write_text(
            "\n".join(f"import {other}" for other in names) + "\ndef f(x):\n    return x\n"
        )
    uses = "\n".join(f"    x = {name}.f(x)" for name in names)
    (tmp_path / "own_all.py").write_text("\n".join(f"import {name}" for name in names) + f"\ndef learner(x):\n{uses}\n")
    importlib.invalidate_caches()
    start = time.monotonic()
    digest(importlib.import_module("own_all").learner)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(("folder", "is_own"), [("dist-packages", False), ("with_packages", False), ("project", True)])
def test_installed_packages_are_known_by_their_versions(tmp_path, monkeypatch, folder, is_own):
    place = tmp_path / folder
    (place / "numbers_of_others-1.0.dist-info" if folder == "with_packages" else place).mkdir(parents=True)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = []
    for number in (2.0, 2.5):
        (place / "numbers_of_others.py").write_text(f"def rule(x):\n    return {number} * x\n")
        sys.modules.pop("numbers_of_others", None)
        importlib.invalidate_caches()
        found.append(digest(importlib.import_module("numbers_of_others").rule))
    assert (found[0] != found[1]) == is_own


def test_what_a_task_shows_is_of_a_question():
    question = continual.QUESTION
    same, other = (identity.of(each, SETTINGS, "")["version"]["source"] for each in (question, question))
    assert same == other
    for changed in ({"shuffle": not question.task.shuffle}, {"shown": lambda setting, data: data}):
        asked = question._replace(task=question.task._replace(**changed))
        assert identity.of(asked, SETTINGS, "")["version"]["source"] != same


def test_a_report_is_of_all_that_it_says():
    question, task = continual.QUESTION, continual.QUESTION.task
    changes = [
        {"abstract": "Another."},
        {"methods": "rule"},
        {"task": task._replace(score=task.score._replace(chance=0.3))},
        {"task": task._replace(score=task.score._replace(least=0.3))},
        {"task": task._replace(axes=(task.axes[0]._replace(words="{} of them"), *task.axes[1:]))},
    ]
    same, again, *others = (identity.of_report(question._replace(**change)) for change in ({}, {}, *changes))
    assert same == again and len({same, *others}) == 1 + len(changes)


@pytest.mark.parametrize(
    ("files", "uses"),
    [
        (("lab/rules.py",), "import lab.rules\n\ndef learner(x):\n    return lab.rules.rule(x)\n"),
        (("lab/rules.py",), "def learner(x):\n    from lab import rules\n\n    return rules.rule(x)\n"),
        (("lab/__init__.py", "lab/rules.py"), "def learner(x):\n    from lab import rules\n\n    return rules.rule(x)\n"),
        (("lab/__init__.py", "lab/rules.py"), "def learner(x):\n    from .rules import rule\n\n    return rule(x)\n"),
        (("lab/__init__.py", "lab/rules.py"), "def learner(x):\n    from . import rules\n\n    return rules.rule(x)\n"),
        ((), "def learner(x):\n    try:\n        import nowhere\n    except ImportError:\n        return 2.0 * x\n"),
    ],
)
def test_it_changes_with_a_module_in_a_package_of_ones_own(tmp_path, monkeypatch, files, uses):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    name = "lab.question" if "from ." in uses else "own_question"
    place = tmp_path / f"{name.replace('.', '/')}.py"

    def digest_with(factor):
        for path in (*files, str(place)):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text("" if "__init__" in path else f"def rule(x):\n    return {factor} * x\n")
        place.write_text(uses.replace("2.0", str(factor)))
        for loaded in ("lab", "lab.rules", "lab.question", "own_question"):
            sys.modules.pop(loaded, None)
        importlib.invalidate_caches()
        learner = importlib.import_module(name).learner
        before = digest(learner)
        learner(1.0)  # What it imports does not change the digest.
        assert digest(learner) == before
        return before

    assert digest_with(2.0) == digest_with(2.0) != digest_with(2.5)


def test_settings_of_jax_that_change_random_numbers_are_named():
    usual = {"source": {}, "device": "cpu", "packages": identity._packages()}
    assert not set(identity._SETTINGS) & set(usual["packages"])
    with jax.enable_x64(True):
        other = usual | {"packages": identity._packages()}
    assert identity.differences(usual, other) == "jax_enable_x64 False there, True now"
    assert identity.differences(other, usual) == "jax_enable_x64 True there, False now"
