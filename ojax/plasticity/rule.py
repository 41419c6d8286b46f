"""Makes an Optax transformation from a function of one layer; all rules are made here."""

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import EllipsisType
from typing import Any, NamedTuple, ParamSpec, TypedDict, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Float, PyTree

from ojax._compat import is_called_by, varying_axes
from ojax.activity import Activity, by_parameter, is_masked
from ojax.patches import Patches
from ojax.plasticity import local
from ojax.plasticity.layer import Layer
from ojax.plasticity.outer import parts_of, summed
from ojax.plasticity.shapes import Axes, AxisLike, as_parameter, sides_of, site_of
from ojax.trees import abbreviated, named_leaves

P = ParamSpec("P")
T = TypeVar("T")
Mask = Any | Callable[[optax.Params], Any]
Change = Callable[..., Any]

# Keywords of `update` that Optax's own transformations read: a chain passes every keyword to every transformation.
OF_OPTAX = frozenset({"value", "grad", "value_fn", "obj_fn", "grad_fn"})
# The mesh axis of ojax.online, with a name of its own. Whole runs are sharded along it, never a run's batch.
RUNS_AXIS = "ojax_runs"
_RESERVED = frozenset({"updates", "state", "params", "activity"})


class Options(TypedDict, total=False):
    """The options that every rule takes, described in :func:`rule`."""

    mask: Mask | None
    in_axis: AxisLike | EllipsisType
    out_axis: AxisLike
    batch_axis: AxisLike
    axis_name: str | Sequence[str] | None
    signals: Sequence[str]


class RuleState(NamedTuple):
    """The state of a rule.

    Attributes:
      count: Number of updates so far, for a schedule; None for a constant rate.
      local: The result of `init`, with a tree of the parameters' structure in place of each array, as in Optax's states;
        None for a rule without a state. A parameter that is not a kernel, such as a bias, has a zero there.
    """

    count: Array | None  # type: ignore[assignment] # A tuple has a method of that name.
    local: PyTree | None


def rule(
    change: Change,
    rate: optax.ScalarOrSchedule,
    *,
    init: Callable[[Float[Array, "n_in n_out"]], PyTree] | None = None,
    mask: Mask | None = None,
    in_axis: AxisLike | EllipsisType = ...,
    out_axis: AxisLike = (-1,),
    batch_axis: AxisLike = (),
    axis_name: str | Sequence[str] | None = None,
    signals: Sequence[str] = (),
    name: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes a local plasticity rule: an Optax transformation that adds `rate * change(layer)` to the updates.

    `change` is given a :class:`Layer`: its kernel as a matrix (n_in, n_out), and its activity as a batch, `pre`
    (batch, n_in) and `post` (batch, n_out), in float32 or the parameter's wider type. It should average over the batch. The
    positions of a convolution are a batch. Each group of a grouped or depthwise kernel is a separate layer.

    Args:
      change: `change(layer)` returns an array of the kernel's shape, an :class:`Outer`, or a list of these, their sum. With
        `init` it is `change(layer, state)` and returns the change and the new state.
      rate: A float of either sign, a traced scalar, or an Optax schedule of the count of updates.
      init: `init(kernel)` returns the initial state that the rule stores for a kernel, any pytree of arrays. Every
        parameter with two axes or more gets a state, an embedding too, unless the mask leaves it out. The groups of a
        grouped kernel divide the axis of n_out among themselves, so each array of its state must have that axis, once.
      mask: A pytree of booleans with the structure (or a prefix of the structure) of the parameters, or a function that
        makes one from them; `True` where the rule applies. By default it applies wherever there is an activity.
      in_axis: The input axes of each kernel, as in `jax.nn.initializers`. Axes that are neither input, output nor batch,
        such as the window of a convolution, come before them. By default all other axes are inputs, in their order.
      out_axis: The output axes: -1 for Flax; 0 for the weights of Equinox and PyTorch, with `in_axis=1` for their
        convolutions. A square kernel fits either, so a wrong axis raises no error there.
      batch_axis: Axes along which kernels are stacked: layers of a scan, the members of an ensemble. The leading axes of an
        activity are then the same stack. Without a state and without any axis given, a kernel that does not fit its
        activity is read as a stack along leading axes, or as a kernel with several output axes.
      axis_name: Names of the `jax.shard_map` or `jax.pmap` axes over which the batch is sharded. The change is averaged
        over them, as the gradient is by `jax.lax.pmean`. This is the change of the whole batch if the change is a mean over
        samples; else, as for BCM's threshold, nearly so. By default these are the axes along which the change varies and
        the kernel does not. JAX knows them only with `check_vma=True`; otherwise name them, or pass `()` if each device has
        the whole batch.
      signals: The keywords of `tx.update` that `change` reads as `layer.signals[name]`, such as a reward: scalars, or
        arrays with one value per sample. In a chain, also name the other rules' signals.
      name: The rule's name in errors; by default the function's.

    Returns:
      A gradient transformation whose `update` takes `params` and, by keyword, `activity` and the signals. `activity` is a
      pytree with an :class:`ojax.Activity` at the path of each plastic kernel. A parameter without an activity, such as a
      bias, is left alone. The change has the parameter's dtype.

    Raises:
      ValueError: At once, if `rate` is not finite. In `update`, if `params`, `activity`, a signal or an error that the rule
        reads is missing, a keyword is unknown, an activity is at the path of no parameter, its shapes do not fit the
        kernel, a kernel or activity is complex, or the rule has no parameter to change.

    Example:
      A rule with a third factor: Hebb's, times a reward.

      >>> import jax.numpy as jnp, ojax, optax
      >>> def rewarded(layer):
      ...     return layer.signals["reward"] * layer.pre.T @ layer.post / len(layer.pre)
      >>> tx = ojax.plasticity.rule(rewarded, 0.1, signals=["reward"])
      >>> params = {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}
      >>> activity = {"kernel": ojax.Activity(pre=jnp.ones(3), post=jnp.array([1.0, 2.0]))}
      >>> zeros = {"kernel": jnp.zeros((3, 2)), "bias": jnp.zeros(2)}
      >>> updates, state = tx.update(zeros, tx.init(params), params, activity=activity, reward=-1.0)
      >>> print(updates["kernel"][0])
      [-0.1 -0.2]
    """
    name = str(name or getattr(change, "__name__", "rule"))
    axes = Axes.of(name, in_axis, out_axis, batch_axis)
    declared = frozenset([signals] if isinstance(signals, str) else signals)
    replicas = (axis_name,) if isinstance(axis_name, str) else axis_name
    scheduled = callable(rate)
    check_rate(name, rate)
    _check_arguments(name, change, keeps_state=init is not None)
    if taken := declared & _RESERVED:
        raise ValueError(f"{name}: a signal cannot be called {', '.join(sorted(taken))}, which update has already.")

    def init_fn(params: optax.Params) -> RuleState:
        if is_called_by(optax.apply_if_finite):
            warnings.warn(
                f"optax.apply_if_finite looks at gradients alone, and lets a change of {name} that is not finite through. "
                f"Put it after: optax.chain(..., {name}(...), optax.apply_if_finite(optax.identity(), ...)).",
                stacklevel=2,
            )
        states = None if init is None else local.initial(name, params, axes, init)
        return RuleState(jnp.zeros([], jnp.int32) if scheduled else None, states)

    def update_fn(updates, state, params=None, *, activity=None, **given):
        if params is None or activity is None:
            missing = "params" if params is None else "activity"
            raise ValueError(
                f"{name} needs the {missing}: call tx.update(grads, state, params, activity=activity); with Linen's "
                "TrainState, ojax.TrainState and apply_gradients(grads=grads, activity=activity)."
            )
        known = _signals(name, declared, given)
        activities = by_parameter(name, activity, params)
        parameters = {path: param for path, param in named_leaves(params, is_masked) if path in activities}
        leaves = named_leaves(updates, is_masked)  # Matched by path, since the updates may have other containers.
        if not any(path in parameters and not is_masked(update) for path, update in leaves):
            raise ValueError(
                f"{name} reaches no parameter: there is no update at the path of a kernel with an activity, "
                f"{abbreviated(parameters)}."
            )
        factor = rate(state.count) if scheduled else rate
        states = local.by_path(name, state.local, params, axes, init)

        def add(path: str, update: Any) -> Any:
            if path not in parameters or is_masked(update):
                return update
            number = list(parameters).index(path)

            def learned(param: Array, calls: list, state: PyTree, signals: dict, factor: Any) -> tuple[Array, PyTree]:
                site = site_of(name, path, axes, param, calls, keeps_state=init is not None)
                learn = partial(
                    _learned, name, path, change, init, {"signals": signals, "number": number, "count": len(parameters)}
                )
                for _ in range(site.stack):
                    learn = jax.vmap(learn)
                added, state = _averaged(name, learn(site.kernel, site.calls, state), param, replicas)
                added = jnp.asarray(factor, added.dtype) * added
                return as_parameter(added, axes, jnp.shape(param)).astype(param.dtype), state

            before = parameters[path], states.get(path)
            added, state = _sharded_as(before, learned)(before[0], activities[path], before[1], known, factor)
            if init is not None:
                states[path] = state
            return update + added

        new = [add(path, update) for path, update in leaves]
        treedef = jax.tree.structure(updates, is_leaf=is_masked)
        count = optax.safe_increment(state.count) if scheduled else None
        return jax.tree.unflatten(treedef, new), RuleState(count, local.replaced(state.local, states))

    transformation = optax.GradientTransformationExtraArgs(init_fn, update_fn)
    return transformation if mask is None else optax.masked(transformation, mask)


def _check_arguments(name: str, change: Change, *, keeps_state: bool) -> None:
    """Raises TypeError if a change cannot be called with a layer, or with a layer and a state."""
    try:
        signature = inspect.signature(change)
    except ValueError:  # Some built-in functions have no signature.
        return
    try:
        signature.bind(*[None] * (1 + keeps_state))
    except TypeError:
        given = "a layer and a state, as there is an init" if keeps_state else "a layer, as there is no init"
        raise TypeError(
            f"{name}: change is called with {given}, but it is change{signature}. A rule with a state has both `init` and "
            "`change(layer, state)`, see ojax.plasticity.rule."
        ) from None


def takes_options(function: Callable[P, T]) -> Callable[P, T]:
    """Lists the options of :func:`rule` in the signature of a function that takes `**options`.

    `optax.inject_hyperparams` needs the full signature.

    An unknown argument raises a TypeError that lists the known ones.
    """
    shared = [option for name, option in inspect.signature(rule).parameters.items() if name in Options.__annotations__]
    own = [option for option in inspect.signature(function).parameters.values() if option.kind != option.VAR_KEYWORD]
    signature = inspect.Signature([*own, *shared])

    @functools.wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        if unknown := [name for name in kwargs if name not in signature.parameters]:
            renamed = ' layout="out_in" is now out_axis=0.' if "layout" in unknown else ""
            raise TypeError(
                f"{function.__name__} has no argument {unknown[0]!r}; it has {', '.join(signature.parameters)}.{renamed}"
            )
        return function(*args, **kwargs)

    made.__signature__ = signature  # type: ignore[attr-defined]
    return made


def check_rate(name: str, rate: Any, lowest: float = -math.inf) -> None:
    """Raises ValueError if a rate is a number that is not finite or below `lowest`."""
    if callable(rate) or isinstance(rate, jax.core.Tracer) or getattr(rate, "shape", ()) != ():
        return  # Schedules, traced rates and arrays of rates have no single value to check.
    if isinstance(rate, str | bytes) or not hasattr(rate, "__float__"):
        raise ValueError(f"{name}: the rate must be a number or a schedule, got {rate!r}.")
    value = float(rate)  # A Python number, since under a trace JAX would trace the comparison of a constant too.
    if not math.isfinite(value) or value < lowest:
        wanted = "finite and at least 0" if lowest == 0 else "finite"
        raise ValueError(f"{name}: the rate must be {wanted}, got {rate}.")


def _signals(name: str, declared: frozenset[str], given: Mapping[str, Any]) -> dict[str, Any]:
    if missing := sorted(declared - given.keys()):
        call = ", ".join(f"{signal}=..." for signal in sorted(declared))
        raise ValueError(
            f"{name} needs the signal {missing[0]!r}: call tx.update(grads, state, params, activity=activity, {call})."
        )
    if unknown := sorted(given.keys() - declared - OF_OPTAX):
        raise ValueError(
            f"{name} knows no keyword {unknown[0]!r} of tx.update. If another transformation of the chain reads it, say so "
            f"to this one: signals=[{unknown[0]!r}]."
        )
    return {signal: given[signal] for signal in declared}


def _learned(
    name: str,
    path: str,
    change: Change,
    init: Any,
    options: Mapping[str, Any],
    kernel: Array,
    calls: list[Activity],
    state: PyTree,
) -> tuple[Float[Array, "n_in n_out"], PyTree]:
    """Returns one kernel's change, (n_in, n_out), and its new state. Each group of a grouped kernel learns separately."""

    def of_group(kernel: Array, sides: Sequence[Any], images: Sequence[Activity], state: PyTree) -> tuple[Array, PyTree]:
        layer = Layer(kernel, *sides, images=images, where=f"{name}: activity[{path!r}]", **options)
        found, new = (change(layer), None) if init is None else change(layer, state)
        structures: list[Any] = [jax.tree.structure(tree) for tree in (new, state)]
        if structures[0] != structures[1]:
            raise ValueError(f"{name}: the new state of {path} must have the structure of what init returns.")
        for part in parts_of(found):
            if jnp.shape(part) != kernel.shape:
                raise ValueError(
                    f"{name}: the change of {path} has shape {jnp.shape(part)}, and not the kernel's, (n_in, n_out) = "
                    f"{kernel.shape}."
                )
        return summed(found), new

    first = calls[0].pre
    is_shared = isinstance(first, Patches)
    groups = first.image.shape[-1] * math.prod(first.geometry.window) // len(kernel) if isinstance(first, Patches) else 1
    sides, images = (
        [_as_batch(side, groups) for side in zip(*map(sides_of, calls), strict=True)],
        calls if is_shared else [],
    )
    if groups == 1:
        return of_group(kernel, sides, images, state)

    def divided(array: Array, axis: int) -> Array:
        return array.reshape(*array.shape[:axis], groups, -1, *array.shape[axis + 1 :])

    def merged(array: Array, axis: int) -> Array:
        return array.reshape(*array.shape[:axis], -1, *array.shape[axis + 2 :])

    axes = None if init is None else local.axes_of_outputs(init, kernel, groups, name, path)
    by_group: Callable = jax.vmap(of_group, in_axes=(1, 1, -2, axes), out_axes=(1, axes))
    channels = jax.tree.map(lambda array: divided(array, array.ndim - 1), (sides, images))
    added, new = by_group(divided(kernel, 1), *channels, jax.tree.map(divided, state, axes))
    return merged(added, 1), jax.tree.map(merged, new, axes)


def _as_batch(by_call: Sequence[Any], groups: int) -> Array | None:
    """Returns one side of a layer, with the samples of all calls as one batch; None if a call has not recorded it."""
    if any(side is None for side in by_call):
        return None
    rows = [side.matrix(groups) if isinstance(side, Patches) else side.reshape(-1, side.shape[-1]) for side in by_call]
    return jnp.concatenate(rows)


def _sharded_as(like: PyTree, function: Callable) -> Callable:
    """Shards a function's results like the arrays `like`, which a product over a batch needs in a mesh of explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    if not explicit:
        return function
    specs = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding.spec, like)
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=specs)


def _averaged(name: str, tree: PyTree, param: Array, replicas: Sequence[str] | None) -> PyTree:
    """Averages a change and a state over the mesh axes along which the batch is sharded and the parameter is not.

    Raises:
      ValueError: If these axes are neither named nor known to JAX, or a named axis does not exist.
    """
    mesh = jax.sharding.get_abstract_mesh()
    manual = [axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Manual]
    unknown = [axis for axis in manual if axis != RUNS_AXIS and not varying_axes(lax.axis_index(axis))]
    if replicas is None and unknown:
        raise ValueError(
            f"{name}: inside of jax.pmap, or jax.shard_map with check_vma=False, JAX does not know whether the batch is "
            "sharded, and replicas of a kernel could drift apart. "
            f"Give axis_name={unknown[0]!r}, or axis_name=() if every device has the whole batch."
        )

    def average(leaf: Array) -> Array:
        axes = sorted(varying_axes(leaf) - varying_axes(param)) if replicas is None else replicas
        if not axes or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        try:
            return lax.pmean(leaf, tuple(axes))
        except (AssertionError, NameError) as error:
            raise ValueError(
                f"{name}: axis_name is {', '.join(axes)}, and here {', '.join(manual) or 'no axis'} is mapped over."
            ) from error

    return jax.tree.map(average, tree)
