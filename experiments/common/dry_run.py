"""Compiles a study's programs for hardware that need not be here, and reports time, memory, and programs that do not fit.

Nothing is trained, and no accelerator is needed or touched.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from experiments.common import grid, hardware, stopping
from experiments.common.errors import UserError, complain, in_flags
from experiments.common.files import write_text
from experiments.common.flags import Settings
from experiments.common.grid import Grid, Part
from experiments.common.hardware import Hardware
from experiments.common.question import Question
from ojax import _compat, datasets
from ojax.online import memory
from ojax.trees import first_line

_CAPTION = (
    "seconds: to compile here. args, temp: MiB of arguments and of temporaries on one device; memory: their share of it, "
    "with the copy for a checkpoint. blocks: their number x runs in each."
)


class Compiled(NamedTuple):
    """The compiler's report on one program; bytes are per device.

    Attributes:
      runs: The name of the runs that it trains.
      program: `begin`, `advance` or `evaluate`, see :class:`ojax.online.programs.Programs`.
      seconds: Compile time in seconds.
      arguments: Bytes of the arguments: the state of a block's runs, and the data.
      temporaries: Bytes of temporaries, of the program's code, and of results that replace no argument.
      copy: Bytes of the copy of the runs' state while a checkpoint is written.
      memory: Bytes of the device.
      block: Runs that are trained at once on all devices.
      blocks: Number of such blocks.
      fault: The reason why it does not compile or fit; None if it does.
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
    fault: str | None = None

    @property
    def total(self) -> int:
        """All bytes that it needs on a device."""
        return self.arguments + self.temporaries + self.copy


def run(question: Question, settings: Settings) -> None:
    """Compiles the programs of a study as a command, which exits with 2 if a program does not compile or fit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = compile_study(question, settings, Console())
    except (UserError, datasets.DatasetError, ValueError) as error:
        sys.exit(complain(in_flags(error)))
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:  # Of the search for the block size, or of lowering.
        sys.exit(complain(f"A program for {settings['compile_for']} fails: {_reason(error)}"))
    except stopping.Stopped:
        stopping.ignore()
        sys.exit(complain("stopped; nothing was written: give the command again.", stopping.exit_code()))
    if faults := [f"{compiled.program} of {compiled.runs}: {compiled.fault}" for compiled in found if compiled.fault]:
        told = f"{len(faults)} of {len(found)} programs do not compile or fit on {settings['compile_for']}"
        sys.exit(complain(f"{told}; {faults[0]}"))


def compile_study(question: Question, settings: Settings, console: Console) -> list[Compiled]:
    """Compiles the programs of a study, prints the compiler's reports, and writes them into the work directory."""
    target = hardware.described(settings["compile_for"])
    grid.runs_of(question, settings)
    dataset = (question.data or question.task.load)(settings)
    runs = grid.make(question, settings, dataset)
    free, device = [target.memory] * target.mesh.size, target.mesh.devices.flat[0]
    with jax.default_matmul_precision("highest"):  # As in training.
        block_size = settings["block_size"] or runs.block_size(partial(memory.runs_that_fit_into, free, device))
    found = []
    console.print(f"{runs.num_runs} runs for {target.name}: {target.mesh.size} x {target.kind}", highlight=False)
    with console.status("compiling") as status:
        for compiled in compile_grid(runs, block_size, target):
            found.append(compiled)
            status.update(f"compiling; {compiled.program} of {compiled.runs} took {compiled.seconds:.0f} s")
    console.print(_table(found))
    name = re.sub(r"\W", "_", Path(target.name).stem)
    path = Path(settings["workdir"]) / "compiled" / f"{name}.json"
    facts = {"hardware": target.name, "device": target.kind, "devices": target.mesh.size, "jax": jax.__version__}
    facts |= {"memory": target.memory, "runs": runs.num_runs, "flags": settings.deciding()}
    write_text(path, json.dumps(facts | {"programs": [each._asdict() for each in found]}, indent=2) + "\n")
    console.print(f"This table as JSON is in {path.absolute()}", highlight=False, soft_wrap=True)
    return found


def compile_grid(runs: Grid, block_size: int, target: Hardware) -> Iterator[Compiled]:
    """Compiles the programs of each part of a grid; a program that several parts share is compiled once."""
    known: set[str] = set()
    for part in runs.parts:
        blocks = [block for block in runs.blocks(block_size) if block.part is part]
        copy = memory.bytes_of_copy(part.learner, tuple(part.hyper), part.dataset, part.plan)
        for name, program in lowered(part, blocks[0].slots, target).items():
            key = hashlib.sha256(program.as_text().encode()).hexdigest()
            if key not in known:
                known.add(key)
                of_device = -(-blocks[0].slots // target.mesh.size)
                facts = Compiled(part.name, name, 0, 0, 0, copy * of_device, target.memory, blocks[0].slots, len(blocks))
                yield _compiled(program, facts)


def lowered(part: Part, slots: int, target: Hardware) -> dict[str, Any]:
    """Lowers the three programs of a part for `slots` runs, as a study does."""
    padded = -(-slots // target.mesh.size) * target.mesh.size
    with jax.default_matmul_precision("highest"):
        return memory.lowered(padded, part.learner, tuple(part.hyper), part.dataset, part.plan, target.mesh)


def _compiled(program: Any, facts: Compiled) -> Compiled:
    start, fault = time.monotonic(), None
    try:
        arguments, temporaries = memory.sizes(program.compile())
        facts = facts._replace(arguments=arguments, temporaries=temporaries)
        if facts.total > facts.memory:
            needed, there = (f"{size / 2**30:.1f} GiB" for size in (facts.total, facts.memory))
            fault = f"it needs {needed} of the {there} of a device, give a smaller --block_size."
    except jax.errors.JaxRuntimeError as error:
        fault = _reason(error)
    return facts._replace(seconds=time.monotonic() - start, fault=fault)


def _table(found: list[Compiled]) -> Table:
    table = Table("runs", box=box.SIMPLE, padding=(0, 1), caption_justify="left", caption=_CAPTION)
    table.add_column("program", no_wrap=True)
    for column in ("seconds", "args", "temp", "memory", "blocks"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in found:
        sizes = [f"{size / 2**20:,.0f}" for size in (each.arguments, each.temporaries)]
        cells = [*sizes, f"{100 * each.total / each.memory:.0f} %"] if each.arguments else ["", "", "fails"]
        cells.append(f"{each.blocks} x {each.block}")
        table.add_row(each.runs, each.program, f"{each.seconds:.0f}", *cells, style="red" if each.fault else None)
    return table


def _reason(error: Exception) -> str:
    told = "fit, give a smaller --block_size" if _compat.is_out_of_memory(error) else "compile"
    return f"it does not {told} ({first_line(error)})."
