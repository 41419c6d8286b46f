"""Figures of studies in the tests' own process: none, or small ones. A study takes most of its time for them.

Commands in processes of their own draw all of theirs, as PNG and PDF.
"""

from experiments.common import figures, study

_usual = study._drawings


def draw(yes):
    """Whether studies draw from now on."""
    figures.FORMATS = {".png": {"dpi": 100}}
    study._drawings = _usual if yes else lambda question, found: {}
