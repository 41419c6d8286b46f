"""A digest changes with a question's behaviour, and with nothing else."""

import functools
import importlib
import linecache
import sys
import textwrap

import jax
import pytest

from experiments.common import identity
from experiments.common.identity import digest

FILE = """
    import functools
    import jax
    import numpy as np
    import optax

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

    def values(x):
        return Slotted(9.0), range(10), decorated(x), compiled(x)

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


def test_it_does_not_change_with_what_the_function_does_not_use(digest_of):
    assert digest_of("helper") == digest_of("helper", "x + 1.0", "x + 1.5")
    for old, new in (("Multiplies", "Divides"), ("By both", "Twice"), ("x * by * FACTOR", "(x * by\n * FACTOR)")):
        assert digest_of("learner") == digest_of("learner", old, new)
    assert digest(functools.partial(int, base=2)) != digest(functools.partial(int, base=3))


RULES = """
    import own_numbers

    def rule(x):
        return own_numbers.FACTOR * x

    def other(x):
        return x
"""
QUESTIONS = ("import own_rules\n\ndef learner(x):\n    return own_rules.rule(x)\n",
             "def learner(x):\n    import own_rules\n\n    return own_rules.rule(x)\n")  # fmt: skip


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


def test_settings_of_jax_that_change_random_numbers_are_named():
    usual = {"source": {}, "device": "cpu", "packages": identity._packages()}
    assert not set(identity._SETTINGS) & set(usual["packages"])
    with jax.enable_x64(True):
        other = usual | {"packages": identity._packages()}
    assert identity.differences(usual, other) == "jax_enable_x64 False there, True now"
    assert identity.differences(other, usual) == "jax_enable_x64 True there, False now"
