"""The benchmark's sides for recurrent networks: ojax, and a PyTorch loop over time steps.

A network of 100 tanh units recalls its last 30 inputs, with Oja's rule on input and recurrent weights in every step. Each
side reports microseconds per step and run; its first argument is the learning method.
"""

import functools
from collections.abc import Callable

import numpy as np

import ojax
from experiments.benchmark.sides import OJAX, Measurement, Side, looped, timed
from ojax import online, recurrent, streams

UNITS, DELAYS, HORIZON = 100, 30, 10
ETA, THETA = 1e-3, 1e-3
_DATA = streams.evaluated_ahead(streams.recall(DELAYS), num_test=1)
METHODS = ("read-out alone", "RFLO", f"BPTT through {HORIZON} steps")


def ojax_stream(method: str, runs: int, samples: int) -> Measurement:
    """Measures ojax, with a stream that is generated on the device."""
    hyper = {"learning_rate": ETA, "oja_rate": THETA}
    return timed(_learner(method), hyper, runs, _DATA, online.Plan(samples, (samples,)))


@functools.cache
def _learner(method: str) -> online.Learner:
    makers: list[Callable[..., online.Learner]] = [
        recurrent.readout_alone,
        recurrent.rflo,
        functools.partial(recurrent.truncated_bptt, horizon=HORIZON),
    ]
    make = dict(zip(METHODS, makers, strict=True))[method]
    return make(
        lambda rngs: recurrent.Network(recurrent.Cell(1, UNITS, rngs=rngs), DELAYS, rngs=rngs),
        lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"]),
    )


def torch_stream(method: str, runs: int, samples: int) -> Measurement:
    """Measures one run in PyTorch: by hand with updates in place, and for BPTT autograd over the last steps."""
    import torch

    torch.manual_seed(0)
    inputs = torch.rand(DELAYS + HORIZON + samples + 1, 1) - 0.5
    U, W = torch.rand(UNITS, 1) - 0.5, torch.randn(UNITS, UNITS) / UNITS**0.5
    V, b, B = torch.zeros(DELAYS, UNITS), torch.zeros(DELAYS), torch.randn(UNITS, DELAYS) / DELAYS**0.5
    weights = [U, W, V, b]
    through_time = method == METHODS[2]
    hidden = [torch.zeros(UNITS)] * (HORIZON + 1)  # Hidden states of the last steps, the newest last.
    optimizer = torch.optim.SGD(weights, lr=ETA)
    for weight in weights:
        weight.requires_grad_(through_time)

    def oja(x, h, y):
        with torch.no_grad():
            to_W, to_U = h - W.T @ y, x - U.T @ y
            W.addr_(y, to_W, alpha=THETA)
            U.addr_(y, to_U, alpha=THETA)

    def by_hand(step):
        x, h, target = inputs[step], hidden[-1], inputs[step - DELAYS : step, 0].flip(0)
        y = torch.tanh(torch.mv(W, h) + torch.mv(U, x))
        error = torch.mv(V, y) + b - target
        if method == METHODS[1]:
            sent = torch.mv(B, error) * (1 - y * y)
        oja(x, h, y)
        if method == METHODS[1]:
            W.addr_(sent, h, alpha=-ETA)
            U.addr_(sent, x, alpha=-ETA)
        V.addr_(error, y, alpha=-ETA)
        b.add_(error, alpha=-ETA)
        hidden[-1] = y

    def autograd(step):
        target, y = inputs[step - DELAYS : step, 0].flip(0), hidden[0]
        for past in range(step - HORIZON + 1, step + 1):
            y = torch.tanh(W @ y + U @ inputs[past])
        optimizer.zero_grad()
        (torch.sum((V @ y + b - target) ** 2) / 2).backward()
        y = y.detach()
        before = hidden[-1]
        optimizer.step()
        oja(inputs[step], before, y)
        hidden[:] = [*hidden[1:], y]

    learn = autograd if through_time else by_hand
    start = DELAYS + HORIZON
    found = looped(lambda step: learn(start + step), samples)
    return found if all(bool(torch.isfinite(weight).all()) for weight in weights) else Measurement(np.nan)


SIDES: dict[str, Side] = {OJAX: ojax_stream, "PyTorch, a loop by time step": torch_stream}
