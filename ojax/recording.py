"""Records the activity and the errors of Flax NNX layers while a network is called."""

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from ojax import recorder
from ojax.activity import Activity
from ojax.patches import seen_by
from ojax.trees import named_leaves

# The attribute of a recorded layer that holds the number of its model and the path of its kernel. It is static, so copies
# and JAX's transformations of the layer keep it.
_PATH = "_recorded_path"


class Recorded(nnx.Intermediate):
    """The NNX variable type of recorded activity, apart from a model's own intermediates."""


class Error(nnx.Perturbation):
    """The NNX variable type of a layer's error, the gradient of the loss with respect to `z = x W`."""


def record(
    layer: nnx.Module,
    pre: Float[Array, "*batch n_in"] | None = None,
    post: Float[Array, "*batch n_out"] | None = None,
) -> None:
    """Records the activity of one layer under the name of its `kernel`; call it where the network is called.

    Outside :func:`with_activity` it does nothing, so a network that records still runs as before::

        def __call__(self, x):
            hidden = nnx.relu(self.encoder(x))
            ojax.record(self.encoder, x, hidden)

    The layer may be a copy, and may be called inside of `jit`, `checkpoint`, `vmap` and `scan`, of JAX and of NNX. A batch
    of `vmap` and the steps of `scan` become a leading axis.

    `ojax.record(layer)` marks the layer as not plastic, so that no rule warns that its kernel has no activity.

    Args:
      layer: The layer whose parameter `kernel` is plastic, e.g. an `nnx.Linear` or an `nnx.Conv`.
      pre: The layer's input, shape (..., n_in); for a convolution (..., *space, n_in).
      post: The layer's output after the non-linearity, shape (..., n_out).

    Raises:
      ValueError: If the layer has no parameter `kernel`, or only one of `pre` and `post` is given.
    """
    if not recorder.is_recording():
        return
    if (pre is None) != (post is None):
        raise ValueError("ojax.record(layer, pre, post) needs the layer's input and its output, or neither.")
    if not isinstance(getattr(layer, "kernel", None), nnx.Variable):
        raise ValueError(f"ojax.record needs a layer with a parameter called kernel; {type(layer).__name__} has none.")
    path = getattr(layer, _PATH, None)
    if path is not None:  # Else it is a layer of another model.
        recorder.note(path, () if pre is None or post is None else Activity(_seen(layer, pre), post))


def _seen(layer: nnx.Module, pre: Array) -> Any:
    return seen_by(layer, pre) if isinstance(layer, nnx.Conv | nnx.ConvTranspose) else pre


def with_activity(model: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, nnx.State]:
    """Calls an NNX model and returns its output and its activity, for `tx.update(..., activity=activity)`.

    Args:
      model: A network of ojax layers, or one that calls :func:`record`; or one of its methods, e.g. `model.encode`.
      *args: The model's own arguments.
      **kwargs: The model's own arguments, by keyword.

    Returns:
      The output, and a state with a tuple of :class:`ojax.Activity`, one per call, at the path of each recorded kernel. A
      kernel that two layers share has the calls of both, at its path in `nnx.state(model)`.
    """
    call, owner = (model.__func__, model.__self__) if inspect.ismethod(model) else (operator.call, model)
    output, (activity,) = _call(lambda owner, *args: call(owner, *args, **kwargs), (owner, *args), [0])
    return output, activity


def value_and_grad(
    loss_fn: Callable[..., Any],
    *,
    argnums: int | nnx.DiffState | Sequence[int | nnx.DiffState] = 0,
    has_aux: bool = False,
) -> Callable[..., tuple[tuple, Any]]:
    """`nnx.value_and_grad` that also returns the network's activity; the loss function needs no change.

    It is used as::

        (loss, activity), grads = ojax.value_and_grad(loss_fn)(model, x, y)
        optimizer.update(model, grads, activity=activity)

    Args:
      loss_fn: `loss_fn(model, *args, **kwargs)` returns the loss, a scalar. The model is a network of ojax layers, or one
        that calls :func:`record`.
      argnums: As in `nnx.value_and_grad`: the positions of the models, or of lists and dicts of models, and with
        `nnx.DiffState(position, filter)` which of their parameters are learned. An array has a gradient and no activity.
      has_aux: Whether `loss_fn` returns a pair, the loss and anything else.

    Returns:
      A function of the same arguments that returns `(loss, activity), grads`, or `((loss, aux), activity), grads` with
      `has_aux`. Gradients are as from `nnx.value_and_grad`; the activity is as from :func:`with_activity`, for the kernels
      that have a gradient. Both are tuples if `argnums` is a sequence.
    """
    several = isinstance(argnums, Sequence)
    wanted: list[Any] = list(argnums) if isinstance(argnums, Sequence) else [argnums]
    positions = [each.argnum if isinstance(each, nnx.DiffState) else each for each in wanted]

    def with_grads(*args: Any, **kwargs: Any) -> tuple[tuple, Any]:
        def loss_and_others(*args: Any) -> tuple[Array, tuple]:
            found, activities = _call(lambda *args: loss_fn(*args, **kwargs), args, positions)
            return found[0] if has_aux else found, (found, activities)

        (_, (found, activities)), grads = nnx.value_and_grad(loss_and_others, argnums=argnums, has_aux=True)(*args)
        kept = [_with_gradient(*each) for each in zip(activities, grads if several else [grads], strict=True)]
        return (found, tuple(kept) if several else kept[0]), grads

    return with_grads


def with_errors(loss_fn: Callable[..., Array], model: nnx.Module, *args: Any) -> tuple[nnx.State, nnx.State]:
    """Returns the activity of a network of ojax layers, and the error that its feedback sends to each layer.

    Args:
      loss_fn: `loss_fn(model, *args)` returns the loss of each sample, an array, which is summed.
      model: The network; it is left as it is.
      *args: The rest of the loss function's arguments, a batch of samples.

    Returns:
      The activity, as from :func:`with_activity`, and a state with each layer's `error`, shape (batch, n_out): the
      (pseudo-)gradient of each sample's own loss with respect to `z = x W`.
    """
    graphdef, variables = nnx.split(model)

    def loss_and_activity(taps: dict) -> tuple[Array, nnx.State]:
        # Flax forbids changing a model that was made outside of the gradient, so a fresh one is merged here.
        with recorder.tapped(taps):
            copy = nnx.merge(graphdef, _copied(variables))
            losses, (activity,) = _call(lambda model: loss_fn(model, *args), (copy,), [0])
        return jnp.sum(losses), activity  # Not the mean: each sample's error is then its own loss's gradient.

    taps: dict = {}
    loss_and_activity(taps)
    errors, activity = jax.grad(loss_and_activity, has_aux=True)(taps)
    return activity, nnx.from_flat_state({(*path[1:-1], "error"): Error(error) for path, error in errors.items()})


def with_tap(layer: nnx.Module, z: Array) -> Array:
    """Returns `z`, and lets :func:`with_errors` read the layer's error there."""
    return recorder.tap(getattr(layer, _PATH, None), z)


def _call(function: Callable, args: tuple, positions: Sequence[int]) -> tuple[Any, list[nnx.State]]:
    """Calls the function and returns its output and the activity of the arguments at these positions."""
    nodes = [position for position, each in enumerate(args) if any(map(_is_module, jax.tree.leaves(each, _is_module)))]

    def with_nodes(given: Sequence[Any]) -> Any:
        places = dict(zip(nodes, given, strict=True))
        return function(*(places.get(position, each) for position, each in enumerate(args)))

    models = [args[node] for node in nodes]
    # Flax gives the gradient of what two models share to the first of them in the order of the arguments.
    with _named({number: args[position] for number, position in sorted(enumerate(positions), key=lambda each: each[1])}):
        graphdef, variables = nnx.split(models)
        before = graphdef, _copied(variables)  # Of which `direct` changes nothing.

        def again(state: Any) -> tuple[Any, nnx.State]:
            copies = nnx.merge(before[0], state)
            return with_nodes(copies), nnx.state(copies)

        def direct(state: Any) -> tuple[Any, None]:
            del state
            return with_nodes(models), None

        (output, after), notes = recorder.collect(direct, before[1], again=again)
        if after is not None and (changed := _changed(before[1], after)):
            nnx.update(models, changed)
    found: list[dict[tuple, tuple]] = [{} for _ in positions]
    for (model, *path), activity, _ in notes:
        calls = found[int(model)]
        calls[tuple(path)] = calls.get(tuple(path), ()) + ((activity,) if activity else ())
    return output, [
        nnx.from_flat_state({path: Recorded(activities) for path, activities in calls.items()}) for calls in found
    ]


def _changed(before: nnx.State, after: nnx.State) -> nnx.State:
    """Returns the variables with another value. Flax does not let the others be set if they are of an outer trace."""
    old = dict(nnx.to_flat_state(before))
    new = nnx.to_flat_state(after)
    return nnx.from_flat_state({path: leaf for path, leaf in new if path not in old or _arrays(leaf) != _arrays(old[path])})


def _copied(variables: nnx.State) -> nnx.State:
    """Returns other variables of the same values. A model and the variables that it is split into are the same objects."""
    return jax.tree.map(lambda leaf: leaf, variables)


def _arrays(leaf: Any) -> list[int]:
    return list(map(id, jax.tree.leaves(leaf)))


def _is_module(node: Any) -> bool:
    return isinstance(node, nnx.Module | nnx.Pytree)


@contextlib.contextmanager
def _named(models: Mapping[int, nnx.Module]) -> Iterator[None]:
    """Sets on each layer with a kernel the model's number and the kernel's path, while the context lasts."""
    layers = []
    # In the order of `nnx.state`, which stores a shared variable at the first of its paths.
    paths: dict[int, tuple] = {}
    for number, model in models.items():
        for path, node in nnx.iter_graph(model):
            if isinstance(node, nnx.Variable):
                paths.setdefault(id(node), (number, *path))
    nodes = {id(node): node for model in models.values() for _, node in nnx.iter_graph(model)}
    for node in nodes.values():
        kernel = vars(node).get("kernel") if isinstance(node, nnx.Module) else None
        if isinstance(kernel, nnx.Variable):
            layers.append((node, getattr(node, _PATH, None)))
            # Flax's own setattr refuses a model from outside of a `jit` or `vmap`.
            object.__setattr__(node, _PATH, paths[id(kernel)])
    try:
        yield
    finally:
        for layer, before in layers:
            if before is None:
                object.__delattr__(layer, _PATH)
            else:
                object.__setattr__(layer, _PATH, before)


def _with_gradient(activity: nnx.State, grads: PyTree) -> nnx.State:
    learned = {path for path, _ in named_leaves(grads)}
    kept = {path: leaf for path, leaf in nnx.to_flat_state(activity) if "/".join(map(str, path)) in learned}
    return nnx.from_flat_state(kept)
