"""Data that will not do are refused in one line before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from ojax import datasets, online
from tests.ojax.online.networks import mlp_learner, oja_sgd

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(20, 6)).astype(np.float32)
LABELS = (np.arange(20) % 3).astype(np.int32)
HYPER = {"learning_rate": [1e-2], "oja_rate": [1e-3]}


def data_of(images=IMAGES, labels=LABELS, test_images=IMAGES, test_labels=LABELS):
    """Without the checks of `Dataset.from_arrays`."""
    return datasets.Dataset(datasets.Examples(images, labels), datasets.Examples(test_images, test_labels))


def with_nan(array):
    array = np.array(array)
    array[7, 2] = np.nan
    return array


def train(dataset, learner=None):
    return list(online.train(learner or mlp_learner((6, 5, 3)), HYPER, [0], dataset, online.Schedule(20, (20,))))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (data_of(labels=LABELS + 1), ["3 outputs", "from 0 to 2", "from 0 to 3", "1 to 3"][:2]),
        (data_of(labels=LABELS - 1), ["from 0 to 2", "from -1 to 1"]),
        (data_of(test_labels=LABELS + 1), ["from 0 to 2", "from 1 to 3"]),
        (data_of(labels=LABELS.astype(np.float32)), ["whole numbers for labels", "float32"]),
        (data_of(labels=np.eye(3, dtype=np.int32)[LABELS]), ["sample", "targets int32[3]"]),
        (data_of(images=IMAGES.reshape(20, 2, 3)), ["sample", "inputs float32[2, 3]"]),
        (data_of(test_images=IMAGES[:, :5]), ["test data", "inputs float32[20, 5]"]),
        (data_of(images=with_nan(IMAGES)), ["not finite", "train.inputs[7, 2] is nan"]),
        (data_of(test_images=with_nan(IMAGES)), ["not finite", "test.inputs[7, 2] is nan"]),
        (data_of(labels=LABELS[:10]), ["same number of samples", "20", "10"]),
        (datasets.Dataset(IMAGES, IMAGES), ["sample"]),
        (data_of(images=IMAGES[:0], labels=LABELS[:0]), ["at least 1"]),
    ],
)
def test_data_that_do_not_fit_a_classifier(dataset, words, monkeypatch):
    monkeypatch.setattr(online.training, "programs", None)  # It must not come to that.
    with pytest.raises(ValueError) as refused:
        train(dataset)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_loss_without_one_number_for_each_sample():
    """Outputs (batch, 1) and targets (batch,) would be broadcast to (batch, batch)."""
    learner = online.supervised(
        lambda rngs: ojax.MLP([6, 5, 1], readout=ojax.modules.linear, rngs=rngs),
        oja_sgd,
        loss=lambda output, target: (output - target) ** 2,
    )
    with pytest.raises(ValueError, match="one number for each sample"):
        train(data_of(labels=IMAGES[:, 0]), learner)


def toy(gradient=None, evaluate=None):
    def plain(params, state, sample, hyper):
        sums = {"count": online.Sum(jnp.float32(1), jnp.float32(1))}
        return online.Gradient(jax.tree.map(jnp.zeros_like, params), {}, state, sums)

    return online.Learner(
        init=lambda key, hyper: ({"w": jnp.zeros(3)}, {"hidden": jnp.zeros(2)}),
        gradient=gradient or plain,
        optimizer=lambda hyper: optax.sgd(hyper["learning_rate"]),
        evaluate=evaluate or (lambda params, state, test, hyper: {"w": params["w"]}),
    )


def test_learners_that_contradict_themselves():
    def returning(**changes):
        def gradient(params, state, sample, hyper):
            sums = {"count": online.Sum(jnp.float32(1), jnp.float32(1))}
            return online.Gradient({"w": jnp.zeros(3)}, {}, state, sums)._replace(**changes)

        return toy(gradient)

    dataset = datasets.Dataset(IMAGES, {})
    assert len(train(dataset, toy())) == 1
    for learner, words in (
        (returning(grads={"w": jnp.zeros(4)}), "gradients must have .* parameters; they differ at w"),
        (returning(state={"hidden": jnp.zeros(3)}), "new state must have .* state; they differ at hidden"),
        (returning(state={}), "differ at hidden"),
        (toy(evaluate=lambda *_: {"count": jnp.zeros(())}), "count occurs twice"),
        (toy(evaluate=lambda *_: {"diverged_at": jnp.zeros(())}), "diverged_at occurs twice"),
    ):
        with pytest.raises(ValueError, match=words):
            train(dataset, learner)
