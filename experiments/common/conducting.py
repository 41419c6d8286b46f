"""A study from its settings to its report: trained block by block, then told in tables and figures."""

from __future__ import annotations

import inspect
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.markdown import Markdown

from experiments.common import compilation, config, processes, stopping, study
from experiments.common.app import Experiment, complain
from experiments.common.errors import UserError
from experiments.common.progress import Progress
from experiments.common.workdir import Workdir
from ojax import datasets, online
from ojax.online.checkpoints import CheckpointError, Interrupted


def run(experiment: Experiment, settings: config.Config) -> None:
    """Conducts the experiment as the only work of this process, which ends where it cannot go on; see `app.run`."""
    stopping.watch()
    try:
        online.use_all_cores()
        with stopping.at_once():
            processes.start(settings.coordinator_address, settings.num_processes, settings.process_id)
        # By default GPUs and TPUs round the factors of a float32 product to 10 or 8 bits; small rates need them all.
        jax.config.update("jax_default_matmul_precision", "highest")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            compilation.use_cache(settings.compilation_cache)
            conduct(experiment, settings, Console(quiet=not processes.is_first()))
    except Interrupted as stopped:
        stopping.ignore()
        sys.exit(complain(f"{stopped} The same command goes on from there.", stopping.exit_code()))
    except stopping.Stopped:
        processes.leave(complain("stopped; the same command goes on from what is saved.", stopping.exit_code()))
    except CheckpointError as error:
        processes.leave(complain(f"{error} What was saved before is untouched: mend it and give the same command."))
    except (UserError, datasets.DatasetError) as error:
        processes.leave(complain(error))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if "RESOURCE_EXHAUSTED" in str(error) and "space" not in str(error):
            processes.leave(complain("out of memory: give a smaller --block_size, in a new --workdir."))
        if not _is_of_a_lost_process(error):
            processes.fail(error)
        processes.leave(complain(f"another process of this job is gone: {processes.LOST}", processes.TRY_AGAIN))
    except Exception as error:
        processes.fail(error)


def conduct(experiment: Experiment, settings: config.Config, console: Console) -> None:
    """Runs the study into its work directory, or only shows the results if they are there already."""
    experiment.check(settings)
    parts = study.parts(settings, experiment.keep)
    if not parts:
        raise UserError("No combination of the flags' lists makes sense for this question: see its --help.")
    workdir, every = Path(settings.workdir).absolute(), settings.checkpoint_every
    if not processes.have_same([str(workdir), settings.block_size, every, settings.settings()]):
        raise UserError("The processes of this job were not given the same flags.")
    dataset = processes.in_step(settings.load_dataset)
    title, _, method = inspect.cleandoc(experiment.question).partition("\n")
    facts: dict[str, Any] = {"question": title, "method": method.strip(), "dataset": study.fingerprint(dataset)}
    if not processes.have_same(facts["dataset"]):
        raise UserError(f"--dataset={settings.dataset}: the processes of this job do not have the same data.")
    folder = Workdir(settings, experiment.module)
    processes.on_first(lambda: folder.take(facts["dataset"]))
    try:
        if not processes.on_first(lambda: folder.finished):
            _train(experiment, settings, dataset, parts, folder, facts, console)
        if processes.is_first():
            folder.drop_parts()
            console.print(Markdown(folder.read_summary()))
            console.print(f"Tables and figures are in {folder.path}{os.sep}", highlight=False, soft_wrap=True)
    finally:
        folder.release()


def _train(
    experiment: Experiment,
    settings: config.Config,
    dataset: datasets.Dataset,
    parts: list[study.Part],
    folder: Workdir,
    facts: dict[str, Any],
    console: Console,
) -> None:
    """Runs what is not done yet, and reports."""
    facts["block_size"] = processes.on_first(
        lambda: folder.block_size() or settings.block_size or study.block_size(settings, dataset, parts)
    )
    processes.on_first(lambda: folder.write_config(**facts))
    samples = sum(len(part.settings) * part.schedule.evaluate_at[-1] for part in parts)
    with Progress.shown(console, samples) as progress, stopping.deferred():
        study.run(settings, dataset, parts, facts["block_size"], folder, progress)
    facts["seconds"] = round(progress.seconds, 1)
    processes.on_first(lambda: report_on(experiment, settings, parts, folder, facts))


def report_on(
    experiment: Experiment, settings: config.Config, parts: list[study.Part], folder: Workdir, facts: dict[str, Any]
) -> None:
    """Tables, figures, verdict and summary from the rows of all blocks."""
    num_blocks = sum(1 for _ in study.blocks(parts, facts["block_size"]))
    # Only now, when the runs are done: SciPy and Matplotlib take two seconds.
    from experiments.common import figures, report

    tables = study.tables(folder, num_blocks, settings.measures)
    drawings = dict(experiment.figures)
    if settings.measures:
        drawings |= {**experiment.measure_figures, **figures.OF_MEASURES}
    for name, table in tables._asdict().items():
        if table is not None:
            with folder.replacing(f"{name}.csv") as path:
                table.to_csv(path, index=False)
    tables = tables.with_rule()
    for name, draw in drawings.items():
        figures.save(folder, name, draw, tables)
    verdict = experiment.verdict(tables)
    facts |= {"claim": experiment.claim, "verdict": verdict.outcome, "evidence": list(verdict.evidence)}
    facts |= {"figures": list(drawings), "num_runs": sum(len(part.settings) for part in parts)}
    folder.write_config(**facts, peak_memory_mib=_peak_memory())
    # The summary comes last: it marks the folder as finished.
    text = report.summary(
        tables, settings, title=facts["question"], claim=experiment.claim, verdict=verdict, command=folder.command(),
        figures=list(drawings), equal_rates=experiment.equal_rates,
    )  # fmt: skip
    folder.write_text("summary.md", text)


def _peak_memory() -> dict[str, int]:
    """The most memory that this process has had, and each of its accelerators, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peaks = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit}
    for device in jax.local_devices():
        if stats := device.memory_stats():
            peaks[f"{device.platform}:{device.id}"] = stats["peak_bytes_in_use"] // 2**20
    return peaks


def _show_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if issubclass(category, UserWarning) and processes.is_first():
        print("note: " + " ".join(str(message).split()), file=sys.stderr)


def _is_of_a_lost_process(error: Exception) -> bool:
    words = ("Gloo", "NCCL", "Connection closed", "Connection reset", "coordination", "heartbeat", "UNAVAILABLE")
    return jax.process_count() > 1 and any(word in str(error) for word in words)
