"""An experiment as a command: flags in, a work directory out, and errors as one line.

JAX, pandas and the like take seconds to import. They are imported when the flags are known to be right, so that `--help`
and a wrong flag are answered at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags, logging

from experiments.common import flags as settings_flags
from experiments.common import hardware, needs, output, stopping
from experiments.common.errors import UserError, complain
from experiments.common.question import Question

__all__ = ["Question", "parse_flags", "run"]


def run(question: Question) -> None:
    """Parses the command line and answers the question.

    Errors of the user's go to standard error as one line, with exit code 2. Stopped by Ctrl-C it exits with 130, by
    SIGTERM with 143, by SIGHUP with 129, and with 75 where another process of the job is gone; the same command then
    goes on.
    """
    declared = question.declared()

    def main(arguments: Sequence[str]) -> None:
        try:
            if len(arguments) > 1:
                raise UserError(f"{arguments[1]!r} is not a flag: write --name=value, and lists without blanks.")
            settings = question.complete(settings_flags.from_flags(declared, flags.FLAGS))
            needs.check_packages()
            if not flags.FLAGS["verbosity"].present:
                logging.set_verbosity(logging.FATAL)  # Notes of JAX's, orbax's and TFDS's are not the user's concern.
            (hardware.ignore_compilers if settings["compile_for"] is None else hardware.prepare)()
            with stopping.at_once(), needs.importing():
                from experiments.common import dry_run, study
        except UserError as error:
            sys.exit(complain(error))
        (study if settings["compile_for"] is None else dry_run).run(question, settings)

    output.outlive()
    settings_flags.define(declared, question.all_defaults(), flags.FLAGS)
    # Absl shows with --help only the flags that are registered with the main module.
    for flag in declared:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[flag.name])
    app.run(main, flags_parser=parse_flags)


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Absl's parser, whose errors become one line; flag files may begin with a byte-order mark, as Windows writes them."""
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
