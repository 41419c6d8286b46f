"""Image classification: the paper's networks, learning from images and labels, one sample at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from experiments.common.errors import UserError, of_flag
from experiments.common.flags import (
    BATCH_SIZE,
    LEARNING_RATE,
    OJA_HALF_LIFE,
    OJA_RATE,
    Axis,
    Flag,
    Settings,
    kind_of_data,
    whole,
)
from experiments.common.parsers import DataName, FilePath, Names, Numbers, format_list
from experiments.common.task import Setting, Task
from experiments.tasks.registry import ACTIVATIONS, INITIALIZERS, NORMALIZATIONS, OPTIMIZERS, RULES

if TYPE_CHECKING:
    from flax import nnx

    from ojax.datasets import Dataset
    from ojax.online import Learner

FEEDBACK = Axis(
    "feedback",
    "backprop",
    "How the error is sent back through the layers",
    Names(("backprop", "random", "direct")),
    words=lambda value: value if value == "backprop" else f"{value} feedback",
    canonical="backprop",
)
# Conditions under which a brain learns, see :mod:`experiments.tasks.stresses`.
STRESSES = (
    Axis(
        "update_noise",
        "0",
        "Noise in every update: each weight's change is multiplied by 1 + sigma times a standard normal number.",
        Numbers(float, 0),
        words="update noise {:g}",
        canonical=0.0,
    ),
    Axis(
        "weight_levels",
        "0",
        "Levels of each weight, evenly spaced over six standard deviations of its layer's initial weights, to which it is "
        "rounded at random after every update (16 is 4 bits); 0 for real numbers.",
        Numbers(int, 0, 2**16),
        words=lambda value: f"{value} weight levels" if value else "real weights",
        canonical=0,
    ),
    Axis(
        "connectivity",
        "1",
        "Shares of the connections that a network has, drawn by its seed; initial weights are divided by the share's root.",
        Numbers(float, 0, 1, exclusive=True),
        words="{:g} of connections",
        canonical=1.0,
    ),
    Axis(
        "error_delay",
        "0",
        "Delay of the gradient of the loss in samples; the plasticity rule acts at once.",
        Numbers(int, 0, 100),
        words=lambda value: f"error {value} sample{'s' if value != 1 else ''} late",
        canonical=0,
    ),
    Axis(
        "input_scale",
        "1",
        "Factors on all training and test inputs.",
        Numbers(float, 0, exclusive=True),
        words="inputs x {:g}",
        canonical=1.0,
    ),
    Axis(
        "label_changes",
        "0",
        "Number of evenly spaced permutations of the labels during a run; accuracy is for the current labels.",
        Numbers(int, 0, 10**6),
        words=lambda times: "labels permuted once" if times == 1 else f"labels permuted {times} times",
        canonical=0,
    ),
)
NO_STRESS = {axis.name: axis.canonical for axis in STRESSES}
AXES = (
    Axis("depth", "5,10", "Numbers of layers, the read-out included.", Numbers(int, 1, 1000), words="{} layers"),
    Axis(
        "init",
        "glorot_uniform",
        "How the initial weights are drawn",
        Names(INITIALIZERS),
        traced=True,
        words=lambda name: f"{name.replace('glorot ', 'Glorot-').replace('he ', 'He-')} weights",
    ),
    Axis(
        "init_gain",
        "1",
        "Factors on the initial weights.",
        Numbers(float, 0, exclusive=True),
        traced=True,
        words="gain {:g}",
    ),
    FEEDBACK,
    Axis(
        "normalization",
        "none",
        "What normalizes the hidden layers",
        Names(NORMALIZATIONS),
        words=lambda value: "no norm" if value == "none" else f"{value} norm",
        canonical="none",
    ),
    Axis("activation", "softplus", "Non-linearity of the hidden layers", Names(ACTIVATIONS), canonical="softplus"),
    Axis(
        "optimizer",
        "sgd",
        "What makes the error term of the gradient",
        Names(OPTIMIZERS),
        canonical="sgd",
    ),
    Axis("rule", "oja", "The plasticity rule", Names(RULES), words="{} rule", canonical="oja"),
    BATCH_SIZE,
    LEARNING_RATE,
    OJA_RATE._replace(default="0,3e-5,1e-4,3e-4,1e-3"),
    OJA_HALF_LIFE,
    *STRESSES,
)
DATA_DIR = Flag(
    "data_dir",
    None,
    "Folder with prepared TFDS data sets, where a missing one is prepared too; TFDS's own default if not given.",
    FilePath(remote=True),
    decides=False,
)
DATASET = Flag(
    "dataset",
    "embedded",
    "Data set: embedded (12,000 images of Fashion-MNIST, shipped with ojax), a TFDS image-classification set by its "
    "name (mnist, fashion_mnist, emnist/balanced, ...), idx:FOLDER with MNIST-style IDX files, or npz:FILE with arrays "
    "x, y, x_test and y_test.",
    DataName(),
    fixed=kind_of_data,
)
FLAGS = (
    DATASET,
    DATA_DIR,
    Flag(
        "widths",
        None,
        "Widths of the hidden layers, instead of --depth; by default they fall from 170 to 70.",
        Numbers(int, 1, 2**31 - 1, repeats=True),
    ),
    Flag("num_test", 2000, "Test images at each evaluation, at most; 0 takes all.", whole(0)),
    Flag("skip_test", 0, "Number of first test images to leave out, to use images that no other study used.", whole(0)),
    Flag("measures", False, "Record measures of each layer's activity, weights and errors.", flags.BooleanParser()),
)
# The five-layer network of arXiv 2210.16414, and a similar one of ten layers; other depths are spaced evenly.
_HIDDEN_WIDTHS = {5: (170, 130, 100, 70), 10: (170, 150, 130, 120, 110, 100, 90, 80, 70)}


def complete(settings: Settings) -> Settings:
    """Returns the settings with the depth from --widths."""
    if settings["widths"] is None:
        return settings
    depth = (len(settings["widths"]) + 1,)
    if "depth" in settings.given and settings["depth"] != depth:
        raise UserError(
            f"--depth={format_list(settings['depth'])} does not go with --widths, whose {depth[0] - 1} hidden layers and "
            f"the read-out make {depth[0]}: leave --depth out."
        )
    return settings.changed(depth=depth)


def canonical(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the run in its canonical form: without the rule its half-life has no effect."""
    return {**run, "oja_half_life": math.inf} if run["oja_rate"] == 0 else run


def load(settings: Settings) -> Dataset:
    """Loads the data set with images as vectors, and the first `num_test` test images."""
    return load_images(settings, flatten=True)


def load_images(settings: Settings, *, flatten: bool) -> Dataset:
    """Loads the data set with the first `num_test` test images; without `flatten` images keep their shape."""
    from ojax import datasets
    from ojax.datasets import checking

    dataset = datasets.load(settings["dataset"], data_dir=settings["data_dir"], flatten=flatten)
    with of_flag("dataset", settings["dataset"]):
        checking.require_labels(dataset)
    first = settings.get("skip_test", 0)
    if first >= len(dataset.test.inputs):
        raise UserError(f"--skip_test={first}: {dataset.name} has {len(dataset.test.inputs)} test images; leave out fewer.")
    last = first + settings["num_test"] if settings["num_test"] else None
    return dataset._replace(test=datasets.Examples(*(array[first:last] for array in dataset.test)))


def shown(setting: Setting, data: Dataset) -> Dataset:
    """Returns the data of a setting, with scaled inputs and with labels that are permuted during the run."""
    from ojax import streams

    data, changes = scaled(setting, data), setting["label_changes"]
    if not changes:
        return data
    period, left = divmod(setting["num_train"], changes + 1)
    if setting["epochs"] > 1:
        raise UserError("With --label_changes samples come as a stream, which has no epochs: give a larger --num_train.")
    if left or period % setting["batch_size"]:
        raise UserError(
            f"--label_changes={changes} makes {changes + 1} tasks of equal length: give a --num_train of which each has a "
            "whole number of batches."
        )
    return streams.permuted_labels(data, period=period)


def scaled(setting: Setting, data: Dataset) -> Dataset:
    """Returns the data with inputs multiplied by `--input_scale`."""
    from ojax import datasets

    scale = np.float32(setting.get("input_scale", 1))
    if scale == 1:
        return data
    train, test = (datasets.Examples(part.inputs * scale, part.targets) for part in (data.train, data.test))
    return data._replace(train=train, test=test)


def hidden_widths(setting: Setting) -> tuple[int, ...]:
    """Returns the widths of the hidden layers; the depth includes the read-out."""
    depth = setting["depth"]
    if setting["widths"] is not None:
        return setting["widths"]
    if depth in _HIDDEN_WIDTHS:
        return _HIDDEN_WIDTHS[depth]
    return tuple(round(170 - 100 * layer / max(depth - 2, 1)) for layer in range(depth - 1))


def all_widths(setting: Setting, data: Dataset) -> Sequence[int]:
    """Returns the widths of all layers, from the inputs to the classes."""
    return [data.train.inputs.shape[1], *hidden_widths(setting), len(data.class_names)]


def learner(
    setting: Setting,
    data: Dataset,
    *,
    network: Callable[..., nnx.Module] | None = None,
    rule: Callable[[Any], Any] | None = None,
) -> Learner:
    """Returns the learner of a setting's network and rule.

    Args:
      setting: The setting of one compiled program.
      data: Images and labels.
      network: Makes the network, with the arguments of :class:`ojax.MLP`, the default.
      rule: Maps the run's hyper-parameters, by name of their axes, to the Optax transformation. By default it is made from
        `--optimizer` and `--rule`, with `learning_rate`, `oja_rate` and `oja_half_life`.
    """
    from experiments.tasks import networks, stresses

    return stresses.under(setting, networks.learner(setting, all_widths(setting, data), network=network, rule=rule))


TASK = Task(
    axes=AXES,
    flags=FLAGS,
    complete=complete,
    load=load,
    learner=learner,
    canonical=canonical,
    baseline=OJA_RATE.name,
    shown=shown,
)
