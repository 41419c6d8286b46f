"""With jax_enable_x64 all learners keep float32 weights, and learn as they do without it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ojax
from ojax import online, recurrent, streams

pytestmark = pytest.mark.compiled_quickly

NUM_TRAIN = 40


def images(shape=(6,)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_TRAIN, *shape)).astype(np.float32)
    labels = np.arange(NUM_TRAIN) % 4
    return ojax.datasets.Dataset.from_arrays(x, labels, x[:8], labels[:8])


def oja_sgd(hyper):
    return ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"])


def fading(hyper):
    return ojax.oja_sgd(hyper["learning_rate"], ojax.fading(hyper["oja_rate"], half_life=20.0))


def chained(hyper):
    return optax.chain(optax.sgd(hyper["learning_rate"], momentum=0.5), ojax.bcm(hyper["oja_rate"]))


def dense(rule=oja_sgd, **options):
    return online.classifier(lambda rngs: ojax.MLP([6, 5, 4], rngs=rngs, **options), rule), images()


def convolutional():
    make = lambda rngs: ojax.CNN((6, 6, 1), [3, 3], 4, strides=[2, 1], use_bias=True, rngs=rngs)  # noqa: E731
    return online.classifier(make, oja_sgd), images((6, 6, 1))


def over_time(method, stream=None, **options):
    make = lambda rngs: recurrent.Network(recurrent.Cell(1, 4, rngs=rngs, **options), 1, rngs=rngs)  # noqa: E731
    return method(make, oja_sgd), streams.evaluated_ahead(stream or streams.recall(1, binary=True), num_test=8)


CASES = {
    "a network with biases": lambda: dense(use_bias=True),
    "batch norm and random feedback": lambda: dense(normalization=ojax.modules.BatchNorm, feedback="random"),
    "a rate that fades": lambda: dense(fading),
    "a rule with a state": lambda: dense(chained),
    "images whose gain drifts": lambda: (dense()[0], streams.drifting_gain(images(), period=20)),
    "a convolutional network": convolutional,
    "RFLO with a trace": lambda: over_time(recurrent.rflo, leaking_rate=0.5),
    "BPTT": lambda: over_time(functools.partial(recurrent.truncated_bptt, horizon=3)),
    "RTRL": lambda: over_time(recurrent.rtrl),
    "NARMA-10": lambda: over_time(recurrent.rflo, streams.narma10()),
    "the Mackey-Glass equation": lambda: over_time(recurrent.readout_alone, streams.mackey_glass()),
}


def frame(learner, data):
    hyper, seeds = online.grid({"learning_rate": 0.05, "oja_rate": 0.01}, seeds=2)
    return online.data_frame(hyper, seeds, online.train(learner, hyper, seeds, data, online.Plan(NUM_TRAIN, (NUM_TRAIN,))))


@pytest.mark.parametrize("case", CASES)
def test_a_run_equals_its_32_bit_run(case):
    learner, data = CASES[case]()
    wanted = frame(learner, data)
    with jax.enable_x64(True):
        learner, data = CASES[case]()
        params, _ = jax.eval_shape(learner.init, jax.random.key(0), {"learning_rate": 0.05, "oja_rate": 0.01})
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        found = frame(learner, data)
    for score in ("train_loss", "test_loss"):
        np.testing.assert_allclose(found[score], wanted[score], rtol=1e-4)
