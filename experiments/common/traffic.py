"""Bytes that a compiled program moves to and from a device's memory, read off its text.

XLA's own count, `cost_analysis`, counts the body of a loop once, knows no loop in a loop, and is not there for GPUs. Here
each instruction outside of a fusion reads its operands and writes its result: what is fused with it stays in registers. A
buffer that the compiler has put into a TPU core's own memory costs nothing. Caches are not known of, so of a GPU it is an
upper bound.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

_ARRAY = re.compile(r"(pred|bf16|[sufc]\d+\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_HEAD = re.compile(r"(?:ENTRY )?%(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|body)=%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
# They move nothing, or what they move is counted elsewhere.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "after-all", "partition-id"}
_VIEWS = {"bitcast", "reshape", "convert"}
_PARTS = {"gather", "dynamic-slice", "slice"}  # They read as much of their first operand as they return.
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter", "collective-broadcast")


class Instruction(NamedTuple):
    """One line of a program; `called` is the computation that it calls, `trips` how often a loop turns, if it is known."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    called: str
    trips: int | None
    is_root: bool
    number: int  # Of a parameter.


Computations = dict[str, list[Instruction]]


def bytes_a_turn(text: str, trips: int) -> float:
    """Bytes that one turn of a program's outermost loops moves.

    Args:
      text: The compiled program's.
      trips: How often a loop in a loop turns, where the compiler does not know.
    """
    computations, entry = parsed(text)
    return sum(_moved(computations, made.called, trips) for made in computations[entry] if made.opcode == "while")


def parsed(text: str) -> tuple[Computations, str]:
    """The program's computations by name, and the name of that with which it begins."""
    found: Computations = {}
    entry, current = "", []
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = found.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        elif match := _INSTRUCTION.match(line):
            root, name, shape, opcode, rest = match.groups()
            inside, _, after = rest.partition(")")
            called, trips = _CALLED.search(after), _TRIPS.search(after)
            current.append(
                Instruction(
                    name,
                    shape,
                    opcode,
                    tuple(re.findall(r"%([\w.\-]+)", inside)),
                    called[1] if called else "",
                    int(trips[1]) if trips else None,
                    bool(root),
                    int(inside) if opcode == "parameter" else -1,
                )
            )
    return found, entry


def num_bytes(shape: str) -> int:
    """Bytes in the device's memory of an array, or of all arrays of a tuple, padded to whole tiles."""
    return sum(_of_array(*match.groups()) for match in _ARRAY.finditer(shape))


def _of_array(kind: str, sizes: str, order: str | None, layout: str | None) -> int:
    if layout and re.search(r"S\([1-9]", layout):
        return 0
    shape = [int(size) for size in sizes.split(",") if size]
    if tile := re.match(r"T\(([\d,]+)\)", layout or ""):
        minor = [int(axis) for axis in (order or "").split(",") if axis]
        for axis, step in zip(minor, reversed([int(size) for size in tile[1].split(",")]), strict=False):
            shape[axis] = -(-shape[axis] // step) * step
    bits = re.search(r"\d+", kind)
    return math.prod(shape) * (max(int(bits[0]) // 8, 1) if bits else 1)


def _moved(computations: Computations, name: str, trips: int) -> float:
    shapes = {made.name: made.shape for made in computations[name]}
    total = 0.0
    for made in computations[name]:
        if made.opcode in ("while", "call"):
            total += (1 if made.opcode == "call" else made.trips or trips) * _moved(computations, made.called, trips)
        elif made.opcode == "copy-start":  # Its result names both ends.
            total += num_bytes(made.shape)
        elif made.opcode.endswith("-start"):  # Its result names all of its operands, and the part that is taken.
            part = ", ".join(match[0] for match in _ARRAY.finditer(made.shape.rpartition("), ")[2]))
            total += num_bytes(re.sub(r"S\([1-9]\)", "", part)) + num_bytes(part)
        elif made.opcode not in _FREE and not made.opcode.endswith("-done"):
            result, read = num_bytes(made.shape), [num_bytes(shapes.get(name, "")) for name in made.operands]
            body = computations.get(made.called, []) if made.opcode == "fusion" else _alone(made)
            total += _written(body, result) + sum(_read(body, place, size) for place, size in enumerate(read))
    return total


def _alone(made: Instruction) -> list[Instruction]:
    """One instruction as a fusion."""
    parameters = [
        Instruction(name, "", "parameter", (), "", None, False, place) for place, name in enumerate(made.operands)
    ]
    return [*parameters, made._replace(is_root=True)]


def _read(body: list[Instruction], place: int, size: int) -> int:
    """Bytes that a fusion reads of its operand at that place."""
    names = {made.name for made in body if made.number == place}
    parts = 0
    for made in body:
        if not names.intersection(made.operands):
            continue
        if made.opcode in _VIEWS:
            names.add(made.name)
        elif made.operands[0] in names and made.opcode in _PARTS:
            parts += num_bytes(made.shape)
        elif made.operands[0] not in names or made.opcode != "dynamic-update-slice":  # That is done in place.
            return size
    return min(size, parts)


def _written(body: list[Instruction], size: int) -> int:
    """Bytes that a fusion writes."""
    shapes = {made.name: made.shape for made in body}
    for made in body:
        if made.is_root and made.opcode == "dynamic-update-slice":
            return min(size, num_bytes(shapes[made.operands[1]]) or size)
    return size
