"""Answers a question in this process, as its command would in its own."""

import io

from rich.console import Console

from experiments.common import study


def parse(question, *arguments):
    """The settings of that command line."""
    return question.parsed(*arguments)


def conduct(question, *arguments):
    """What the command prints."""
    console = Console(file=io.StringIO())
    study.conduct(question, parse(question, *arguments), console, show=True)
    return console.file.getvalue()
