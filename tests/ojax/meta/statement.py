"""The paper's algorithm in float64 NumPy: its rules in its own form, W of shape (n_out, n_in), one sample at a time."""

import numpy as np

# Equations 14 to 23 of 10.1038/s41467-023-37562-1: x, y, d, e are y_{l-1}, y_l, e_{l-1}, e_l.
RULES = {
    "pseudo_gradient": lambda W, x, y, d, e: -np.outer(e, x),
    "post_by_error": lambda W, x, y, d, e: -np.outer(y, d),
    "ehebb": lambda W, x, y, d, e: -np.outer(e, d),
    "weight_decay": lambda W, x, y, d, e: -W,
    "error_below": lambda W, x, y, d, e: -np.outer(np.ones(len(y)), d),
    "summed_activity": lambda W, x, y, d, e: -np.outer(e, np.ones(len(y))) @ np.outer(y, x),
    "answered_error": lambda W, x, y, d, e: -np.outer(y, y) @ W @ np.outer(d, d),
    "gated_by_answered_error": lambda W, x, y, d, e: -np.outer(e, y) @ W @ np.outer(d, x),
    "gated_by_answer": lambda W, x, y, d, e: -np.outer(y, x) @ W.T @ np.outer(e, d),
    "oja": lambda W, x, y, d, e: np.outer(y, x) - np.outer(y, y) @ W,
}


def softplus(z):
    return np.logaddexp(0, 10 * z) / 10


def softmax(z):
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def forward(weights, x):
    ys = [x]
    for W in weights[:-1]:
        ys.append(softplus(W @ ys[-1]))
    return [*ys, softmax(weights[-1] @ ys[-1])]


def step(weights, back, x, label, coefficients, feedback):
    """Returns the weights after one sample.

    `back` has one matrix per layer: with random feedback in place of W^T, with direct feedback from the read-out to the
    layer's input; with backprop it is not used.
    """
    ys = forward(weights, x)
    errors = [ys[-1] - np.eye(len(ys[-1]))[label]]
    for layer in reversed(range(len(weights))):
        sent = {
            "backprop": lambda layer=layer: weights[layer].T @ errors[0],
            "random": lambda layer=layer: back[layer] @ errors[0],
            "direct": lambda layer=layer: back[layer] @ errors[-1],
        }[feedback]()
        errors.insert(0, sent * (1 - np.exp(-10 * ys[layer])))
    new = []
    for layer, W in enumerate(weights):
        sides = ys[layer], ys[layer + 1], errors[layer], errors[layer + 1]
        # One coefficient for all layers, or one per layer.
        changes = [np.broadcast_to(c, len(weights))[layer] * RULES[name](W, *sides) for name, c in coefficients.items()]
        new.append(W + np.sum(changes, axis=0))
    return new


def learn(weights, back, inputs, labels, coefficients, feedback):
    for x, label in zip(inputs, labels, strict=True):
        weights = step(weights, back, x, label, coefficients, feedback)
    return weights


def loss(weights, inputs, labels):
    return np.mean([-np.log(forward(weights, x)[-1][label]) for x, label in zip(inputs, labels, strict=True)])


def as_statement(params, state, feedback):
    """Converts a classifier's parameters and state for the statement."""
    weights = [np.asarray(layer["kernel"], np.float64).T for layer in params["layers"].values()]
    if feedback == "backprop":
        return weights, None
    network = state["network"]
    if feedback == "random":
        later = [layer["feedback"] for layer in network["layers"].values() if "feedback" in layer]
    else:
        later = list(network["direct_feedback"].values())
    return weights, [np.asarray(matrix, np.float64) for matrix in (state["to_input"], *later)]
