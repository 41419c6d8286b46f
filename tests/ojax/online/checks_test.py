"""Wrong data are refused with one line before anything is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from flax import nnx

import ojax
from ojax import datasets, online
from ojax.online import checks
from tests.ojax.online.networks import mlp_learner, oja_sgd

pytestmark = pytest.mark.compiled_quickly

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(20, 6)).astype(np.float32)
LABELS = (np.arange(20) % 3).astype(np.int32)
HYPER = {"learning_rate": [1e-2], "oja_rate": [1e-3]}


def data_of(images=IMAGES, labels=LABELS, test_images=IMAGES, test_labels=LABELS):
    """Makes a data set without the checks of `Dataset.from_arrays`."""
    return datasets.Dataset(datasets.Examples(images, labels), datasets.Examples(test_images, test_labels))


def with_nan(array):
    array = np.array(array)
    array[7, 2] = np.nan
    return array


def train(dataset, learner=None, plan=None):
    plan = plan or online.Plan(20, (20,))
    return list(online.train(learner or mlp_learner((6, 5, 3)), HYPER, [0], dataset, plan))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (data_of(labels=LABELS + 1), ["3 outputs", "from 0 to 2", "from 0 to 3", "1 to 3"][:2]),
        (data_of(labels=LABELS - 1), ["from 0 to 2", "from -1 to 1"]),
        (data_of(test_labels=LABELS + 1), ["from 0 to 2", "from 1 to 3"]),
        (data_of(labels=LABELS.astype(np.float32)), ["one whole number for a label", "float32[]"]),
        (data_of(labels=np.eye(3, dtype=np.int32)[LABELS]), ["one whole number for a label", "int32[3]"]),
        (data_of(images=IMAGES.reshape(20, 2, 3)), ["sample", "inputs float32[2, 3]"]),
        (data_of(images=IMAGES[:, 0], test_images=IMAGES[:, 0]), ["inputs float32[]", "an axis of features: x[:, None]"]),
        (data_of(test_images=IMAGES[:, :5]), ["test data", "inputs float32[20, 5]"]),
        (data_of(images=with_nan(IMAGES)), ["not finite", "train.inputs[7, 2] is nan"]),
        (data_of(test_images=with_nan(IMAGES)), ["not finite", "test.inputs[7, 2] is nan"]),
        (data_of(labels=LABELS[:10]), ["same number of samples", "20", "10"]),
        (datasets.Dataset(IMAGES, IMAGES), ["sample"]),
        (data_of(images=IMAGES[:0], labels=LABELS[:0]), ["at least 1"]),
    ],
)
def test_data_that_do_not_fit_a_classifier(dataset, words, monkeypatch):
    monkeypatch.setattr(online.training, "programs", None)  # No program may be built.
    with pytest.raises(ValueError) as refused:
        train(dataset)
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_loss_without_one_number_for_each_sample():
    learner = online.supervised(
        lambda rngs: ojax.MLP([6, 5, 1], readout=ojax.modules.linear, rngs=rngs),
        oja_sgd,
        loss=lambda output, target: (output - target) ** 2,
    )
    with pytest.raises(ValueError, match=r"the loss of one sample must be a scalar; .* it has shape \(1,\)"):
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
        (toy(evaluate=lambda *_: {"count": jnp.zeros(())}), "count is both"),
        (toy(evaluate=lambda *_: {"diverged_at": jnp.zeros(())}), "cannot be called diverged_at"),
    ):
        with pytest.raises(ValueError, match=words):
            train(dataset, learner)


def test_targets_without_an_axis_are_not_mixed_up():
    """Outputs (batch, 1) and targets (batch,) would be broadcast to (batch, batch)."""
    targets = IMAGES[:, 0] + 5
    learner = online.supervised(
        lambda rngs: ojax.MLP([6, 5, 1], readout=ojax.modules.linear, rngs=rngs),
        oja_sgd,
        loss=lambda output, target: jnp.sum((output - target) ** 2),
    )
    dataset = data_of(labels=targets, test_labels=targets)
    ((_, scores),) = train(dataset, learner, online.Plan(20, (20,), batch_size=4))
    params, state = learner.init(jax.random.fold_in(jax.random.key(0), 0), {})
    outputs = np.asarray(learner.apply(params, state, IMAGES))[:, 0]
    ((_, first),) = train(dataset, learner, online.Plan(20, (0,)))
    np.testing.assert_allclose(first["test_loss"], np.mean((outputs - targets) ** 2), rtol=1e-5)
    assert 0 < scores["train_loss"] < 1.1 * first["test_loss"]


@pytest.mark.parametrize(
    ("hyper", "seeds", "words"),
    [
        (HYPER, 0, ["seeds must be a sequence"]),
        (HYPER, [], ["seeds must be a sequence"]),
        (HYPER, [1.9], ["whole numbers from 0", "float64"]),
        (HYPER, [-1], ["whole numbers from 0", "from -1"]),
        (HYPER, [2**32], ["whole numbers from 0"]),
        (HYPER | {"oja_rate": 0.1}, [0], ["one value per run", "oja_rate has shape ()", "online.grid"]),
        (HYPER | {"oja_rate": [[0.1]]}, [0], ["oja_rate has shape (1, 1)"]),
        (HYPER | {"oja_rate": [np.nan]}, [0], ["oja_rate must be numbers"]),
        ({"learning_rate": [0.1]}, [0], ["optimizer reads 'oja_rate'", "hyper only has learning_rate"]),
    ],
)
def test_runs_that_are_refused(hyper, seeds, words):
    """Refused at once, not at the first score."""
    with pytest.raises(ValueError) as refused:
        online.train(mlp_learner((6, 5, 3)), hyper, seeds, data_of(), online.Plan(20, (20,)))
    for word in words:
        assert word in str(refused.value)


def test_other_things_that_a_learner_may_return():
    dataset = datasets.Dataset(IMAGES, {})
    for learner, words in (
        (toy()._replace(init=lambda key, hyper: {"w": jnp.zeros(3)}), r"init must return \(params, state\)"),
        (toy(lambda *_: jnp.zeros(3)), "must return an ojax.online.Gradient"),
        (toy(evaluate=lambda *_: jnp.zeros(3)), "evaluate must return a dict"),
        (toy(evaluate=lambda *_: {"a": {"b": jnp.zeros(3)}}), "evaluate must return a dict of arrays"),
        (toy(evaluate=lambda *_: {"a": None}), "evaluate must return a dict of arrays"),
        (toy()._replace(optimizer=lambda hyper: None), "learner's optimizer fails"),
    ):
        with pytest.raises(ValueError, match=words):
            train(dataset, learner)

    def with_sums(sums):
        return toy(lambda params, state, sample, hyper: online.Gradient({"w": jnp.zeros(3)}, {}, state, sums))

    for sums in ({"a": jnp.zeros(())}, {"a": online.Sum(jnp.zeros(3), jnp.zeros(()))}, [], None):
        with pytest.raises(ValueError, match="sums of a gradient must be a dict"):
            train(dataset, with_sums(sums))


def test_a_network_that_keeps_its_streams_of_keys():
    class Noisy(ojax.MLP):
        def __init__(self, *args, rngs, **options):
            super().__init__(*args, rngs=rngs, **options)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.rngs = rngs

        def __call__(self, x):
            return super().__call__(self.dropout(x))

    learner = online.classifier(lambda rngs: Noisy([6, 5, 3], rngs=rngs), oja_sgd)
    ((_, scores),) = train(data_of(), learner)
    assert np.isfinite(scores["test_loss"]).all()


def test_multi_steps_and_masks_that_are_not_finite():
    def optimizer(hyper):
        return optax.MultiSteps(oja_sgd(hyper), 4)

    ((_, scores),) = train(data_of(), mlp_learner((6, 5, 3), optimizer))
    assert scores["diverged_at"] == -1
    masked = toy()._replace(init=lambda key, hyper: ({"w": jnp.array([0.0, -jnp.inf, 0.0])}, {"hidden": jnp.zeros(2)}))
    ((_, scores),) = train(datasets.Dataset(IMAGES, {}), masked)
    assert scores["diverged_at"] == -1


def test_the_shapes_of_array_likes_are_those_of_their_arrays():
    """NumPy does not know the types of pandas."""
    numbers = pd.Series([1, 2], dtype="Int64")
    assert checks.shapes(numbers, ()).leaves == checks.shapes(np.array([1, 2]), ()).leaves
