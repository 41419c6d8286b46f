"""The benchmark's sides: ojax, and alternatives that a user would write. Each reports microseconds per sample and run."""

import concurrent.futures
import contextlib
import ctypes
import functools
import importlib.util
import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ojax
from ojax import datasets, online

NETWORKS = {
    "5 layers": (784, 170, 130, 100, 70, 47),
    "10 layers": (784, 170, 150, 130, 120, 110, 100, 90, 80, 70, 47),
}


class Convolutions(NamedTuple):
    """A convolutional network of 3 x 3 kernels on images of 28 x 28 pixels, with a read-out of 47 classes.

    Attributes:
      channels: Number of channels of each hidden layer.
      strides: Stride of each hidden layer.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]


CONVOLUTIONS = {
    "4 layers": Convolutions((16,) * 3, (2, 1, 2)),
    "8 layers": Convolutions((16,) * 7, (2, 1, 2, 1, 1, 1, 1)),
}
Network = tuple[int, ...] | Convolutions  # Widths of a dense network, or a convolutional one.
ETA, THETA = 1e-3, 1e-4


class Measurement(NamedTuple):
    """A side's measurement of one repetition.

    Attributes:
      microseconds: Mean microseconds per sample and run.
      first_seconds: Seconds from the call to the first samples, mostly compilation.
      mebibytes: Peak memory of the side's process so far, libraries included.
    """

    microseconds: float
    first_seconds: float = np.nan
    mebibytes: float = np.nan


Side = Callable[[Any, int, int], Measurement]  # From a network, and numbers of runs and samples.
_CLOCK = {"clock": time.perf_counter}


def clock() -> float:
    """Returns seconds: wall-clock time, or this process's CPU time after :func:`count_work`."""
    return _CLOCK["clock"]()


def count_work() -> None:
    """Makes :func:`clock` return this process's CPU time, summed over its threads."""
    _CLOCK["clock"] = time.process_time


@functools.cache
def embedded(flatten: bool = True) -> datasets.Dataset:
    """Returns the embedded images with ten test images, and with as many names of classes as EMNIST has."""
    data = datasets.load(flatten=flatten)
    return data._replace(test=datasets.Examples(*(array[:10] for array in data.test)), class_names=("",) * 47)


def timed(
    learner: online.Learner,
    hyper: Mapping[str, float],
    runs: int,
    data: datasets.Dataset,
    plan: online.Plan,
    checkpoints: online.Checkpoints | None = None,
) -> Measurement:
    """Measures ojax's public API on equal runs, which are mapped and sharded, from the first samples to the last."""
    times: list[tuple[int, float]] = []
    began = clock()
    with checkpoints or contextlib.nullcontext():
        for _ in online.train(
            *(learner, {name: [value] * runs for name, value in hyper.items()}, range(runs), data, plan),
            checkpoints=checkpoints,
            on_progress=lambda seen: times.append((seen, clock())),
        ):
            pass
        trained = clock()
    saved = clock() - trained  # Time of pending background saves.
    (first, first_time), (last, last_time) = times[1], times[-1]
    return Measurement(1e6 * (last_time - first_time + saved) / (last - first) / runs, first_time - began)


def looped(learn: Callable[[int], None], samples: int) -> Measurement:
    """Measures a loop that learns from one sample after the other, by their numbers, after a first call."""
    learn(0)
    began = clock()
    for index in range(samples):
        learn(index)
    return Measurement(1e6 * (clock() - began) / samples)


def installed(known: Mapping[str, Side]) -> dict[str, Side]:
    """Returns the sides whose library or compiler is on this machine."""
    found = {"PyTorch": importlib.util.find_spec("torch"), "C,": compiler()}
    missing = tuple(start for start, place in found.items() if place is None)
    return {name: side for name, side in known.items() if not name.startswith(missing)}


def ojax_runs(
    network: Network, runs: int, samples: int, *, rule: bool = True, every_seconds: float | None = None
) -> Measurement:
    """Measures an Optax chain, with or without checkpoints."""
    data = embedded(flatten=not isinstance(network, Convolutions))
    plan = online.Plan(min(samples, data.num_train), evaluate_at=(samples,), epochs=-(-samples // data.num_train))
    with tempfile.TemporaryDirectory() as folder:
        saving = online.Checkpoints(folder, every_seconds=every_seconds) if every_seconds else None
        return timed(_learner(network), {"learning_rate": ETA, "oja_rate": THETA * rule}, runs, data, plan, saving)


@functools.cache
def _learner(network: Network) -> online.Learner:
    def make(rngs: nnx.Rngs) -> nnx.Module:
        if isinstance(network, Convolutions):
            return ojax.CNN((28, 28, 1), network.channels, 47, strides=network.strides, rngs=rngs)
        return ojax.MLP(network, rngs=rngs)

    return online.classifier(make, lambda hyper: ojax.oja_sgd(hyper["learning_rate"], hyper["oja_rate"]))


def _jax_by_sample(network: Network, runs: int, samples: int) -> Measurement:
    """Measures ojax's chain in a Python loop that dispatches one step per sample."""
    learner, data = _learner(network), embedded(flatten=not isinstance(network, Convolutions))
    hyper = {"learning_rate": jnp.float32(ETA), "oja_rate": jnp.float32(THETA)}
    params, state = jax.jit(online.initial_params, static_argnums=0)(learner, hyper, 0)
    opt_state = learner.optimizer(hyper).init(params)

    @jax.jit
    def learn(params, opt_state, image, label):
        made = online.step(learner, hyper, params, state, opt_state, datasets.Examples(image, label))
        return made.params, made.opt_state

    def go(params, opt_state, count):
        began = clock()
        for image, label in zip(data.train.inputs[:count], data.train.targets[:count], strict=True):
            params, opt_state = learn(params, opt_state, image, label)
        jax.block_until_ready(params)
        return params, opt_state, clock() - began

    params, opt_state, first = go(params, opt_state, 1)
    *_, seconds = go(params, opt_state, samples)
    return Measurement(1e6 * seconds / samples, first)


def _torch(widths: Sequence[int], runs: int, samples: int, *, form: str) -> Measurement:
    """Measures one run in PyTorch: `autograd` (SGD, no Oja), or the update by hand, as `published` or in a `cheap` form."""
    import torch

    torch.manual_seed(0)
    data = embedded()
    images, labels = torch.from_numpy(data.train.inputs[:samples]), torch.from_numpy(data.train.targets[:samples]).long()
    layers = [torch.nn.Linear(n, m, bias=False) for n, m in itertools.pairwise(widths)]
    softplus = torch.nn.Softplus(beta=10)

    def autograd(image, label):
        optimizer.zero_grad()
        y = image
        for layer in layers[:-1]:
            y = softplus(layer(y))
        torch.nn.functional.cross_entropy(layers[-1](y), label[None]).backward()
        optimizer.step()

    def by_hand(image, label):
        with torch.no_grad():
            ys = [image[0]]
            for layer in layers[:-1]:
                ys.append(softplus(layer.weight @ ys[-1]))
            ys.append(torch.softmax(layers[-1].weight @ ys[-1], 0))
            error = ys[-1] - torch.nn.functional.one_hot(label, widths[-1])
            for layer, x, y in zip(layers[::-1], ys[-2::-1], ys[:0:-1], strict=True):
                below = (layer.weight.T @ error) * (1 - torch.exp(-10 * x))
                if form == "published":
                    decay = torch.outer(y, y) @ layer.weight
                    layer.weight += -ETA * torch.outer(error, x) + THETA * (torch.outer(y, x) - decay)
                else:
                    layer.weight += torch.outer(-ETA * error, x) + torch.outer(THETA * y, x - layer.weight.T @ y)
                error = below

    step = autograd if form == "autograd" else by_hand
    optimizer = torch.optim.SGD([layer.weight for layer in layers], lr=ETA)
    return looped(lambda index: step(images[index : index + 1], labels[index]), samples)


def _torch_convolutions(network: Convolutions, runs: int, samples: int, *, form: str) -> Measurement:
    """Measures one run of a convolutional network in PyTorch: `autograd` with SGD and no Oja, or by hand with `unfold`."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)  # More threads make it slower.
    data, functional = embedded(flatten=False), torch.nn.functional
    images = torch.from_numpy(data.train.inputs[:samples]).movedim(-1, 1)
    labels = torch.from_numpy(data.train.targets[:samples]).long()
    channels = (1, *network.channels)
    pairs, size = zip(itertools.pairwise(channels), network.strides, strict=True), 28
    convolutions: list[Any] = [torch.nn.Conv2d(n, m, 3, stride, padding=1, bias=False) for (n, m), stride in pairs]
    for stride in network.strides:
        size = -(-size // stride)
    readout = torch.nn.Linear(channels[-1] * size**2, 47, bias=False)
    softplus = torch.nn.Softplus(beta=10)

    def autograd(image, label):
        optimizer.zero_grad()
        y = image
        for layer in convolutions:
            y = softplus(layer(y))
        functional.cross_entropy(readout(y.flatten(1)), label[None]).backward()
        optimizer.step()

    def by_hand(image, label):
        with torch.no_grad():
            patches, ys = [], [image]
            for layer, stride in zip(convolutions, network.strides, strict=True):
                patches.append(functional.unfold(ys[-1], 3, padding=1, stride=stride)[0])
                z = layer.weight.flatten(1) @ patches[-1]
                ys.append(softplus(z).view(1, len(z), *[round(z.shape[1] ** 0.5)] * 2))
            x, weight = ys[-1].flatten(), readout.weight
            y = torch.softmax(weight @ x, 0)
            error = y - functional.one_hot(label, 47)
            below = weight.T @ error
            weight += torch.outer(-ETA * error, x) + torch.outer(THETA * y, x - weight.T @ y)
            for index in reversed(range(len(convolutions))):
                weight, rows = convolutions[index].weight.flatten(1), patches[index]
                y = ys[index + 1].view(len(weight), -1)
                error = below.view_as(y) * (1 - torch.exp(-10 * y))
                if index:
                    options = {"padding": 1, "stride": network.strides[index]}
                    below = functional.fold((weight.T @ error)[None], ys[index].shape[2:], 3, **options)
                weight += -ETA * error @ rows.T + THETA / y.shape[1] * (y @ rows.T - (y @ y.T) @ weight)

    step = autograd if form == "autograd" else by_hand
    optimizer = torch.optim.SGD([layer.weight for layer in (*convolutions, readout)], lr=ETA)
    return looped(lambda index: step(images[index : index + 1], labels[index]), samples)


def _compiled(widths: Sequence[int], runs: int, samples: int) -> Measurement:
    """Measures `reference.c`, one run per core."""
    library, data = ctypes.CDLL(str(_compile())), embedded()
    sizes = list(itertools.pairwise(widths))

    def pointer(array: np.ndarray) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    def arrays(seed: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(seed)
        layers = [rng.uniform(-1, 1, (n, m)) * np.sqrt(6 / (n + m)) for n, m in sizes]
        weights = np.concatenate([layer.ravel() for layer in layers]).astype(np.float32)
        activity, errors = np.zeros(sum(widths), np.float32), np.zeros(2 * max(widths), np.float32)
        order = rng.permutation(len(data.train.targets))[:samples].astype(np.int32)
        return np.array(widths, np.int32), weights, activity, errors, order

    def learn(shape: np.ndarray, weights: np.ndarray, activity: np.ndarray, errors: np.ndarray, order: np.ndarray) -> None:
        library.learn(  # It releases Python's lock, so that threads run in parallel.
            len(sizes), pointer(shape), pointer(weights), pointer(activity), pointer(errors), max(widths),
            pointer(data.train.inputs), pointer(data.train.targets), pointer(order), samples,
            ctypes.c_float(ETA), ctypes.c_float(THETA),
        )  # fmt: skip

    each = [arrays(seed) for seed in range(runs)]
    with concurrent.futures.ThreadPoolExecutor(runs) as threads:
        began = clock()
        list(threads.map(lambda arguments: learn(*arguments), each))
        seconds = clock() - began
    return Measurement(1e6 * seconds / samples / runs)


@functools.cache
def _compile() -> Path:
    folder = Path(tempfile.mkdtemp())
    source = Path(__file__).parent / "reference.c"
    options = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
    command = [compiler() or "cc", *options, str(source), "-o", str(folder / "reference.so"), "-lm"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "reference.so"


def compiler() -> str | None:
    """Returns a C compiler; None if there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


OJAX, BY_SAMPLE = "ojax", "JAX, a dispatch per sample"
COMPILED, ALL_CORES = "C, one core", "C, a run on each core"
CORES = online.num_cores()
SIDES: dict[str, Side] = {
    OJAX: ojax_runs,
    "ojax, backprop alone": functools.partial(ojax_runs, rule=False),
    BY_SAMPLE: _jax_by_sample,
    "PyTorch by hand, as published": functools.partial(_torch, form="published"),
    "PyTorch by hand, cheap form": functools.partial(_torch, form="cheap"),
    "PyTorch autograd, SGD, no Oja": functools.partial(_torch, form="autograd"),
    COMPILED: _compiled,
    ALL_CORES: _compiled,
}
CONVOLUTIONAL_SIDES: dict[str, Side] = {
    OJAX: ojax_runs,
    "ojax, backprop alone": functools.partial(ojax_runs, rule=False),
    BY_SAMPLE: _jax_by_sample,
    "PyTorch by hand, with unfold": functools.partial(_torch_convolutions, form="by hand"),
    "PyTorch autograd, SGD, no Oja": functools.partial(_torch_convolutions, form="autograd"),
}
