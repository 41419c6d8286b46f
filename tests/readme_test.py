"""The README's code runs as written and learns."""

import contextlib
import io
import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_training_loop_runs_as_written():
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block, str(README), "exec"), {"__name__": "readme"})
    accuracy = float(re.search(r"([\d.]+)$", printed.getvalue().strip()).group(1))
    assert accuracy > 0.4


def test_every_path_that_it_names_is_there():
    text = README.read_text(encoding="utf-8")
    paths = re.findall(r"\b(?:ojax|experiments|tests)/[\w/.]+\.(?:py|flags)|\.readme/\w+\.png", text)
    assert len(paths) >= 5
    for path in paths:
        assert (README.parent / path).exists(), path
