"""An experiment as a command: flags in, a work directory out, and one line for what the user can mend."""

import inspect
import os
import resource
import sys
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.markdown import Markdown

from experiments.common import config, figures, processes, report, stopping, study
from experiments.common.errors import UserError
from experiments.common.progress import Progress
from experiments.common.workdir import Workdir
from ojax import datasets, online
from ojax.online.checkpoints import CheckpointError, Interrupted


class Experiment(NamedTuple):
    """One scientific question over the shared machinery.

    Attributes:
      module: Its name, as `python -m` takes it; its last part names the default work directory.
      question: The question in its first line, and below it what is done; a module's docstring.
      claim: What the paper says of it, in a sentence or two.
      verdict: From the tables to what they say of the claim.
      figures: By name of file; each a function of the tables.
      defaults: The flags whose defaults are the question's own, by name: `{"feedback": "backprop,random"}`.
      keep: From a run's settings, by name, to whether the study has that run; the grid is every combination of the flags'
        lists, and not each of them may make sense.
      measure_figures: Those that are drawn with --measures alone, beside the measures' own.
      requires: Values that a flag's list must have, by its name: `{"oja_rate": (0.0,)}`, without which there is nothing to
        compare with.
      both_rules: Whether the verdict needs runs without Oja's rule and with it.
      equal_rates: Whether the summary compares the rules at equal learning rates too, beside each at its own best.
    """

    module: str
    question: str
    claim: str
    verdict: Callable[[study.Tables], report.Verdict]
    figures: figures.Drawings
    defaults: Mapping[str, Any] = {}
    keep: study.Keep = lambda settings: True
    measure_figures: figures.Drawings = types.MappingProxyType({})
    requires: Mapping[str, Sequence[Any]] = {}
    both_rules: bool = True
    equal_rates: bool = False

    def check(self, settings: config.Config) -> None:
        """Raises UserError where the flags leave the question without an answer."""
        for name, needed in self.requires.items():
            given = getattr(settings, name)
            if missing := [value for value in needed if value not in given]:
                raise UserError(
                    f"--{name}={config.format_list(given)}: this question needs {config.format_list(missing)} among them."
                )
        if self.both_rules and (0 not in settings.oja_rate or not any(settings.oja_rate)):
            raise UserError(
                f"--oja_rate={config.format_list(settings.oja_rate)}: this question compares both rules, so give 0 and at "
                "least one rate above it."
            )


def run(experiment: Experiment) -> None:
    """Parses the command line and conducts the experiment.

    Errors of the user's go to standard error as one line, with exit code 2. Stopped by Ctrl-C it exits with 130, by
    SIGTERM with 143, and with 75 where another process of the job is gone; the same command then goes on.
    """

    def main(arguments: Sequence[str]) -> None:
        stopping.watch()
        # What orbax leaves half done where a file is damaged would complain when it is collected; the error itself is ours.
        sys.unraisablehook = lambda _: None
        try:
            if len(arguments) > 1:
                raise UserError(f"{arguments[1]!r} is not a flag: write --name=value, and lists without blanks.")
            if not flags.FLAGS["verbosity"].present:
                logging.set_verbosity(logging.FATAL)  # Notes of JAX's, orbax's and TFDS's are not the user's concern.
            settings = config.Config.from_flags(flags.FLAGS)
            online.use_all_cores()
            with stopping.at_once():
                processes.start(settings.coordinator_address, settings.num_processes, settings.process_id)
            # By default GPUs and TPUs round the factors of a float32 product to 10 or 8 bits; small rates need them all.
            jax.config.update("jax_default_matmul_precision", "highest")
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning  # type: ignore[assignment]
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

    define_flags(experiment, flags.FLAGS)
    # Absl shows with --help only the flags that are registered with the main module.
    for flag in flags.FLAGS.get_key_flags_for_module(config.__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main, flags_parser=parse_flags)


def define_flags(experiment: Experiment, values: flags.FlagValues) -> None:
    """The shared flags, with the experiment's own defaults and work directory."""
    workdir = f"results/{experiment.module.rpartition('.')[2]}"
    config.define_flags(values, {"workdir": workdir, **experiment.defaults})


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


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Absl's parser, whose errors become one line."""
    try:
        return flags.FLAGS(arguments)
    except (flags.Error, OSError, UnicodeDecodeError) as error:
        sys.exit(complain(f"{error} (--help lists the flags)"))


def complain(message: object, code: int = 2) -> int:
    """One line on standard error; returns the exit code."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    return code


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
