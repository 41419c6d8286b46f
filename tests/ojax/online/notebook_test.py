"""Output in a notebook: a bar that moves and ends, and a data frame; none elsewhere."""

import sys
import types

import numpy as np
import pandas as pd
import pytest

import ojax
from ojax import online
from ojax.online import notebook

pytestmark = pytest.mark.compiled_quickly


@pytest.fixture
def shown(monkeypatch):
    """Collects the texts that a notebook displays; IPython itself belongs to the documentation's extra."""
    texts = []

    class Handle:
        def update(self, thing):
            texts.append((repr(thing), thing._repr_html_()))

    def display(thing, display_id):
        assert display_id is True
        return Handle()

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    return texts


# One learner, so that its program is compiled once.
LEARNER = online.classifier(lambda rngs: ojax.MLP([3, 4, 2], rngs=rngs), lambda hyper: ojax.oja_sgd(hyper["rate"], 0.1))


def trained(**options):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)).astype(np.float32), rng.integers(0, 2, 40)
    data = ojax.datasets.Dataset.from_arrays(x[:30], y[:30], x[30:], y[30:])
    hyper, seeds = online.grid({"rate": [0.1, 0.2]}, seeds=[0, 7])
    plan = online.Plan(num_train=20, evaluate_at=(10, 20))
    return hyper, seeds, online.train(LEARNER, hyper, seeds, data, plan, **options)


def test_a_notebook_shows_how_far_a_training_is_and_the_same_scores(shown):
    frame = online.data_frame(*trained())
    texts, pages = zip(*shown, strict=True)
    assert texts[0] == "0% 4 runs: compiling" and "max='1'" in pages[0]
    assert "50% 4 runs, 10 of 20 samples each" in texts
    assert texts[-1].startswith("100% 4 runs, 20 samples each, ") and "value='1.0000'" in pages[-1]

    shown.clear()
    sys.modules["IPython"].get_ipython = lambda: None  # A terminal.
    pd.testing.assert_frame_equal(frame, online.data_frame(*trained()))
    assert not shown
    assert list(frame.columns[:3]) == ["rate", "seed", "samples"] and "weight_norm_2" in frame
    assert frame["samples"].tolist() == [10] * 4 + [20] * 4 and frame["seed"].tolist() == [0, 7] * 4
    for seen, scores in trained()[2]:
        np.testing.assert_array_equal(frame[frame["samples"] == seen]["test_loss"], scores["test_loss"])


def test_a_custom_progress_replaces_the_bar(shown):
    seen = []
    for _ in trained(on_progress=seen.append)[2]:
        pass
    assert seen == [0, 10, 20] and not shown


def test_a_resumed_training_shows_where_it_started(shown):
    show = notebook.progress_of(1, 100)
    for count in (40, 60, 100):
        show(count)
    texts = [text for text, _ in shown]
    assert texts[1] == "40% 1 run, 40 of 100 samples each"
    assert texts[2].startswith("60% 1 run, 60 of 100 samples each, ETA ")


def test_a_data_frame_without_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        online.data_frame({}, [], [])
