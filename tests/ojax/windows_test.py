"""A kernel in coordinates of its window equals the kernel itself, against a float64 statement of both rules."""

import jax.numpy as jnp
import numpy as np
import pytest

from ojax import windows


@pytest.mark.parametrize("seen", [0, 1, 7, 12])
def test_rows_follow_the_kernel_and_give_it_back(seen):
    """A linear layer with made-up errors; after `seen` of 12 samples, the rest of the window not yet learned."""
    dice, window = np.random.default_rng(0), 12
    images, kernel, errors = (dice.normal(size=size) for size in ((window, 30), (30, 5), (window, 5)))
    images, eta, theta = images / 5, 0.3, 0.2
    want, posts = kernel, np.zeros((window, 5))
    single = [jnp.asarray(array, jnp.float32) for array in (kernel, images)]
    rows, gram = windows.rows_of_kernel(*single), windows.gram_of(single[1])
    for index in range(seen):
        post = images[index] @ want
        answer = windows.image_in_rows(index, window) @ rows
        np.testing.assert_allclose(answer, post, rtol=1e-4, atol=1e-4)  # The network sees the same answer,
        posts[index] = post
        want = want - eta * np.outer(images[index], errors[index]) + theta * np.outer(images[index] - want @ post, post)
        gradient = jnp.outer(windows.image_in_rows(index, window), jnp.asarray(errors[index], jnp.float32))
        gradient, (pre, post) = windows.change_of_rows(jnp.int32(index), gram, gradient, answer)
        rows = rows - eta * gradient + theta * jnp.outer(pre - rows @ post, post)  # and the rules are used as they are.
    found = kernel + windows.change_of_kernel(*single, jnp.asarray(posts, jnp.float32), rows)
    assert seen == 0 or np.abs(want - kernel).max() > 0.1
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
