"""Kernels shared over positions: patches, convolutions and every rule against float64 loops over positions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import ojax
from tests.ojax.plasticity.rules_test import RATE, RULES, changes

pytestmark = pytest.mark.compiled_quickly

SPACE, N_IN, N_OUT, WINDOW = (6, 7), 4, 6, (3, 2)
IMAGE = np.random.default_rng(0).normal(size=(*SPACE, N_IN))
# A layer's arguments, and their explicit form: zeros on each side, strides and dilation.
CASES = {
    "defaults": ({}, [(1, 1), (0, 1)], (1, 1), (1, 1)),
    "strides": ({"strides": (2, 3), "padding": "VALID"}, [(0, 0), (0, 0)], (2, 3), (1, 1)),
    "zeros and dilation": ({"padding": ((1, 2), (3, 0)), "dilation": 2}, [(1, 2), (3, 0)], (1, 1), (2, 2)),
    "strides of padded images": ({"strides": 2}, [(0, 1), (0, 1)], (2, 2), (1, 1)),
}
each_case = pytest.mark.parametrize("case", CASES)


def by_loops(image, padding, strides, dilation, window=WINDOW):
    """Returns all patches, each of shape (*window, channels)."""
    padded = np.pad(image, [*padding, (0, 0)])
    spans = [(size - 1) * step + 1 for size, step in zip(window, dilation, strict=True)]
    found = []
    for top in range(0, padded.shape[0] - spans[0] + 1, strides[0]):
        row = []
        for left in range(0, padded.shape[1] - spans[1] + 1, strides[1]):
            row.append(padded[top : top + spans[0] : dilation[0], left : left + spans[1] : dilation[1]])
        found.append(row)
    return np.array(found)


def stated_change(rule, kernel, patches, post, groups):
    """Returns the change in the papers' own forms, by position and group."""
    n_in, n_out = kernel.shape[2], kernel.shape[3] // groups
    change = np.zeros_like(kernel)
    for group in range(groups):
        ins, outs = slice(group * n_in, (group + 1) * n_in), slice(group * n_out, (group + 1) * n_out)
        W = kernel[..., outs].reshape(-1, n_out).T
        parts = [RULES[rule](W, patches[at][..., ins].ravel(), post[at][outs]) for at in np.ndindex(post.shape[:-1])]
        change[..., outs] = np.mean(parts, axis=0).T.reshape(kernel[..., outs].shape)
    return RATE * change


@each_case
def test_patches_and_the_convolution_that_multiplies_them(case):
    options, *geometry = CASES[case]
    patches = ojax.Patches.of(jnp.asarray(IMAGE, jnp.float32), WINDOW, **options)
    want = by_loops(IMAGE, *geometry)
    assert patches.shape == want.shape
    np.testing.assert_allclose(patches.matrix(), want.reshape(-1, 3 * 2 * N_IN), rtol=1e-6)
    kernel = np.random.default_rng(1).normal(size=(*WINDOW, N_IN, N_OUT))
    outputs = np.einsum("xyijc,ijco->xyo", want, kernel)
    np.testing.assert_allclose(patches @ jnp.asarray(kernel, jnp.float32), outputs, atol=1e-4)
    # A batch of images, and runs under vmap.
    batch = jnp.stack([patches.image, 2 * patches.image])
    both = ojax.Patches.of(batch, WINDOW, **options) @ jnp.asarray(kernel, jnp.float32)
    np.testing.assert_allclose(both, [outputs, 2 * outputs], atol=2e-4)


@pytest.mark.parametrize(("case", "groups"), list(zip(CASES, (1, 2, 4, 1), strict=True)))
def test_its_gradients_in_both_modes_are_those_of_lax(case, groups):
    options, padding, strides, dilation = CASES[case]
    rng = np.random.default_rng(2)
    image = jnp.asarray(IMAGE, jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(*WINDOW, N_IN // groups, 8)), jnp.float32)

    def ours(image, kernel):
        return ojax.Patches.of(image, WINDOW, **options) @ kernel

    def theirs(image, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image[None], kernel, strides, padding, None, dilation, numbers, feature_group_count=groups
        )[0]

    def both_modes(convolve):
        output, back = jax.vjp(convolve, image, kernel)
        error = jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
        return output, back(error), jax.jvp(convolve, (image, kernel), (jnp.cos(image), jnp.sin(kernel)))

    for got, want in zip(*(jax.tree.leaves(jax.jit(both_modes, static_argnums=0)(f)) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)


@jax.jit
def changes_by_rule(kernel, activity):
    """Returns each rule's change, by its name."""
    return {rule.__name__: changes(rule(RATE), {"kernel": kernel}, {"kernel": activity})["kernel"] for rule in RULES}


@pytest.mark.parametrize("groups", [1, 2, 4], ids=["one group", "two groups", "depthwise"])
def test_a_rule_is_its_mean_over_positions(groups):
    """For each group of a grouped or depthwise kernel separately, and for images as a batch or separately."""
    rng, n_out = np.random.default_rng(3), 8
    options, *geometry = CASES["strides of padded images"]
    images, kernel = rng.normal(size=(2, *SPACE, N_IN)), rng.normal(size=(*WINDOW, N_IN // groups, n_out))
    patches = np.stack([by_loops(image, *geometry) for image in images])
    post = rng.normal(size=(*patches.shape[:3], n_out))
    batch = [
        ojax.Activity(ojax.Patches.of(jnp.asarray(x, jnp.float32), WINDOW, **options), jnp.asarray(y, jnp.float32))
        for x, y in ((images, post), (images[0], post[0]), (images[1], post[1]))
    ]
    together, by_call = (changes_by_rule(jnp.asarray(kernel, jnp.float32), a) for a in (batch[0], tuple(batch[1:])))
    for rule in RULES:
        want = stated_change(rule, kernel, patches, post, groups)
        np.testing.assert_allclose(together[rule.__name__], want, atol=1e-5)
        np.testing.assert_allclose(by_call[rule.__name__], want, atol=1e-5)


def test_few_positions_and_many_channels():
    """Then another order of the products is cheaper."""
    rng = np.random.default_rng(4)
    kernel, post = rng.normal(size=(*WINDOW, N_IN, 40)), rng.normal(size=(1, 2, 40))
    few = ojax.Patches.of(jnp.asarray(IMAGE, jnp.float32), WINDOW, strides=4, padding="VALID")
    found = changes_by_rule(jnp.asarray(kernel, jnp.float32), ojax.Activity(few, jnp.asarray(post, jnp.float32)))
    patches = by_loops(IMAGE, [(0, 0), (0, 0)], (4, 4), (1, 1))
    for rule in RULES:
        np.testing.assert_allclose(found[rule.__name__], stated_change(rule, kernel, patches, post, 1), atol=3e-5)


def test_a_custom_rule_gets_patches_as_an_array_and_may_keep_a_state():
    def change(layer, mean):
        pre, post = layer.pre, layer.post
        assert isinstance(pre, jax.Array) and pre.shape == (42, 24) and post.shape == (42, N_OUT)
        mean = 0.9 * mean + 0.1 * jnp.mean(pre**2, axis=0)
        return (pre - mean).T @ post / len(pre), mean

    params = {"kernel": jnp.ones((*WINDOW, N_IN, N_OUT))}
    tx = optax.chain(optax.sgd(0.1), ojax.plasticity.rule(change, RATE, init=lambda kernel: jnp.zeros(len(kernel))))
    seen, post = ojax.Patches.of(jnp.asarray(IMAGE, jnp.float32), WINDOW), jnp.ones((*SPACE, N_OUT))
    updates, _ = tx.update(params, tx.init(params), params, activity={"kernel": ojax.Activity(seen, post)})
    P = by_loops(IMAGE, *CASES["defaults"][1:]).reshape(42, 24)
    want = RATE * np.mean(P - 0.1 * np.mean(P**2, axis=0), axis=0) - 0.1
    np.testing.assert_allclose(updates["kernel"].reshape(24, N_OUT), np.tile(want[:, None], N_OUT), atol=1e-5)
    grouped = {"kernel": jnp.ones((*WINDOW, N_IN // 2, N_OUT))}
    with pytest.raises(
        ValueError,
        match=r"rule: kernel has 2 groups, and its state of shape \(12,\) cannot be divided".replace("rule", "change"),
    ):
        tx.update(grouped, tx.init(grouped), grouped, activity={"kernel": ojax.Activity(seen, post)})


LAYERS = {
    "defaults": {},
    "strides": {"strides": 2, "padding": "VALID"},
    "around the edge": {"padding": "CIRCULAR"},
    "mirrored": {"padding": "REFLECT", "kernel_dilation": 2},
    "groups": {"feature_group_count": 2},
    "depthwise": {"feature_group_count": N_IN},
    "zeros between pixels": {"input_dilation": (2, 1), "padding": ((1, 2), (0, 1))},
}


class OneLayer(nnx.Module):
    def __init__(self, **options):
        self.conv = nnx.Conv(N_IN, 8, WINDOW, **options, rngs=nnx.Rngs(0))

    def __call__(self, x):
        y = self.conv(x)
        ojax.record(self.conv, x, y)
        return y


def test_the_recorded_input_of_flax_layers_gives_their_output():
    """The output is the recorded patches times the kernel: `nnx.Conv` by `ojax.record`, `linen.Conv` by `apply_linen`."""

    def products(image, options):
        network, model = OneLayer(**options), linen.Conv(8, WINDOW, **options)
        params = {"kernel": network.conv.kernel[...], "bias": network.conv.bias[...]}
        output, activity = ojax.with_activity(network, image)
        ((pre, post),) = nnx.as_pure(activity)["conv"]["kernel"]
        linen_output, activity = ojax.apply_linen(model, {"params": params}, image, post={...: linen.relu})
        ((linen_pre, linen_post),) = activity["kernel"]
        same = [(post, output), (linen_post, linen.relu(output)), (linen_output, output)]
        return [(pre @ params["kernel"], output), (linen_pre @ params["kernel"], output), *same]

    all_products = jax.jit(lambda image: {case: products(image, options) for case, options in LAYERS.items()})
    for case, pairs in all_products(jnp.asarray(IMAGE, jnp.float32)).items():
        for got, want in pairs:
            np.testing.assert_allclose(got, want, atol=1e-5, err_msg=case)


def test_layers_of_one_axis_and_of_batches():
    layer, x = nnx.Conv(3, 5, 4, padding="CAUSAL", rngs=nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (2, 3, 9, 3))
    kernel = layer.kernel[...]
    got = jax.jit(lambda x: ojax.patches.seen_by(layer, x) @ kernel)(x)
    np.testing.assert_allclose(got, layer(x), atol=1e-5)


def test_one_number_that_is_not_finite_stays_where_it_is():
    """It does not spread, as it would in patches made by a convolution with ones and zeros."""
    image = jnp.asarray(IMAGE, jnp.float32).at[0, 0, 0].set(jnp.nan)
    matrix = np.asarray(ojax.Patches.of(image, WINDOW, padding="VALID").matrix())
    assert np.isnan(matrix).sum() == 1 and np.isnan(matrix[0, 0])


def test_nothing_is_formed_where_nothing_asks_for_it():
    def outputs(image, kernel):
        patches = ojax.Patches.of(image, WINDOW)
        return patches @ kernel, ojax.Activity(patches, patches @ kernel)

    lowered = jax.jit(lambda *a: outputs(*a)[0]).lower(jnp.ones((*SPACE, N_IN)), jnp.ones((*WINDOW, N_IN, N_OUT)))
    assert "convolution" in lowered.as_text() and "concatenate" not in lowered.as_text()


ACTIVITY = ojax.Activity(ojax.Patches.of(jnp.asarray(IMAGE, jnp.float32), WINDOW), jnp.ones((*SPACE, N_OUT)))


@pytest.mark.parametrize(
    "shape",
    [(*WINDOW, 3, N_OUT), (*WINDOW, N_IN, 5), (2, 3, N_IN, N_OUT), (24, N_OUT), (*WINDOW, 1, N_OUT), (N_OUT,)],
    ids=["channels", "outputs", "window", "a matrix", "groups", "a bias"],
)
def test_patches_that_do_not_fit_the_kernel(shape):
    with pytest.raises(ValueError, match=r"ojax\.oja: activity\['w'\] with the patches \(6, 7, 3, 2, 4\).*does not fit"):
        changes(ojax.oja(RATE), {"w": jnp.ones(shape)}, {"w": ACTIVITY})


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"does not fit.*\(\*window, n_in / groups, n_out\)"):
        changes(ojax.oja(RATE, out_axis=0), {"w": jnp.ones((*WINDOW, N_IN, N_OUT))}, {"w": ACTIVITY})
    with pytest.raises(ValueError, match=r"needs an image of shape \(\.\.\., size, size, channels\), got \(6, 7\)"):
        ojax.Patches.of(jnp.ones(SPACE), WINDOW)
    with pytest.raises(ValueError, match="Not one patch"):
        ojax.Patches.of(jnp.ones((2, 1, 3)), WINDOW, padding="VALID")
    masked = nnx.Conv(N_IN, N_OUT, WINDOW, mask=jnp.ones((*WINDOW, N_IN, N_OUT)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="masked convolution"):
        ojax.patches.seen_by(masked, jnp.asarray(IMAGE))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_tied_rule_is_that_of_the_whole_matrix(groups):
    """Oja's rule of a convolution's sparse matrix M, averaged over the entries that share a weight."""
    rng, n_out = np.random.default_rng(5), 6
    options, padding, strides, dilation = CASES["strides of padded images"]
    kernel = rng.normal(size=(*WINDOW, N_IN // groups, n_out))
    # The index of the pixel for each position and each entry of a patch; -1 for the zeros around the image.
    index = by_loops(np.arange(IMAGE.size).reshape(IMAGE.shape) + 1, padding, strides, dilation) - 1
    M = np.zeros((*index.shape[:2], n_out, IMAGE.size))
    weight_of = {}
    for place in np.ndindex(index.shape):
        pixel, channel = int(index[place]), place[-1]
        group, within = divmod(channel, N_IN // groups)
        for out in range(group * n_out // groups, (group + 1) * n_out // groups):
            if pixel >= 0:
                M[*place[:2], out, pixel] = kernel[*place[2:4], within, out]
                weight_of[*place[:2], out, pixel] = (*place[2:4], within, out)
    post = rng.normal(size=(*index.shape[:2], n_out))
    y, x, flat = post.ravel(), IMAGE.ravel(), M.reshape(-1, IMAGE.size)
    change = (np.outer(y, x) - np.outer(y, y) @ flat).reshape(M.shape)
    want = np.zeros_like(kernel)
    for entry, weight in weight_of.items():
        want[weight] += RATE * change[entry] / (index.shape[0] * index.shape[1])
    seen = ojax.Patches.of(jnp.asarray(IMAGE, jnp.float32), WINDOW, **options)
    activity = {"w": ojax.Activity(seen, jnp.asarray(post, jnp.float32))}
    got = changes(ojax.oja_tied(RATE), {"w": jnp.asarray(kernel, jnp.float32)}, activity)["w"]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("window", [(4,), (3, 2)], ids=["one axis", "two axes"])
@pytest.mark.parametrize(("padding", "mode"), [("CIRCULAR", "wrap"), ("REFLECT", "reflect")])
def test_a_pixel_that_is_repeated_around_the_image_is_one_input(padding, mode, window):
    """The convolution, its gradient and the rules of whole images, against the convolution's matrix M."""
    rng, rank = np.random.default_rng(7), len(window)
    space = (4, 5)[:rank]
    images, kernel = rng.normal(size=(2, *space, N_IN)), rng.normal(size=(*window, N_IN, N_OUT))
    size = images[0].size
    # The index of the pixel for each position and each entry of a patch.
    pads = [((width - 1) // 2, width // 2) for width in window]
    index = np.pad(np.arange(size).reshape(*space, N_IN), [*pads, (0, 0)], mode=mode)
    index = np.moveaxis(np.lib.stride_tricks.sliding_window_view(index, window, range(rank)), rank, -1)
    places = np.eye(size)[index.reshape(np.prod(space), -1)]  # (positions, entries, pixels)
    M = np.einsum("pei,eo->poi", places, kernel.reshape(-1, N_OUT)).reshape(-1, size)
    x, post = images.reshape(2, size), rng.normal(size=(2, *space, N_OUT))
    y = post.reshape(2, -1)

    seen = ojax.Patches.of(jnp.asarray(images, jnp.float32), window, padding=padding)
    weights, outputs = jnp.asarray(kernel, jnp.float32), jnp.asarray(post, jnp.float32)
    np.testing.assert_allclose((seen @ weights).reshape(2, -1), x @ M.T, atol=1e-5)
    error = jax.vjp(lambda seen: seen @ weights, seen)[1](outputs)[0].image
    np.testing.assert_allclose(error.reshape(2, size), y @ M, atol=1e-5)

    change = np.mean([np.outer(y, x) - np.outer(y, y) @ M for x, y in zip(x, y, strict=True)], axis=0)
    tied = np.einsum("pei,poi->eo", places, change.reshape(-1, N_OUT, size)).reshape(kernel.shape) / np.prod(space)
    of_x, of_y = np.sum(x**2, axis=1), np.sum(y**2, axis=1)
    scaled = kernel * np.mean((of_x - of_y) / (of_x + of_y))
    activity = {"w": ojax.Activity(seen, outputs)}
    for rule, want in ((ojax.oja_tied, tied), (ojax.homeostasis, scaled)):
        np.testing.assert_allclose(changes(rule(RATE), {"w": weights}, activity)["w"], RATE * want, atol=1e-5)


def test_the_error_of_a_pixel_counts_in_each_of_its_places():
    image, error = jnp.asarray(IMAGE, jnp.float32), jnp.asarray(np.cos(IMAGE), jnp.float32)
    seen, post = ojax.Patches.of(image, WINDOW, padding="CIRCULAR"), jnp.ones((*SPACE, N_OUT))
    by_error = ojax.plasticity.rule(lambda layer: layer.pre_error.T @ layer.post / len(layer.pre), RATE)
    got = changes(by_error, {"w": jnp.ones((*WINDOW, N_IN, N_OUT))}, {"w": ojax.Activity(seen, post, error)})["w"]
    # Around the edge each pixel is once in each place of the window.
    want = np.broadcast_to(RATE * np.mean(np.cos(IMAGE), axis=(0, 1))[:, None], (*WINDOW, N_IN, N_OUT))
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_in_a_dense_layer_and_without_overlap_the_tied_rule_is_ojas_rule():
    rng = np.random.default_rng(6)
    kernel, image, post = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 2, 4, 5), (6, 6, 4), (2, 3, 5)))
    params = {"conv": kernel, "dense": kernel[0, 0]}
    activity = {
        "conv": ojax.Activity(ojax.Patches.of(image, (3, 2), strides=(3, 2), padding="VALID"), post),
        "dense": ojax.Activity(image[0, 0], post[0, 0]),
    }
    tied, plain = (changes(rule(RATE), params, activity) for rule in (ojax.oja_tied, ojax.oja))
    np.testing.assert_array_equal(tied["dense"], plain["dense"])
    np.testing.assert_allclose(tied["conv"], plain["conv"], atol=1e-5)
