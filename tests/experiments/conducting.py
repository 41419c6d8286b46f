"""Runs a question's study in this process, as its command would in another."""

import io

from rich.console import Console

from experiments.common import study


def parse(question, *arguments):
    """Returns the settings of a command line."""
    return question.parsed(*arguments)


def conduct(question, *arguments):
    """Runs the study and returns its output."""
    console = Console(file=io.StringIO())
    study.conduct(question, parse(question, *arguments), console, show=True)
    return console.file.getvalue()
