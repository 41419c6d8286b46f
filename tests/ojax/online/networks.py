"""Networks and data that several tests share."""

import contextlib
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import ojax
from ojax import datasets, online

WIDTHS = (784, 50, 40, 30, 10)
RATES = ("learning_rate", "oja_rate")


@functools.cache
def small_data():
    """Returns the embedded set with 200 test images."""
    data = datasets.load()
    return data._replace(test=datasets.Examples(*(array[:200] for array in data.test)))


def oja_sgd(hyper):
    return ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"])


def step_by_step(hyper):
    """Returns `oja_sgd` in a wrapper of another type, so that no windows are used."""
    return optax.GradientTransformationExtraArgs(*oja_sgd(hyper))


@functools.cache
def mlp_learner(widths=WIDTHS, optimizer=oja_sgd, **options):
    return online.classifier(lambda rngs: ojax.MLP(widths, rngs=rngs, **options), optimizer)


def as_hyper(eta, theta):
    return {"learning_rate": jnp.float32(eta), "oja_rate": jnp.float32(theta)}


def has_first_layer(learner, data=None, hyper=RATES):
    """Returns whether the first layer is updated in windows of samples."""
    return online.fast_path(learner, hyper, data or small_data(), online.Plan(32, (32,))).layer is not None


@contextlib.contextmanager
def compilations():
    """Records the threads that compile a training's program, or load it from disk, while the context lasts."""
    threads = []

    def listen(event, duration_secs, **facts):
        if event.endswith("backend_compile_duration") and facts.get("fun_name") == "jit(program)":
            threads.append(threading.current_thread())

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield threads
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def assert_same_scores(left, right):
    """Asserts equality bit for bit, at all evaluations."""
    assert [count for count, _ in left] == [count for count, _ in right]
    for (_, one), (_, other) in zip(left, right, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


class LinearNetwork(nnx.Module):
    """A user's own network of `nnx.Linear`."""

    def __init__(self, rngs, widths=(784, 20, 10)):
        self.encoder = nnx.Linear(*widths[:2], rngs=rngs)
        self.readout = nnx.Linear(*widths[1:], rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.encoder(x))
        ojax.record(self.encoder, x, hidden)
        logits = self.readout(hidden)
        ojax.record(self.readout, hidden, nnx.softmax(logits))
        return logits
