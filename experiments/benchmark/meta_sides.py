"""The benchmark's sides for meta-learning: ojax, and PyTorch's autograd through the unrolled episode.

An episode is 250 samples learned online by the pseudo-gradient and Oja's rule with random feedback, and the gradient of the
loss on 50 query images with respect to both coefficients. Each side reports microseconds per episode and run.
"""

import functools
import itertools
from typing import Any

import numpy as np
import optax

from experiments.benchmark.sides import CORES, NETWORKS, OJAX, Measurement, Side, clock, looped
from ojax import datasets, meta, online, plasticity

EPISODES = meta.Episodes()
START = {"pseudo_gradient": 1e-2, "oja": 3e-3}


@functools.cache
def _data(count: int) -> datasets.Dataset:
    return EPISODES.of(datasets.load(), count)


@functools.cache
def _learner() -> online.Learner:
    inner = meta.classifier(NETWORKS["5 layers"], {name: plasticity.POOL[name] for name in START}, feedback="random")

    def optimizer(hyper: online.Hyper) -> optax.GradientTransformation:
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(hyper["meta_rate"]))

    return meta.learner(inner, START, optimizer, num_test=1)


def ojax_episodes(network: Any, runs: int, samples: int) -> Measurement:
    """Measures ojax's public API: episodes are drawn on the device, runs are mapped and sharded."""
    plan = online.Plan(samples, (samples // 2, samples), shuffle=False)
    times, evaluated = [], []
    began = clock()
    for _ in online.train(
        *(_learner(), {"meta_rate": [1e-4] * runs}, range(runs), _data(samples), plan),
        on_progress=lambda seen: times.append(clock()),
    ):
        evaluated.append(clock())
    # The first evaluation is compiled in the first half.
    return Measurement(1e6 * (times[-1] - evaluated[0]) / (samples - samples // 2) / runs, times[1] - began)


def torch_episodes(network: Any, runs: int, samples: int, *, threads: int) -> Measurement:
    """Measures one run in PyTorch: every update is a new tensor, with autograd through all of them."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    images, widths = torch.from_numpy(np.asarray(_data(samples).train["images"].arrays)), NETWORKS["5 layers"]
    softplus, functional = torch.nn.Softplus(beta=10), torch.nn.functional
    theta = [torch.tensor(value, requires_grad=True) for value in START.values()]
    optimizer = torch.optim.Adam(theta, lr=1e-4)

    def glorot(n, m):
        return (2 * torch.rand(m, n) - 1) * (6 / (n + m)) ** 0.5

    def forward(weights, x):
        ys = [x]
        for W in weights[:-1]:
            ys.append(softplus(ys[-1] @ W.T))
        return ys, ys[-1] @ weights[-1].T

    def episode():
        weights = [glorot(n, m) for n, m in itertools.pairwise(widths)]
        back = [glorot(n, m) for n, m in itertools.pairwise(widths)]
        classes = torch.randperm(len(images))[: EPISODES.num_classes]
        rows = torch.stack([torch.randperm(images.shape[1])[:60] for _ in classes])
        drawn, labels = images[classes[:, None], rows], classes[:, None].expand(-1, 60)
        order = torch.randperm(250)
        train = drawn[:, :50].reshape(250, -1)[order], labels[:, :50].reshape(250)[order]
        for x, label in zip(*train, strict=True):
            ys, logits = forward(weights, x[None])
            ys.append(torch.softmax(logits, 1))
            errors = [ys[-1] - functional.one_hot(label, widths[-1])]
            for y, B in zip(ys[-2:0:-1], back[:0:-1], strict=True):
                errors.insert(0, errors[0] @ B * (1 - torch.exp(-10 * y)))
            weights = [
                W - theta[0] * e.T @ x + theta[1] * (y.T @ x - (y.T @ y) @ W)
                for W, x, y, e in zip(weights, ys[:-1], ys[1:], errors, strict=True)
            ]
        logits = forward(weights, drawn[:, 50:].reshape(50, -1))[1]
        optimizer.zero_grad()
        functional.cross_entropy(logits, labels[:, 50:].reshape(50)).backward()
        torch.nn.utils.clip_grad_norm_(theta, 1.0)
        optimizer.step()

    return looped(lambda _: episode(), samples)


SIDES: dict[str, Side] = {
    OJAX: ojax_episodes,
    "PyTorch autograd, 1 thread": functools.partial(torch_episodes, threads=1),
    f"PyTorch autograd, {CORES} threads": functools.partial(torch_episodes, threads=CORES),
}
