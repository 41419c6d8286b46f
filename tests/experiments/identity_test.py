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
    import numpy as np
    import optax

    FACTOR = 2.0
    TABLE = {"a": lambda x: x + 1.0, "b": {"z", "y"}}
    LIBRARY = optax.sgd(0.5)
    ARRAY = np.arange(3000)

    class Net:
        def call(self, x):
            return 1.0 * x

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


def test_settings_of_jax_that_change_random_numbers_are_named():
    usual = {"source": {}, "device": "cpu", "packages": identity._packages()}
    assert not set(identity._SETTINGS) & set(usual["packages"])
    with jax.enable_x64(True):
        other = usual | {"packages": identity._packages()}
    assert identity.differences(usual, other) == "jax_enable_x64 False there, True now"
    assert identity.differences(other, usual) == "jax_enable_x64 True there, False now"
