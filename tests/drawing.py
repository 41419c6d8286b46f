"""Turns off or shrinks figures of studies in the tests' own process, as they take most of a study's time.

Commands in other processes draw all of their figures, as PNG and PDF.
"""

from experiments.common import figures, study

_usual = study._drawings


def draw(yes):
    """Sets whether later studies draw."""
    figures.FORMATS = {".png": {"dpi": 100}}
    study._drawings = _usual if yes else lambda question, found: {}
