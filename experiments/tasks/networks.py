"""The networks of image classification: their initial weights, rules and measures."""

import functools
import math
from collections.abc import Callable, Sequence

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

    def evaluate(params: PyTree, state: PyTree, test: Examples, hyper: online.Hyper) -> dict[str, Array]:
        scores = classifier.evaluate(params, state, test, hyper)
        if setting["measures"]:
            probe = jax.tree.map(lambda leaf: leaf[:NUM_PROBE], test)
            scores |= {f"{MEASURE}{name}": column for name, column in _measure(networks[0], params, state, probe).items()}
        return scores

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


def _measure(
    network: modules.Functions, params: PyTree, state: PyTree, probe: Examples
) -> dict[str, Float[Array, " layers"]]:
    """Returns the measures of :mod:`ojax.measures` per layer, from the first; NaN if a layer lacks a measure.

    For a convolution the kernel is a matrix (n_in of a patch, n_out), each position is a sample of activity and of input,
    and gains and angles are of whole images.
    """

    def losses(model: nnx.Module, inputs: Array, labels: Array) -> Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels)

    model = network.merge(params, state)
    activity, sent = map(nnx.as_pure, modules.with_errors(losses, model, *probe))
    _, true = map(nnx.as_pure, modules.with_errors(losses, modules.without_feedback(model), *probe))
    layers = range(len(model.layers))
    kernels = [layer.kernel[...] for layer in model.layers]
    errors: list[Array] = [sent["layers"][layer]["error"] for layer in layers]
    true_errors: list[Array] = [true["layers"][layer]["error"] for layer in layers]
    table = []
    for layer, kernel in enumerate(kernels):
        ((pre, post),) = activity["layers"][layer]["kernel"]
        matrix, inputs = _by_unit(kernel), _samples(pre)
        outputs = _by_unit(post[:NUM_OF_PATCHES] if isinstance(pre, Patches) else post)
        singular_values, angles = measures.singular_values(matrix), measures.principal_angles(matrix, inputs)
        incoming = pre.image if isinstance(pre, Patches) else pre
        row = {
            "effective_dimension": measures.effective_dimension(_by_unit(post)),
            "effective_rank": measures.effective_rank(outputs),
            "dead_units": measures.dead_units(_by_unit(post)),
            "activity_gain": measures.gain(_by_image(incoming), _by_image(post)),
            "centred_gain": measures.centred_gain(_by_image(incoming), _by_image(post)),
            "sample_correlation": measures.sample_correlation(_by_image(post)),
            "explained_energy": measures.explained_energy(matrix, inputs, outputs),
            "leading_share": measures.leading_share(matrix, inputs),
            "error_gain": measures.gain(_by_image(errors[layer]), _by_image(errors[layer - 1])) if layer else jnp.nan,
            "distance_from_orthonormal": measures.distance_from_orthonormal(matrix),
            "weight_norm": jnp.linalg.norm(matrix),
            "gradient_angle": measures.angle(_by_image(errors[layer]), _by_image(true_errors[layer])),
            "feedback_alignment": _feedback_alignment(model, kernels, layer, post.shape[1:]),
            "principal_angle_mean": jnp.mean(angles),
        }
        row |= {f"singular_value_p{q:03}": jnp.percentile(singular_values, q) for q in QUANTILES}
        row |= {f"principal_angle_p{q:03}": jnp.percentile(angles, q) for q in QUANTILES}
        table.append(row)
    return {name: jnp.stack([jnp.asarray(row[name], jnp.float32) for row in table]) for name in table[0]}


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
