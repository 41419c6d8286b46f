"""Returns the values that a function records while it runs, inside of JAX transformations too.

:func:`note` passes a value to the :func:`collect` around it. Outside of other transformations nothing more is needed.
Inside of `jax.vmap` the value first gets a leading axis for the batch. Inside of `jax.jit`, `jax.checkpoint` and `lax.scan`
it is known only when their program runs: the function is then traced to a program, and its notes become outputs.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters import ad, batching
from jaxtyping import Array, PyTree


class Note(NamedTuple):
    """A recorded value.

    Attributes:
      path: The number of a model, and the path in it.
      value: A pytree of arrays.
      outer: Number of leading axes of the value that are batches of a `jax.vmap` around the program with the note.
    """

    path: tuple[str | int, ...]
    value: PyTree
    outer: int = 0


class Recorder:
    """Holds the values that one call of a function records.

    Attributes:
      level: The JAX transformation around :func:`collect`, at which values are stored; None while a program is traced.
      notes: The values so far.
    """

    def __init__(self, level: Any):
        self.level, self.notes = level, list[Note]()


class _Staged(BaseException):
    """A value is inside of a program that has not run yet. A `BaseException`: no user's `except Exception` catches it."""


_local = threading.local()
# Part of the key of JAX's cache of traced functions: a function that was traced without a recorder would not record.
_mode = jax.make_user_context("off")


@contextlib.contextmanager
def tapped(taps: dict[tuple, Array]) -> Iterator[None]:
    """Adds each of these arrays to the value at its path, see :func:`tap`; other paths get zeros."""
    before, _local.taps = getattr(_local, "taps", None), taps
    try:
        yield
    finally:
        _local.taps = before


def tap(path: tuple | None, value: Array) -> Array:
    """Returns the value plus the array of :func:`tapped` at its path; the gradient of that array is the value's error."""
    taps = getattr(_local, "taps", None)
    if taps is None or path is None:
        return value
    return taps.setdefault(path, jnp.zeros_like(value)) + value


def is_recording() -> bool:
    """Returns whether there is a :func:`collect` around the caller."""
    return bool(getattr(_local, "stack", None))


@contextlib.contextmanager
def _recording(recorder: Recorder) -> Iterator[Recorder]:
    _local.stack = [*getattr(_local, "stack", []), recorder]
    try:
        with _mode("traced" if recorder.level is None else "direct"):
            yield recorder
    finally:
        _local.stack = _local.stack[:-1]


def collect(
    function: Callable[..., Any], *arguments: PyTree, again: Callable[..., Any] | None = None
) -> tuple[Any, list[Note]]:
    """Calls the function and returns its output and its notes.

    Args:
      function: Any function that calls :func:`note`, itself or in what it calls.
      *arguments: Its arguments.
      again: A pure function of the same arguments and result, which is traced in its place if the function must be traced.
        By default the function itself.

    Returns:
      Its output, and its notes in their order. A note inside of `jax.vmap` or `lax.scan` has a leading axis for the batch
      or the steps, those of outer transformations first.

    Raises:
      ValueError: If a value is recorded inside of a transformation that cannot return it, e.g. `lax.cond`.
    """
    try:
        with _recording(Recorder(core.get_opaque_trace_state())) as recorder:
            return function(*arguments), recorder.notes
    except _Staged:
        return _collect_from_program(again or function, *arguments)


def note(path: Sequence[str | int], value: PyTree) -> None:
    """Records a value, if there is a :func:`collect` around."""
    if is_recording():
        leaves, structure = jax.tree.flatten(value)
        before = len(_local.stack[-1].notes)
        _local.is_new = True
        try:
            _note.bind(*map(jnp.asarray, leaves), path=tuple(path), structure=structure, outer=0)
        finally:
            _local.is_new = False
        if _local.stack[-1].level is not None and len(_local.stack[-1].notes) == before:
            raise _Staged


class _Note(core.Primitive):  # type: ignore[no-untyped-call]
    """Stores its inputs at the recorder's level; at any other level passes them to the next level outside."""

    multiple_results = True

    def bind_with_trace(self, trace: Any, values: Sequence[Array], *rest: Any) -> Any:
        recorder = _local.stack[-1] if is_recording() else None
        with core.set_current_trace(trace):
            if recorder is None or recorder.level != core.get_opaque_trace_state():
                return super().bind_with_trace(trace, values, *rest)
        path, structure = rest[-1]["path"], rest[-1]["structure"]
        recorder.notes.append(Note(path, jax.tree.unflatten(structure, values)))
        return []


_note = _Note("note")
_note.def_abstract_eval(lambda *values, **options: [])


def _note_now(*values: Array, path: tuple, structure: Any, outer: int) -> list:
    """Stores values that are known already, as in a function with its own derivative (`jax.custom_vjp`)."""
    del outer
    if is_recording():
        _local.stack[-1].notes.append(Note(path, jax.tree.unflatten(structure, values)))
    return []


_note.def_impl(_note_now)


def _note_batch(values: Sequence[Array], axes: Sequence[int | None], **options: Any) -> tuple[list, list]:
    (size,) = {value.shape[axis] for value, axis in zip(values, axes, strict=True) if axis is not None}
    first = [
        jnp.broadcast_to(value, (size, *value.shape)) if axis is None else jnp.moveaxis(value, axis, 0)
        for value, axis in zip(values, axes, strict=True)
    ]
    # A note that is not new is in a program that was traced before: the vmap is around this program. A vmap of a `jit`
    # inside of a scan looks the same, and is taken for one around the scan.
    outer = options["outer"] + (not getattr(_local, "is_new", False))
    return _note.bind(*first, **options | {"outer": outer}), []


def _note_jvp(primals: Sequence[Array], tangents: Any, **options: Any) -> tuple[list, list]:
    del tangents
    return _note.bind(*primals, **options), []


batching.primitive_batchers[_note] = _note_batch
ad.primitive_jvps[_note] = _note_jvp


def _collect_from_program(function: Callable[..., Any], *arguments: PyTree) -> tuple[Any, list[Note]]:
    with _recording(Recorder(None)):
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
    outputs, notes = _run(program.jaxpr, program.consts, jax.tree.leaves(arguments))
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs), notes


def _run(program: Any, constants: Sequence[Array], arguments: Sequence[Array]) -> tuple[list[Array], list[Note]]:
    """Runs a program, equation by equation, and returns its outputs and its notes."""
    values = dict(zip((*program.constvars, *program.invars), (*constants, *arguments), strict=True))
    notes: list[Note] = []
    for equation in program.eqns:
        inputs = [each.val if isinstance(each, core.Literal) else values[each] for each in equation.invars]
        if equation.primitive is _note:
            options = equation.params
            notes.append(Note(options["path"], jax.tree.unflatten(options["structure"], inputs), options["outer"]))
        elif path := next(_paths(equation), None):
            outputs, inner = _run_with_notes(equation, inputs, path)
            notes += inner
            values |= zip(equation.outvars, outputs, strict=True)
        else:
            functions, options = _bind_params(equation)
            found = equation.primitive.bind(*functions, *inputs, **options)
            values |= zip(equation.outvars, found if equation.primitive.multiple_results else [found], strict=True)
    return [each.val if isinstance(each, core.Literal) else values[each] for each in program.outvars], notes


def _bind_params(equation: Any) -> tuple[Sequence[Any], dict[str, Any]]:
    found = equation.primitive.get_bind_params(equation.params)
    return found if isinstance(found, tuple) else ((), found)


def _run_with_notes(equation: Any, inputs: list[Array], path: tuple) -> tuple[list[Array], list[Note]]:
    """Runs an equation whose own program has notes."""
    name, options = equation.primitive.name, equation.params
    inside: list[Note] = []

    def run(program: Any, *arguments: Array) -> tuple[list[Array], list[PyTree]]:
        outputs, inside[:] = _run(*_opened(program), arguments)
        return outputs, [each.value for each in inside]

    if name in ("jit", "pjit", "closed_call"):
        return _run(*_opened(options["jaxpr"]), inputs)
    if name in ("checkpoint", "remat", "remat2"):
        how = {"prevent_cse": options["prevent_cse"], "policy": options["policy"]}
        outputs, noted = jax.checkpoint(lambda *arguments: run(options["jaxpr"], *arguments), **how)(*inputs)
    elif name == "scan":
        inner = _opened(options["jaxpr"])[0]
        # Scanned arrays have one more axis outside. Compared by rank, as versions of JAX count them differently.
        carry_out = _num_of_same_rank(equation.outvars, inner.outvars)
        carried = _num_of_same_rank(equation.invars, inner.invars)
        fixed = carried - carry_out

        def body(carry: list[Array], xs: list[Array]) -> tuple[list[Array], tuple]:
            outputs, noted = run(options["jaxpr"], *inputs[:fixed], *carry, *xs)
            return outputs[:carry_out], (outputs[carry_out:], noted)

        how = {name: options[name] for name in ("length", "reverse", "unroll")}
        carry, (ys, noted) = lax.scan(body, inputs[fixed:carried], inputs[carried:], **how)
        outputs = [*carry, *ys]
        # The steps come after the batches of a vmap around the scan, as in the parameters.
        noted = [
            jax.tree.map(lambda leaf, note=note: jnp.moveaxis(leaf, 0, note.outer), value) if note.outer else value
            for note, value in zip(inside, noted, strict=True)
        ]
    else:
        raise ValueError(
            f"{'/'.join(map(str, path[1:]))} recorded its activity inside of {name}, from which it cannot be taken: call "
            "the layer outside of it. Inside of jit, checkpoint, vmap and scan, of JAX and of Flax, layers may record."
        )
    return outputs, [note._replace(value=value) for note, value in zip(inside, noted, strict=True)]


def _num_of_same_rank(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    return sum(jnp.ndim(one.aval) == jnp.ndim(other.aval) for one, other in zip(outside, inside, strict=True))


def _opened(program: Any) -> tuple[Any, Sequence[Array]]:
    return (program.jaxpr, program.consts) if isinstance(program, core.ClosedJaxpr) else (program, ())


def _paths(equation: Any) -> Iterator[tuple]:
    """The paths of all notes in the programs of an equation."""
    for option in equation.params.values():
        for program in option if isinstance(option, tuple | list) else [option]:
            if isinstance(program, core.ClosedJaxpr | core.Jaxpr):
                for inner in _opened(program)[0].eqns:
                    yield from [inner.params["path"]] if inner.primitive is _note else _paths(inner)
