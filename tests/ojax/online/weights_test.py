"""Weights are read back unchanged, and a missing run is named."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import ojax
from ojax import datasets, modules, online
from ojax.online.weights import SavedWeights, WeightsError

pytestmark = pytest.mark.compiled_quickly

RUNS = [{"rate": rate, "rule": "oja", "seed": seed} for rate, seed in ((0.1, 0), (0.1, 1), (0.2, 0))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Saves a network with a state and more than ten layers, and one padded run."""
    folder = tmp_path_factory.mktemp("study")
    widths = [6, *[3] * 11, 4]
    learner = online.classifier(
        lambda rngs: ojax.MLP(widths, normalization=modules.BatchNorm, rngs=rngs), lambda hyper: ojax.oja_sgd(0.1, 0.0)
    )
    trees = jax.vmap(lambda key: learner.init(key, {}))(jax.random.split(jax.random.key(0), 4))
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    data = datasets.Dataset.from_arrays(x, np.arange(5) % 4, x, np.arange(5) % 4)
    SavedWeights(folder / "weights").save("block", learner.apply, data, RUNS, *trees)
    return folder, learner, trees, x


@pytest.mark.parametrize(("run", "row"), [({"rate": 0.1, "seed": 1}, 1), ({"rate": 0.2}, 2), (2, 2), (0, 0)])
def test_a_run_is_read_back(saved, run, row):
    folder, learner, trees, x = saved
    found = ojax.load_weights(folder, run=run)
    assert found.setting == RUNS[row]
    params, state = jax.tree.map(lambda leaf: leaf[row], trees)
    for tree, read in ((params, found.params), (state, found.state)):
        named = dict(ojax.trees.named_leaves(tree))
        assert set(named) == set(read)
        for path, leaf in named.items():
            np.testing.assert_array_equal(read[path], leaf)
    np.testing.assert_allclose(found.network(x), jax.jit(learner.apply)(params, state, x), rtol=1e-6)
    assert found.network(jnp.ones((2, 6))).shape == (2, 4)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"rate": 0.1}, ["2 runs have", "seed 0, 1"]),
        ({"rate": 0.3}, ["No run has", "rate 0.1, 0.2"]),
        ({"ratio": 0.1}, ["no setting 'ratio'", "rate, rule, seed"]),
        (3, ["no run 3", "from 0 to 2"]),
        (-1, ["no run -1"]),
    ],
)
def test_a_run_that_is_not_there(saved, run, words):
    with pytest.raises(WeightsError) as refused:
        ojax.load_weights(saved[0], run=run)
    for word in words:
        assert word in str(refused.value)


def test_folders_without_weights_and_damaged_ones(saved, tmp_path):
    import shutil

    with pytest.raises(WeightsError, match="only if they were saved"):
        ojax.load_weights(tmp_path)
    for name, content in (("runs.json", b"[1"), ("network.program", b"nonsense")):
        folder = tmp_path / name
        shutil.copytree(saved[0], folder)
        (folder / "weights" / "block" / name).write_bytes(content)
        with pytest.raises(WeightsError, match="is damaged"):
            ojax.load_weights(folder)
    shutil.copytree(saved[0], tmp_path / "arrays")
    for path in (tmp_path / "arrays" / "weights" / "block" / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="are damaged"):
        ojax.load_weights(tmp_path / "arrays")


class Dropped(nnx.Module):
    """A network with random keys in its state."""

    def __init__(self, rngs):
        self.mlp, self.dropout = ojax.MLP([6, 5, 4], rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.mlp(self.dropout(x))


def saved_by(learner, apply, folder):
    trees = jax.vmap(lambda key: learner.init(key, {}))(jax.random.split(jax.random.key(0), 3))
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    data = datasets.Dataset.from_arrays(x, np.arange(5) % 4, x, np.arange(5) % 4)
    SavedWeights(folder).save("block", apply, data, RUNS, *trees)
    return jax.tree.map(lambda leaf: leaf[1], trees), x, ojax.load_weights(folder, run=1)


@pytest.mark.parametrize("is_drawn", [False, True])
def test_a_network_with_random_keys_is_called_with_its_own(tmp_path, is_drawn):
    learner = online.classifier(lambda rngs: Dropped(rngs), lambda hyper: ojax.oja_sgd(0.1, 0.0))
    drawn = modules.as_functions(lambda rngs: Dropped(rngs)).apply
    apply = (lambda *arguments: drawn(*arguments, training=True)[0]) if is_drawn else learner.apply
    trees, x, found = saved_by(learner, apply, tmp_path)
    np.testing.assert_allclose(found.network(x), jax.jit(apply)(*trees, x), rtol=1e-6)
    assert found.state["dropout/rngs/key"].dtype == np.uint32


def test_a_network_that_asks_for_the_number_of_samples_is_saved_without_a_program(tmp_path):
    learner = online.classifier(lambda rngs: ojax.MLP([6, 4], rngs=rngs), lambda hyper: ojax.oja_sgd(0.1, 0.0))
    (params, _), _, found = saved_by(
        learner, lambda params, state, x: learner.apply(params, state, x) * (2 if x.shape[0] > 100 else 1), tmp_path
    )
    assert found.network is None
    np.testing.assert_array_equal(found.params["layers/0/kernel"], params["layers"][0]["kernel"])


def test_the_runs_are_json(saved):
    assert json.loads((saved[0] / "weights" / "block" / "runs.json").read_text()) == RUNS
