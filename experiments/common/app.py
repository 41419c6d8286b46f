"""Runs an experiment as a command: reads flags, writes a work directory, and prints errors as one line.

JAX, pandas and similar packages take seconds to import. They are imported after the flags are checked, so that `--help` and
a wrong flag respond at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging

from experiments.common import flags as settings_flags
from experiments.common import hardware, needs, output, stopping
from experiments.common.errors import UserError, complain
from experiments.common.question import Question

__all__ = ["Question", "check_flags_alone", "parse_flags", "run"]


def run(question: Question) -> None:
    """Parses the command line and runs the study.

    A user's error goes to standard error as one line, with exit code 2. The exit code is 130 after Ctrl-C, 143 after
    SIGTERM, 129 after SIGHUP, and 75 if another process of the job has ended. The same command then resumes.
    """
    declared = question.declared()

    def main(arguments: Sequence[str]) -> None:
        try:
            check_flags_alone(arguments)
            settings = question.complete(settings_flags.from_flags(declared, flags.FLAGS))
            needs.check_packages()
            if not flags.FLAGS["verbosity"].present:
                logging.set_verbosity(logging.FATAL)  # Hides log messages of JAX, Orbax and TFDS.
            (hardware.ignore_compilers if settings["compile_for"] is None else hardware.prepare)()
            with stopping.at_once(), needs.importing():
                from experiments.common import dry_run, study
        except UserError as error:
            sys.exit(complain(error))
        (study if settings["compile_for"] is None else dry_run).run(question, settings)

    output.outlive()
    settings_flags.define(declared, question.all_defaults(), flags.FLAGS)
    # With --help, Absl shows only flags that are registered with the main module.
    for flag in declared:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    app.run(main, flags_parser=parse_flags)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses flags with Absl; errors become one line, and flag files may start with Windows' byte-order mark."""
    output.outlive()
    try:
        mark = "\ufeff"
        lines = flags.FLAGS.read_flags_from_files(arguments)
        kept = [line for line in lines if line != mark and not line.startswith((f"{mark}#", f"{mark}//"))]
        return flags.FLAGS([line.removeprefix(mark) for line in kept])
    except UnicodeDecodeError:
        sys.exit(complain("the flag file is not text in UTF-8: save it as such."))
    except (flags.Error, OSError) as error:
        sys.exit(complain(f"{error} (--help lists the flags)"))


def check_flags_alone(arguments: Sequence[str]) -> None:
    """Raises UserError if a command was given more than flags."""
    if len(arguments) > 1:
        raise UserError(f"{arguments[1]!r} is not a flag: write --name=value, and lists without blanks.")
