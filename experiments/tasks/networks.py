"""The networks of image classification: their initial weights, rules and measures."""

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PyTree

import ojax
from experiments.common.errors import UserError
from experiments.common.tables import MEASURE
from experiments.common.task import Setting
from experiments.tasks.registry import ACTIVATIONS, INITIALIZERS, NORMALIZATIONS, OPTIMIZERS, RULES, resolve
from ojax import measures, modules, online
from ojax.datasets import Examples
from ojax.patches import Patches

# Percentiles of spectra and angles in the tables, so that layers of all widths have equal columns.
QUANTILES = tuple(range(0, 101, 10))
# Number of test images, from the first, on which layers are measured.
NUM_PROBE = 500
# Number of these images whose patches are enough for a convolution, with a hundred patches or more per image.
NUM_OF_PATCHES = 50
# The canonical values of the axes that choose the default rule.
_CANONICAL = {"optimizer": "sgd", "rule": "oja"}


def learner(
    setting: Setting,
    widths: Sequence[int],
    *,
    network: Callable[..., nnx.Module] | None = None,
    rule: Callable[[online.Hyper], optax.GradientTransformation] | None = None,
) -> online.Learner:
    """Returns the learner of :mod:`experiments.tasks.classification`; `hyper["init"]` is an index into the axis `init`."""
    unused = [f"--{name}={setting[name]}" for name, value in _CANONICAL.items() if setting.get(name, value) != value]
    if rule is not None and unused:
        raise UserError(f"{' '.join(unused)} has no effect here: this question has a rule of its own. Leave it out.")

    def default_rule(hyper: online.Hyper) -> optax.GradientTransformation:
        rates = hyper["learning_rate"], hyper["oja_rate"]
        if setting["oja_half_life"] != (math.inf,):  # The axis counts samples, a schedule counts updates.
            rates = rates[0], ojax.fading(rates[1], hyper["oja_half_life"] / setting["batch_size"])
        if (setting["optimizer"], setting["rule"]) == ("sgd", "oja"):
            return ojax.oja_sgd(*rates)
        return optax.chain(resolve(OPTIMIZERS[setting["optimizer"]])(rates[0]), resolve(RULES[setting["rule"]])(rates[1]))

    makes = [maker(setting, widths, scheme, network) for scheme in setting["init"]]
    networks = [modules.as_functions(make) for make in makes]
    classifier = online.classifier(makes[0], rule or default_rule)

    def init(key: Array, hyper: online.Hyper) -> tuple[PyTree, PyTree]:
        params, state = jax.lax.switch(hyper["init"].astype(jnp.int32), [network.init for network in networks], key)
        return jax.tree.map(lambda leaf: hyper["init_gain"] * leaf if leaf.ndim >= 2 else leaf, params), state

    if not setting["measures"]:
        return classifier._replace(init=init)
    measure = measuring(networks[0])

    def evaluate(params: PyTree, state: PyTree, test: Examples, hyper: online.Hyper) -> dict[str, Array]:
        return classifier.evaluate(params, state, test, hyper) | measure(params, state, test)

    return classifier._replace(init=init, evaluate=evaluate)


def maker(
    setting: Setting, widths: Sequence[int], scheme: str, network: Callable[..., nnx.Module] | None
) -> Callable[[nnx.Rngs], nnx.Module]:
    """Returns a function that makes the network of a setting, with initial weights of the scheme."""
    options = {
        "activation": resolve(ACTIVATIONS[setting["activation"]]),
        "kernel_init": resolve(INITIALIZERS[scheme])(widths),
        "feedback": setting["feedback"],
        "normalization": resolve(NORMALIZATIONS[setting["normalization"]]),
    }
    return lambda rngs: (network or ojax.MLP)(widths, rngs=rngs, **options)


class _Measured:
    """One layer's kernel, inputs and outputs on the probe images, in the shapes that its measures take.

    For a convolution the kernel is a matrix (n_in of a patch, n_out), each position is a sample of activity and of input,
    and gains and angles are of whole images.
    """

    def __init__(self, kernel: Array, pre: Array | Patches, post: Array):
        self.kernel, self.inputs, self.units = _by_unit(kernel), _samples(pre), _by_unit(post)
        self.outputs = _by_unit(post[:NUM_OF_PATCHES] if isinstance(pre, Patches) else post)
        self.images = _by_image(pre.image if isinstance(pre, Patches) else pre), _by_image(post)

    @functools.cached_property
    def singular_values(self) -> Array:
        return measures.singular_values(self.kernel)

    @functools.cached_property
    def principal_angles(self) -> Array:
        return measures.principal_angles(self.kernel, self.inputs)


# The measures of a layer that read its kernel and its activity.
_OF_ACTIVITY: Mapping[str, Callable[[_Measured], Array]] = {
    "effective_dimension": lambda layer: measures.effective_dimension(layer.units),
    "effective_rank": lambda layer: measures.effective_rank(layer.outputs),
    "dead_units": lambda layer: measures.dead_units(layer.units),
    "activity_gain": lambda layer: measures.gain(*layer.images),
    "centred_gain": lambda layer: measures.centred_gain(*layer.images),
    "sample_correlation": lambda layer: measures.sample_correlation(layer.images[1]),
    "explained_energy": lambda layer: measures.explained_energy(layer.kernel, layer.inputs, layer.outputs),
    "leading_share": lambda layer: measures.leading_share(layer.kernel, layer.inputs),
    "distance_from_orthonormal": lambda layer: measures.distance_from_orthonormal(layer.kernel),
    "weight_norm": lambda layer: jnp.linalg.norm(layer.kernel),
    "principal_angle_mean": lambda layer: jnp.mean(layer.principal_angles),
    **{f"singular_value_p{q:03}": lambda layer, q=q: jnp.percentile(layer.singular_values, q) for q in QUANTILES},
    **{f"principal_angle_p{q:03}": lambda layer, q=q: jnp.percentile(layer.principal_angles, q) for q in QUANTILES},
}


def measuring(
    network: modules.Functions, names: Collection[str] | None = None, num_probe: int = NUM_PROBE
) -> Callable[[PyTree, PyTree, Examples], dict[str, Float[Array, " layers"]]]:
    """Returns a function that measures all layers of a network: `measure(params, state, test)`, columns of the table.

    Args:
      network: The network.
      names: The measures, by default all. The rest is not traced: all of them take a second for fifteen layers.
      num_probe: Number of test images, from the first, on which layers are measured.

    Returns:
      The function. Its columns have one number per layer, from the first; NaN if a layer lacks the measure.
    """

    def is_wanted(name: str) -> bool:
        return names is None or name in names

    @jax.jit  # Layers of equal shapes are traced once.
    def of_layer(kernel: Array, pre: Array | Patches, post: Array) -> dict[str, Array]:
        layer = _Measured(kernel, pre, post)
        return {name: of(layer) for name, of in _OF_ACTIVITY.items() if is_wanted(name)}

    def losses(model: nnx.Module, inputs: Array, labels: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels)

    def measure(params: PyTree, state: PyTree, test: Examples) -> dict[str, Array]:
        model, probe = network.merge(params, state), jax.tree.map(lambda leaf: leaf[:num_probe], test)
        activity, sent = map(nnx.as_pure, modules.with_errors(losses, model, *probe))
        _, true = map(nnx.as_pure, modules.with_errors(losses, modules.without_feedback(model), *probe))
        layers = range(len(model.layers))
        kernels = [layer.kernel[...] for layer in model.layers]
        calls: list[Any] = [call for layer in layers for (call,) in [activity["layers"][layer]["kernel"]]]
        by_layer: list[Any] = [[tree["layers"][layer]["error"] for layer in layers] for tree in (sent, true)]
        errors, true_errors = (list(map(_by_image, of_layers)) for of_layers in by_layer)
        # The measures of a layer that read its error.
        of_errors: Mapping[str, Callable[[int], Any]] = {
            "error_gain": lambda layer: measures.gain(errors[layer], errors[layer - 1]) if layer else jnp.nan,
            "gradient_angle": lambda layer: measures.angle(errors[layer], true_errors[layer]),
            "feedback_alignment": lambda layer: _feedback_alignment(model, kernels, layer, calls[layer].post.shape[1:]),
        }
        rows = [
            of_layer(kernel, *call) | {name: of(layer) for name, of in of_errors.items() if is_wanted(name)}
            for layer, (kernel, call) in enumerate(zip(kernels, calls, strict=True))
        ]
        return {f"{MEASURE}{name}": jnp.stack([jnp.asarray(row[name], jnp.float32) for row in rows]) for name in rows[0]}

    return measure


def _samples(pre: Array | Patches) -> Float[Array, "samples n_in"]:
    """Returns the kernel's input, one row per sample."""
    return Patches(pre.image[:NUM_OF_PATCHES], pre.geometry).matrix() if isinstance(pre, Patches) else pre


def _by_unit(array: Array) -> Float[Array, "samples units"]:
    return array.reshape(-1, array.shape[-1])


def _by_image(array: Array) -> Float[Array, "images n"]:
    return array.reshape(len(array), -1)


def _feedback_alignment(
    model: ojax.MLP | ojax.CNN, kernels: Sequence[Array], layer: int, output: Sequence[int]
) -> Float[Array, ""]:
    """Returns the cosine between feedback weights and the forward weights that backprop would use in their place."""
    last = len(kernels) - 1
    if model.direct_feedback is not None and layer < last:
        # Direct feedback to this layer's output is compared with the product of all layers above.
        above = _product(model, kernels, layer + 1, output)
        return measures.alignment(above, model.direct_feedback[layer][...])
    feedback = model.layers[layer].feedback
    return jnp.float32(jnp.nan) if feedback is None else measures.alignment(kernels[layer], feedback[...])


def _product(
    model: ojax.MLP | ojax.CNN, kernels: Sequence[Array], first: int, shape: Sequence[int]
) -> Float[Array, "n classes"]:
    """Returns the product of the layers from `first` on, without non-linearities; their input has shape `shape`."""
    if all(kernel.ndim == 2 for kernel in kernels[first:]):
        return functools.reduce(jnp.matmul, kernels[first:])

    def linear(x: Array) -> Array:
        for layer in model.layers[first:-1]:
            x = layer.pre(x) @ layer.kernel[...]
        return model.as_vector(x) @ kernels[-1]

    return jax.jacrev(linear)(jnp.zeros(shape)).reshape(kernels[-1].shape[1], -1).T


def _for_any_widths(initializer: modules.Initializer) -> Callable[[Sequence[int]], modules.Initializer]:
    return lambda widths: initializer


def same_scale(widths: Sequence[int]) -> modules.Initializer:
    """Returns an initializer with the range of the first layer's Glorot weights in all layers."""
    limit = math.sqrt(6 / (widths[0] + widths[1]))
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


glorot_uniform = _for_any_widths(modules.glorot_uniform)  # The paper's.
he_normal = _for_any_widths(jax.nn.initializers.he_normal())
orthogonal = _for_any_widths(jax.nn.initializers.orthogonal())
normal = _for_any_widths(jax.nn.initializers.normal(0.1))  # Weights of deviation 0.1.
# PyTorch's for linear layers: uniform between plus and minus one over the root of n_in.
lecun_third = _for_any_widths(jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"))
momentum = functools.partial(optax.sgd, momentum=0.9)
