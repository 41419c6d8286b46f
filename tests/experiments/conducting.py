"""Conducts an experiment in this process, as its command would in its own."""

import io

from absl import flags
from rich.console import Console

from experiments.common import app, conducting
from experiments.common.config import Config


def parse(experiment, *arguments):
    """The configuration of that command line."""
    values = flags.FlagValues()
    app.define_flags(experiment, values)
    flags.DEFINE_multi_string("flagfile", [], "As absl's own.", flag_values=values)
    values(["command", *arguments])
    return Config.from_flags(values)


def conduct(experiment, *arguments):
    """What the command prints."""
    console = Console(file=io.StringIO())
    conducting.conduct(experiment, parse(experiment, *arguments), console)
    return console.file.getvalue()
