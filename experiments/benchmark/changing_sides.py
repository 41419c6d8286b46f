"""The benchmark's sides for a stream that changes: ojax, and the published loop in PyTorch, written from its description.

A network of 784-300-150-10 ReLU units with biases learns images with a new permutation of pixels every 5,000 samples, by
gradient descent or by UPGD. Each side reports microseconds per sample and run; its first argument is the method.
"""

import functools
import itertools
from typing import Any

import jax
import numpy as np

import ojax
from experiments.benchmark.sides import OJAX, Measurement, Side, embedded, looped, timed
from experiments.tasks import continual_rivals, networks
from ojax import online, streams

WIDTHS, PERIOD = (784, 300, 150, 10), 5000
ETA, SIGMA = 1e-2, 0.1
METHODS = ("SGD", "UPGD")


def ojax_changing(method: str, runs: int, samples: int) -> Measurement:
    """Measures ojax, with a stream that is generated on the device."""
    data = streams.permuted_pixels(embedded(), period=PERIOD)
    return timed(_learner(method), {"learning_rate": ETA}, runs, data, online.Plan(samples, (samples,)))


@functools.cache
def _learner(method: str) -> online.Learner:
    def rule(hyper: online.Hyper) -> Any:
        if method == "SGD":
            return ojax.oja_sgd(hyper["learning_rate"], 0.0)
        return continual_rivals.upgd(hyper["learning_rate"], SIGMA)

    options: Any = {"activation": jax.nn.relu, "use_bias": True, "kernel_init": networks.lecun_third(WIDTHS)}
    return online.classifier(lambda rngs: ojax.MLP(WIDTHS, rngs=rngs, **options), rule)


def _torch_changing(method: str, runs: int, samples: int, *, threads: int) -> Measurement:
    """Measures one run in PyTorch: autograd on one image at a time, and a loop over the parameters."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    images = torch.from_numpy(embedded().train.inputs[:samples])
    labels = torch.from_numpy(embedded().train.targets[:samples]).long()
    layers: list[Any] = [torch.nn.Linear(n, m) for n, m in itertools.pairwise(WIDTHS)]
    network = torch.nn.Sequential(*itertools.chain(*((layer, torch.nn.ReLU()) for layer in layers[:-1])), layers[-1])
    weights = list(network.parameters())
    sgd = torch.optim.SGD(weights, lr=ETA)
    traces, count = [torch.zeros_like(weight) for weight in weights], 0
    decay = continual_rivals.UTILITY_DECAY

    def upgd() -> None:
        nonlocal count
        count += 1
        with torch.no_grad():
            for trace, weight in zip(traces, weights, strict=True):
                trace.mul_(decay).sub_(weight.grad * weight, alpha=1 - decay)  # type: ignore[operator]
            largest = torch.stack([trace.max() for trace in traces]).max() / (1 - decay**count)
            for trace, weight in zip(traces, weights, strict=True):
                utility = torch.sigmoid(trace / (1 - decay**count) / largest)
                change = (weight.grad + SIGMA * torch.randn_like(weight)) * (1 - utility)  # type: ignore[operator]
                weight.mul_(1 - ETA * continual_rivals.UPGD_WEIGHT_DECAY).sub_(change, alpha=ETA)

    order = torch.randperm(WIDTHS[0])

    def learn(index: int) -> None:
        nonlocal order
        if index % PERIOD == 0:
            order = torch.randperm(WIDTHS[0])
        image = images[index : index + 1, order]
        sgd.zero_grad()
        torch.nn.functional.cross_entropy(network(image), labels[index : index + 1]).backward()
        sgd.step() if method == "SGD" else upgd()

    found = looped(learn, samples)
    return found if all(bool(torch.isfinite(weight).all()) for weight in weights) else Measurement(np.nan)


SIDES: dict[str, Side] = {
    OJAX: ojax_changing,
    "PyTorch, one thread": functools.partial(_torch_changing, threads=1),
    "PyTorch, two threads": functools.partial(_torch_changing, threads=2),
}
