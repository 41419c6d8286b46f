"""An experiment as a command: flags in, a work directory out, and one line for what the user can mend.

JAX, pandas and the like take seconds to import. They are imported when the flags are known to be right, so that `--help`
and a wrong flag are answered at once.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import app, flags, logging

from experiments.common import config, stopping
from experiments.common.errors import UserError

if TYPE_CHECKING:
    from experiments.common import figures, report, study


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
        """Raises UserError where the flags leave the question without an answer, or do not go together."""
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
        settings.check()


def run(experiment: Experiment) -> None:
    """Parses the command line and conducts the experiment.

    Errors of the user's go to standard error as one line, with exit code 2. Stopped by Ctrl-C it exits with 130, by
    SIGTERM with 143, and with 75 where another process of the job is gone; the same command then goes on.
    """

    def main(arguments: Sequence[str]) -> None:
        try:
            if len(arguments) > 1:
                raise UserError(f"{arguments[1]!r} is not a flag: write --name=value, and lists without blanks.")
            settings = config.Config.from_flags(flags.FLAGS)
            experiment.check(settings)
        except UserError as error:
            sys.exit(complain(error))
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.FATAL)  # Notes of JAX's, orbax's and TFDS's are not the user's concern.
        with stopping.at_once():
            from experiments.common import conducting
        conducting.run(experiment, settings)

    define_flags(experiment, flags.FLAGS)
    # Absl shows with --help only the flags that are registered with the main module.
    for flag in flags.FLAGS.get_key_flags_for_module(config.__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main, flags_parser=parse_flags)


def define_flags(experiment: Experiment, values: flags.FlagValues) -> None:
    """The shared flags, with the experiment's own defaults and work directory."""
    workdir = f"results/{experiment.module.rpartition('.')[2]}"
    config.define_flags(values, {"workdir": workdir, **experiment.defaults})


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
