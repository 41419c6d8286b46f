"""Runs a study, from its settings to tables, figures and a verdict, for a command, a script or a notebook."""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import importlib
import numbers
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import pandas as pd
from rich.console import Console
from rich.markdown import Markdown

from experiments.common import (
    compilation,
    flags,
    grid,
    identity,
    needs,
    output,
    processes,
    runner,
    stopping,
    tables,
    tracking,
)
from experiments.common.errors import UserError, complain, in_flags
from experiments.common.files import read_table, read_text, sha256_of, write_table, write_text
from experiments.common.flags import Settings
from experiments.common.grid import Block, Grid
from experiments.common.progress import Progress
from experiments.common.question import Question
from experiments.common.results import METHOD, Results
from experiments.common.store import Held
from experiments.common.tables import Tables
from experiments.common.verdicts import Verdict
from experiments.common.workdir import SUMMARY, Workdir
from ojax import _compat, datasets, online
from ojax.datasets.description import described
from ojax.online.checkpoints import CheckpointError, Interrupted
from ojax.online.weights import SavedWeights, WeightsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Study:
    """The outcome of a study.

    Attributes:
      results: Its runs, :class:`experiments.common.results.Results`: `results.table` is a data frame with one row per run
        and evaluation; `results.measures` has one row per run, evaluation and layer, and is None without `measures=True`.
      verdict: The verdict on the question's claim; None for a question without a claim.
      summary: The findings as sentences and one table, in Markdown.
      folder: Its work directory; None without `workdir`.
    """

    def __init__(self, question: Question, results: Results, verdict: Verdict | None, summary: str, folder: Path | None):
        self._question, self.results = question, results
        self.verdict, self.summary, self.folder = verdict, summary, folder

    @functools.cached_property
    def figures(self) -> dict[str, Figure]:
        """Its figures by name, drawn on first use."""
        from experiments.common import figures

        return {
            name: figures.in_style(draw, self.results) for name, draw in _drawings(self._question, self.results).items()
        }


def study(question: str | Question, *, workdir: str | os.PathLike | None = None, **settings: Any) -> Study:
    """Runs a question's study in this process, as its command does.

    Args:
      question: Its name, `deep_mlp`, or your own :class:`experiments.common.question.Question`.
      workdir: Folder for the configuration, tables and figures, as for a command: a stopped study resumes, and a finished
        one is read at once. With None nothing is kept on disk.
      **settings: The question's flags, as numbers, strings or lists: `depth=[5, 10], learning_rate=1e-2, seeds=4`, or
        `seeds=range(4)`.

    Returns:
      The outcome.

    Raises:
      UserError: If a setting or the folder is not valid.
      DatasetError: If the data are not valid.
    """
    asked = _named(question) if isinstance(question, str) else question
    keeps = workdir is not None
    with contextlib.ExitStack() as stack:
        if workdir is None:
            if keeping := [name for name in ("save_weights", "tensorboard") if settings.get(name)]:
                raise UserError(f"{keeping[0]} needs a workdir to write into.")
            workdir = stack.enter_context(tempfile.TemporaryDirectory())
        given = {**settings, **_as_count(settings), "workdir": workdir}
        values = asked.complete(flags.from_values(asked.declared(), asked.all_defaults(), given))
        for name in ("compile_for", "coordinator_address", "num_processes", "process_id"):
            if values[name] is not None:
                raise UserError(f"{name} is for commands, which set compilers and processes up before JAX is used.")
        needs.check_packages()
        online.use_all_cores()
        needs.check_devices()
        compilation.use_cache(values["compilation_cache"])
        found = conduct(asked, values, output.console())
    if not keeps:  # The folder to link to and the command to repeat do not exist.
        found.folder, found.summary = None, found.summary.partition("\nFigures: ")[0].partition("\nTables: [every run]")[0]
    return found


def _as_count(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Converts seeds in the form of `ojax.online.train`, `range(4)`, to the first seed and the number of seeds."""
    seeds = settings.get("seeds")
    if isinstance(seeds, str) or not isinstance(seeds, Iterable):
        return {}
    listed = list(seeds)
    are_whole = bool(listed) and all(isinstance(seed, numbers.Integral) for seed in listed)
    if not are_whole or listed != list(range(listed[0], listed[0] + len(listed))) or "seed" in settings:
        raise UserError(f"seeds={seeds}: give their number, seeds=4, or consecutive ones, seeds=range(4), without seed.")
    return {"seed": listed[0], "seeds": len(listed)}


def _named(question: str) -> Question:
    try:
        return importlib.import_module(f"experiments.{question.removeprefix('experiments.')}").QUESTION
    except (ModuleNotFoundError, AttributeError):
        raise UserError(f"There is no question experiments.{question}.") from None


def run(question: Question, settings: Settings) -> None:
    """Runs the study as a command: the process exits if it cannot continue, see :func:`experiments.common.app.run`."""
    stopping.watch()
    try:
        online.use_all_cores()
        with stopping.at_once():
            processes.start(settings["coordinator_address"], settings["num_processes"], settings["process_id"])
        needs.check_devices()
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            compilation.use_cache(settings["compilation_cache"])
            conduct(question, settings, Console(quiet=not processes.is_first()), show=True)
    except Interrupted as stopped:
        stopping.ignore()
        sys.exit(complain(f"{stopped} The same command resumes from there.", stopping.exit_code()))
    except stopping.Stopped:
        stopping.ignore()
        processes.leave(complain("stopped; the same command resumes from the saved state.", stopping.exit_code()))
    except CheckpointError as error:
        processes.leave(complain(f"{error} Earlier results are untouched: fix this and give the same command."))
    except (UserError, datasets.DatasetError, WeightsError) as error:
        processes.leave(complain(in_flags(error)))
    except online.OutOfMemoryError:
        processes.leave(complain("Not even one run per device fits in memory: take a smaller network."))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _compat.is_of_a_lost_process(error):
            processes.fail(error)
        processes.leave(complain(f"another process of this job is gone: {processes.LOST}", processes.TRY_AGAIN))
    except Exception as error:
        processes.fail(error)


def conduct(question: Question, settings: Settings, console: Console, *, show: bool = False) -> Study:
    """Runs the study, by its completed settings, in its work directory, or reads the results of a finished study.

    Progress is printed on the console, with `show` the summary too.
    """
    workdir, every = str(Path(settings["workdir"]).absolute()), settings["checkpoint_every"]
    if not processes.have_same([workdir, settings["block_size"], every, settings["tensorboard"], settings.deciding()]):
        raise UserError("The processes of this job were not given the same flags.")
    if settings["tensorboard"]:
        tracking.check()
    grid.runs_of(question, settings)  # Refuses a grid without runs before the data are loaded.
    dataset = processes.in_step(lambda: (question.data or question.task.load)(settings))
    runs = grid.make(question, settings, dataset)
    mine = identity.of(question, settings, runs.facts["dataset"]["sha256"])
    if not processes.have_same(mine):
        raise UserError("The processes of this job do not have the same data, source, packages or kind of device.")
    folder = Workdir(settings, question.module)
    version = processes.on_first(lambda: folder.take(mine))
    try:
        # By default GPUs and TPUs round the factors of a float32 product to 10 or 8 bits; small rates need all bits.
        with jax.default_matmul_precision("highest"):
            return _answer(question, settings, runs, folder, version, console, show)
    finally:
        folder.release()


def _answer(
    question: Question, settings: Settings, runs: Grid, folder: Workdir, version: int, console: Console, show: bool
) -> Study:
    weights = SavedWeights(folder.path / "weights") if settings["save_weights"] else None

    def there() -> tuple[list[str], list[list[str]]]:
        """Returns the keys of the finished runs, and of the unfinished blocks."""
        held = _held(folder, weights)
        done = [key for part in runs.parts for key in part.keys if key in held]
        if len(done) == runs.num_runs:
            return done, []
        folder.begin()
        return done, folder.store.unfinished(version, held)

    done, unfinished = processes.on_first(there)
    if len(done) < runs.num_runs:
        fitting = [keys for keys in unfinished if len(keys) <= (settings["block_size"] or len(keys))]
        blocks = runs.blocks(_block_size(settings, runs), done, fitting)
        _train(settings, runs, blocks, version, folder, weights, console)
        # Forgets blocks of which smaller ones have trained the runs.
        processes.on_first(lambda: folder.store.unfinished(version, {key for part in runs.parts for key in part.keys}))
    processes.on_first(lambda: _report_if_due(question, settings, runs, folder, weights))
    found = _results(question, folder)
    if settings["tensorboard"] and not processes.on_first(lambda: folder.read_only):
        processes.on_first(lambda: tracking.write(found.table, runs.columns, folder.path))
    text = read_text(folder.path / SUMMARY, "move it away, and the same command writes it again")
    if show and processes.is_first():
        console.print(Markdown(output.encodable(text, console.encoding)))
        console.print(f"Tables and figures are in {folder.path}{os.sep}", highlight=False, soft_wrap=True)
    facts, verdict = folder.facts(), None
    if facts.get("verdict"):
        more = {name: facts[name] for name in ("reason", "parts", "gains") if name in facts}
        verdict = Verdict(facts["verdict"], facts["evidence"], **more)
    return Study(question, found, verdict, text, folder.path)


def _block_size(settings: Settings, runs: Grid) -> int:
    """Returns the largest number of runs per block, equal in all processes."""
    if settings["block_size"]:
        return settings["block_size"]
    # All processes must compile here: with GPUs, XLA divides the search for fast kernels among the processes of a job.
    fitting = processes.in_step(runs.block_size)
    return processes.on_first(lambda: fitting)


def _held(folder: Workdir, weights: SavedWeights | None) -> dict[str, Held]:
    """Returns the finished runs; only those with weights if weights are saved."""
    return folder.store.held(None if weights is None else weights.saved())


def _train(
    settings: Settings,
    runs: Grid,
    blocks: list[Block],
    version: int,
    folder: Workdir,
    weights: SavedWeights | None,
    console: Console,
) -> None:
    num_runs = sum(len(block.rows) for block in blocks)
    if num_runs < runs.num_runs:
        words = f"{runs.num_runs - num_runs} of {runs.num_runs} runs are done already"
        console.print(words, highlight=False, soft_wrap=True)
    console.print(described(runs.facts["dataset"]), highlight=False, soft_wrap=True)
    if weights is not None:
        _say_size_of_weights(blocks, weights, console)
    num_samples = sum(len(block.rows) * block.part.plan.evaluate_at[-1] for block in blocks)
    num_programs = len({block.part.name for block in blocks})
    with Progress.shown(console, num_samples, num_programs) as progress, stopping.deferred():
        runner.run(runs, blocks, version, settings["checkpoint_every"], folder, weights, progress)


def _report_if_due(
    question: Question, settings: Settings, runs: Grid, folder: Workdir, weights: SavedWeights | None
) -> None:
    """Writes tables, figures and summary of the grid's runs, unless they are up to date."""
    held = _held(folder, weights)
    rows = runs.sorted_runs()
    mine = {key: held[key] for key in rows["key"]}
    if weights is not None:
        weights.choose([(run.block, run.row) for run in mine.values()])
    report = {
        "runs": hashlib.sha256("\n".join(f"{key} {run.version}" for key, run in mine.items()).encode()).hexdigest(),
        "code": identity.of_report(question),
    }
    there = folder.facts().get("report", {})
    if not folder.finished or there.get("runs") != report["runs"] or not _are_as_written(folder, there.get("tables")):
        there = {"tables": _write_tables(runs, rows, mine, folder)}
    elif there.get("code") == report["code"] or folder.read_only:
        return
    versions = collections.Counter(str(run.version) for run in mine.values())
    facts = {"question": question.title, "method": question.method, "claim": question.claim, **runs.facts}
    facts |= {"abstract": question.abstract} if question.abstract else {}
    facts |= {"epochs": settings["epochs"], "num_runs": runs.num_runs, "report": report | {"tables": there["tables"]}}
    facts |= {
        "seconds": round(sum(run.seconds for run in mine.values()), 1),
        "runs_by_version": dict(sorted(versions.items())),
    }
    _report(question, facts, folder)
    folder.tidy()


def _are_as_written(folder: Workdir, hashes: Any) -> bool:
    """Returns whether the tables exist and are unchanged."""
    known = hashes if isinstance(hashes, dict) else {"results.csv": None}
    return all(known.values()) and all(sha256_of(folder.path / name) == known[name] for name in known)


def _write_tables(runs: Grid, rows: pd.DataFrame, held: dict[str, Held], folder: Workdir) -> dict[str, str | None]:
    """Writes the tables of the grid's runs, and returns their hashes."""
    found = {"runs": rows.drop(columns="key").assign(version=[run.version for run in held.values()])}
    for name in Tables._fields:
        parts = [folder.store.read(name, [held[key] for key in part.keys]) for part in runs.parts]
        if all(part is not None for part in parts):
            found[name] = tables.sorted_rows(pd.concat(parts, ignore_index=True), runs.columns)
    for name, table in found.items():
        write_table(folder.path / f"{name}.csv", table)
    return {f"{name}.csv": sha256_of(folder.path / f"{name}.csv") for name in found}


def _results(question: Question, folder: Workdir) -> Results:
    paths = [folder.path / f"{name}.csv" for name in Tables._fields]
    then = "give the same command again, which writes it again"
    table, measures = (read_table(path, then) if path.exists() else None for path in paths)
    if table is None:
        raise UserError(f"{paths[0]} is gone: {then}.")
    return Results(table, measures, question.schema)


def _report(question: Question, facts: dict[str, Any], folder: Workdir) -> None:
    """Writes figures, verdict and summary from the tables."""
    # Imported only after training, as Matplotlib takes a second.
    from experiments.common import figures, summary

    found = _results(question, folder)
    drawings = _drawings(question, found)
    for name, draw in drawings.items():
        figures.save(folder.path, name, draw, found)
    verdict = None if question.verdict is None else question.verdict(found)
    if verdict is not None:
        facts |= {"verdict": verdict.outcome, "reason": verdict.reason, "evidence": list(verdict.evidence)}
        facts |= {"parts": list(verdict.parts), "gains": dict(verdict.gains)}
    captions = {name: figures.caption(draw) for name, draw in drawings.items()}
    facts |= {"figures": captions, "peak_memory_mib": _peak_memory()}
    table = None if question.table is None else question.table(found)
    told = facts | {"command": folder.command()}
    text = summary.summary(found, told, verdict, list(drawings), equal_rates=question.equal_rates, table=table)
    if len(facts["runs_by_version"]) > 1:
        text += (
            f"\nThese runs are of {len(facts['runs_by_version'])} versions: see [runs.csv](runs.csv) and identity.json.\n"
        )
    # The configuration comes last: without it, the next command writes the report again.
    write_text(folder.path / SUMMARY, text)
    folder.write_config(**facts)


def _drawings(question: Question, found: Results) -> dict[str, Any]:
    from experiments.common import figures, statistics

    drawings = dict(question.figures)
    if statistics.num_settings(found, question.methods) > 1:
        drawings["search_budget"] = functools.partial(figures.search_budget, methods=question.methods)
    if found.measures is not None:
        drawings |= question.measure_figures
        if METHOD in found.measures:  # These figures compare training with and without Oja's rule.
            drawings |= figures.OF_MEASURES
    return drawings


def _say_size_of_weights(blocks: list[Block], weights: SavedWeights, console: Console) -> None:
    scalar = jax.ShapeDtypeStruct((), "float32")
    num_bytes, num_runs = 0, 0
    for block in blocks:
        hyper = dict.fromkeys(block.part.hyper, scalar)
        trees = jax.eval_shape(functools.partial(online.initial_params, block.part.learner), hyper, 0)
        num_bytes += len(block.rows) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(trees))
        num_runs += len(block.rows)
    console.print(
        f"The final weights of {num_runs} runs will take {num_bytes / 2**20:,.0f} MiB in {weights.folder}{os.sep}",
        highlight=False,
        soft_wrap=True,
    )


def _peak_memory() -> dict[str, int]:
    """Returns the peak memory of this process and of each of its accelerators, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}
    for device in jax.local_devices():
        if stats := device.memory_stats():
            peaks[f"{device.platform}:{device.id}"] = stats["peak_bytes_in_use"] // 2**20
    return peaks


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning) and processes.is_first():
        print("note: " + " ".join(str(message).split()), file=sys.stderr)
