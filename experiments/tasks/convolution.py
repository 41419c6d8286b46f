"""Image classification by convolutional networks, with the axes of :mod:`experiments.tasks.classification`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from experiments.common.errors import UserError
from experiments.common.flags import Flag, Settings
from experiments.common.parsers import Numbers, format_list
from experiments.common.task import Setting
from experiments.tasks import classification

if TYPE_CHECKING:
    from ojax.datasets import Dataset
    from ojax.online import Learner

_PIXELS = Numbers(int, 1, 1000, repeats=True)
FLAGS = (
    *(flag for flag in classification.FLAGS if flag.name != "widths"),
    Flag(
        "channels",
        "16",
        "Channels of the hidden layers: one number for all, or one for each, instead of --depth.",
        Numbers(int, 1, 2**16, repeats=True),
    ),
    Flag("kernel_size", "3", "Widths of the square kernels: one for all, or one per layer.", _PIXELS),
    Flag("strides", "2,1,2", "Steps of the layers from the first on; those beyond have 1.", _PIXELS),
)


def complete(settings: Settings) -> Settings:
    """Returns the settings with the depth from a list of --channels."""
    channels = settings["channels"]
    if len(channels) > 1:
        depth = (len(channels) + 1,)
        if "depth" in settings.given and settings["depth"] != depth:
            raise UserError(
                f"--depth={format_list(settings['depth'])} does not go with --channels of {len(channels)} hidden layers, "
                f"which with the read-out make {depth[0]}: leave --depth out."
            )
        settings = settings.changed(depth=depth)
    sizes = settings["kernel_size"]
    for depth in settings["depth"]:
        if depth < 2:
            raise UserError(f"--depth={depth}: a convolutional network has a hidden layer and a read-out at least.")
        if len(sizes) not in (1, depth - 1):
            raise UserError(f"--kernel_size={format_list(sizes)}: give one size, or one for each of {depth - 1} layers.")
    return settings


def load(settings: Settings) -> Dataset:
    """Loads the data set with images in their shape, and the first `num_test` test images."""
    return classification.load_images(settings, flatten=False)


def learner(setting: Setting, data: Dataset, *, rule: Callable[[Any], Any] | None = None) -> Learner:
    """Returns the learner of a setting's convolutional network, see :func:`experiments.tasks.classification.learner`."""
    import ojax
    from experiments.tasks import networks, stresses

    image_shape, num_hidden = data.train.inputs.shape[1:], setting["depth"] - 1
    channels, sizes = (_each(setting[name], num_hidden) for name in ("channels", "kernel_size"))
    strides = (*setting["strides"], *[1] * num_hidden)[:num_hidden]
    shape: Any = {"kernel_sizes": sizes, "strides": strides}

    def network(fans: Any, **options: Any) -> ojax.CNN:
        del fans
        return ojax.CNN(image_shape, channels, len(data.class_names), **shape, **options)

    # Inputs and outputs of the first kernel, by which `--init=same_scale` scales all kernels.
    fans = (sizes[0] ** 2 * image_shape[-1], sizes[0] ** 2 * channels[0])
    return stresses.under(setting, networks.learner(setting, fans, network=network, rule=rule))


def _each(values: tuple[int, ...], count: int) -> tuple[int, ...]:
    return values * count if len(values) == 1 else values


TASK = classification.TASK._replace(flags=FLAGS, complete=complete, load=load, learner=learner)
