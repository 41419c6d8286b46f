"""An experiment as a command: flags in, a work directory out, and one line for what the user can mend."""

import os
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging
from rich.console import Console
from rich.markdown import Markdown

from experiments.common import config, figures, report, statistics, study
from experiments.common.errors import UserError
from experiments.common.progress import Progress
from experiments.common.workdir import Workdir
from ojax import datasets, online


def run(experiment: str, drawings: figures.Drawings) -> None:
    """Parses the command line and conducts the experiment.

    Errors of the user's go to standard error as one line, with exit code 2.

    Args:
      experiment: The module's name, as `python -m` takes it.
      drawings: The experiment's figures, by name of file.
    """

    def main(arguments: Sequence[str]) -> None:
        try:
            if len(arguments) > 1:
                raise UserError(f"{arguments[1]!r} is not a flag: write --name=value, and lists without blanks.")
            if not flags.FLAGS["verbosity"].present:
                logging.set_verbosity(logging.ERROR)  # Notes of JAX's and TFDS's are not the user's concern.
            online.use_all_cores()
            # By default GPUs and TPUs round the factors of a float32 product to 10 or 8 bits; small rates need them all.
            jax.config.update("jax_default_matmul_precision", "highest")
            conduct(experiment, config.Config.from_flags(), drawings, Console())
        except (UserError, datasets.DatasetError) as error:
            sys.exit(_complain(error))
        except KeyboardInterrupt:
            sys.exit(_complain("interrupted, before there were results.", code=130))

    # Absl shows with --help only the flags that are registered with the main module.
    for flag in flags.FLAGS.get_key_flags_for_module(config.__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main, flags_parser=_parse)


def conduct(experiment: str, settings: config.Config, drawings: figures.Drawings, console: Console) -> None:
    """Runs the study into its work directory, or only shows the results if they are there already."""
    schedule, dataset = settings.schedule(), settings.load_dataset()
    folder = Workdir(settings, experiment)
    if not folder.finished:
        facts = {"dataset": study.fingerprint(dataset)}
        folder.write_config(**facts)
        num_runs = len(settings.depth) * len(study.grid(settings)[1])
        with Progress.shown(console, num_runs * schedule.evaluate_at[-1]) as progress:
            results = study.run(settings, dataset, schedule, progress)
        with folder.replacing("results.csv") as path:
            results.to_csv(path, index=False)
        for name, draw in drawings.items():
            figures.save(folder, name, draw, statistics.with_rule(results))
        folder.write_config(**facts, num_runs=num_runs, seconds=round(progress.seconds, 1))
        # The summary comes last: it marks the folder as finished.
        folder.write_text("summary.md", report.summary(results, settings, folder.command(), list(drawings)))
    console.print(Markdown(folder.read_summary()))
    console.print(f"Tables and figures are in {folder.path}{os.sep}", highlight=False, soft_wrap=True)


def _parse(arguments: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except (flags.Error, OSError, UnicodeDecodeError) as error:
        sys.exit(_complain(f"{error} (--help lists the flags)"))


def _complain(message: object, code: int = 2) -> int:
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    return code
