"""A study's programs compiled for hardware that is not here: whether they compile and fit, and what they would move.

Nothing is trained, and no accelerator is needed or touched.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.common import grid, hardware, stopping, traffic
from experiments.common.errors import UserError, complain, in_flags
from experiments.common.files import write_text
from experiments.common.flags import Settings
from experiments.common.grid import Block, Grid
from experiments.common.hardware import Hardware
from experiments.common.question import Question
from ojax import datasets
from ojax.online import checks, devices, memory, windows
from ojax.online.programs import arguments, programs
from ojax.trees import first_line

_CAPTION = (
    "seconds: to compile here. args, temp: MiB of arguments and of temporaries on one device; memory: their share of it, "
    "with the copy for a checkpoint. blocks: their number x runs in each. moved: MB to and from memory, a sample of a run."
)


class Compiled(NamedTuple):
    """What the compiler says of one program; bytes are those of one device.

    Attributes:
      runs: The name of the runs that it trains.
      program: `begin`, `advance` or `evaluate`, see :class:`ojax.online.programs.Programs`.
      seconds: What compiling took.
      arguments: Bytes of the arguments: the state of the runs of a block, and the data.
      temporaries: Bytes of what it needs beside them, its code included, and those results that are in no argument's place.
      copy: Bytes of the copy of the runs' state that a checkpoint takes while `advance` goes on.
      memory: Bytes that the device has.
      block: Runs that are trained at once, over all devices.
      blocks: How many such blocks there are.
      moved: Bytes moved for a sample of a run, by :mod:`experiments.common.traffic`; None but of `advance`.
      fault: Why it does not compile or fit; None if it does.
    """

    runs: str
    program: str
    seconds: float
    arguments: int
    temporaries: int
    copy: int
    memory: int
    block: int
    blocks: int
    moved: float | None = None
    fault: str | None = None


def run(question: Question, settings: Settings) -> None:
    """Compiles the programs of a study as the only work of this process, which ends with 2 where one will not do."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = compile_study(question, settings, Console())
    except (UserError, datasets.DatasetError, ValueError) as error:
        sys.exit(complain(in_flags(error)))
    except stopping.Stopped:
        sys.exit(complain("stopped.", stopping.exit_code()))
    faults = [compiled for compiled in found if compiled.fault is not None]
    if faults:
        first = faults[0]
        sys.exit(
            complain(
                f"{len(faults)} of {len(found)} programs will not do on {settings['compile_for']}; {first.program} of "
                f"{first.runs}: {first.fault}"
            )
        )


def compile_study(question: Question, settings: Settings, console: Console) -> list[Compiled]:
    """Compiles the programs of a study, prints what the compiler says of them, and writes it into the work directory."""
    target = hardware.described(settings["compile_for"])
    grid.runs_of(question, settings)
    dataset = (question.data or question.task.load)(settings)
    runs = grid.make(question, settings, dataset)
    free = [target.memory] * target.mesh.size
    block_size = settings["block_size"] or runs.block_size(
        partial(memory.runs_that_fit_into, free, devices.platform(target.mesh))
    )
    found = []
    console.print(f"{runs.num_runs} runs for {target.name}: {target.mesh.size} x {target.kind}", highlight=False)
    with console.status("compiling") as status:
        for compiled in compile_grid(runs, block_size, target):
            found.append(compiled)
            status.update(f"compiling; {compiled.program} of {compiled.runs} took {compiled.seconds:.0f} s")
    console.print(_table(found))
    path = Path(settings["workdir"]) / "compiled" / f"{_file_name(target.name)}.json"
    facts = {"hardware": target.name, "device": target.kind, "devices": target.mesh.size, "jax": jax.__version__}
    facts |= {"memory": target.memory, "runs": runs.num_runs, "flags": settings.identity()}
    write_text(path, json.dumps(facts | {"programs": [each._asdict() for each in found]}, indent=2) + "\n")
    console.print(f"The same as JSON is in {path.absolute()}", highlight=False, soft_wrap=True)
    return found


def compile_grid(runs: Grid, block_size: int, target: Hardware) -> Iterator[Compiled]:
    """Compiles the programs of each part of a grid; those that are the same, once."""
    known: dict[str, Compiled] = {}
    for part in runs.parts:
        blocks = [block for block in runs.blocks(block_size) if block.part is part]
        with jax.default_matmul_precision("highest"):  # As a study is trained.
            for name, traced, facts in lowered(runs, blocks, target):
                key = hashlib.sha256(traced.as_text().encode()).hexdigest()
                if key not in known:
                    known[key] = _compiled(traced, facts, target)
                    yield known[key]._replace(runs=part.name, program=name, blocks=len(blocks))


def lowered(runs: Grid, blocks: list[Block], target: Hardware) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The three programs of a part, and what is known of each before it is compiled."""
    (part, *_), slots = blocks[0], blocks[0].slots
    padded = -(-slots // target.mesh.size) * target.mesh.size
    plan, names = part.plan.normalized(), tuple(part.hyper)
    layer = checks.check(part.learner, plan, names, runs.dataset)
    made = programs(part.learner, plan, layer, runs.dataset.num_train, target.mesh)
    of_runs, everywhere = (NamedSharding(target.mesh, spec) for spec in (devices.RUNS, devices.EVERYWHERE))
    hyper = dict.fromkeys(names, jax.ShapeDtypeStruct((padded,), jnp.float32, sharding=of_runs))
    settings = (hyper, jax.ShapeDtypeStruct((padded,), jnp.uint32, sharding=of_runs))
    data = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype), sharding=everywhere),
        (runs.dataset.train, runs.dataset.test),
    )
    needed = memory.need(part.learner, names, runs.dataset, plan)
    of_device = padded // target.mesh.size
    facts = {"block": slots, "copy": needed.copy * of_device, "memory": target.memory}
    samples = (windows.SIZE if layer is not None else plan.batch_size) * of_device
    for name, program, shapes in zip(made._fields, made, arguments(made.begin, settings, data, target.mesh), strict=True):
        yield name, program.lower(*shapes), {**facts, "samples_a_turn": samples if name == "advance" else None}


def _compiled(traced: Any, facts: dict[str, Any], target: Hardware) -> Compiled:
    samples = facts.pop("samples_a_turn")
    result = Compiled("", "", 0.0, 0, 0, **{**facts, "copy": facts["copy"] if samples else 0}, blocks=0)
    start = time.monotonic()
    try:
        program = traced.compile()
    except jax.errors.JaxRuntimeError as error:
        return result._replace(seconds=time.monotonic() - start, fault=_reason(error))
    found = program.memory_analysis()
    result = result._replace(
        seconds=time.monotonic() - start,
        arguments=found.argument_size_in_bytes,
        temporaries=found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes,
        moved=traffic.bytes_a_turn(program.as_text(), windows.SIZE) / samples if samples else None,
    )
    total = result.arguments + result.temporaries + result.copy
    if total > target.memory:
        fault = f"it needs {_gib(total)} of the {_gib(target.memory)} of a device, give a smaller --block_size."
        return result._replace(fault=fault)
    return result


def _table(found: list[Compiled]) -> Table:
    table = Table("runs", box=box.SIMPLE, padding=(0, 1), caption_justify="left", caption=_CAPTION)
    table.add_column("program", no_wrap=True)
    for column in ("seconds", "args", "temp", "memory", "blocks", "moved"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        total = each.arguments + each.temporaries + each.copy
        sizes = [f"{size / 2**20:,.0f}" for size in (each.arguments, each.temporaries)]
        cells = [*sizes, f"{100 * total / each.memory:.0f} %"] if each.arguments else ["", "", "fails"]
        cells += [f"{each.blocks} x {each.block}", "" if each.moved is None else f"{each.moved / 1e6:.2f}"]
        table.add_row(each.runs, each.program, f"{each.seconds:.0f}", *cells, style="red" if each.fault else None)
    return table


def _reason(error: Exception) -> str:
    text = first_line(error)
    if "RESOURCE_EXHAUSTED" in text or "Ran out of memory" in text:
        return f"it does not fit, give a smaller --block_size ({text[:200]})."
    return f"it does not compile ({text[:300]})."


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in Path(name).stem)
