"""Answers a question in this process, as its command would in its own."""

import io

from absl import flags
from rich.console import Console

from experiments.common import flags as study_flags
from experiments.common import study


def parse(question, *arguments):
    """The settings of that command line."""
    values = flags.FlagValues()
    study_flags.define(question.declared(), question.all_defaults(), values)
    flags.DEFINE_multi_string("flagfile", [], "As absl's own.", flag_values=values)
    values(["command", *arguments])
    return question.complete(study_flags.from_flags(question.declared(), values))


def conduct(question, *arguments):
    """What the command prints."""
    console = Console(file=io.StringIO())
    study.conduct(question, parse(question, *arguments), console, show=True)
    return console.file.getvalue()
