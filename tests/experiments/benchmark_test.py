"""The benchmark's guard fails if ojax has become slower, and its tables fit a terminal."""

import json

import pandas as pd
import pytest
from rich.console import Console

from experiments.benchmark import guard, report
from experiments.benchmark.sides import OJAX
from experiments.common.errors import UserError


@pytest.mark.parametrize(
    ("measured", "passes"),
    [([2.0], True), ([1.7], True), ([1.5, 1.9], True), ([1.5, 1.5, 1.5], False)],
    ids=["as fast", "within the tolerance", "slow at first", "slower"],
)
def test_a_ratio_that_is_worse_fails(measured, passes, monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "RATIOS", tmp_path / "ratios.json")
    guard.RATIOS.write_text(json.dumps({"5 dense layers: C, one core": 2.0}))
    monkeypatch.setattr(guard, "measure", lambda: ({"5 dense layers: C, one core": ratio} for ratio in measured))
    lines = []
    if passes:
        lines.extend(guard.check())
    else:
        with pytest.raises(UserError, match=r"slower by more than 25% compared with 5 dense layers: C, one core"):
            lines.extend(guard.check())
    assert lines == [f"5 dense layers: C, one core: ojax is {measured[-1]:.2f} times faster; committed: 2.00"]


def test_without_committed_ratios_the_guard_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "RATIOS", tmp_path / "ratios.json")
    with pytest.raises(UserError, match="run `make bench`"):
        list(guard.check())


def test_tables_fit_80_columns():
    sides = (OJAX, "PyTorch by hand, as published", "a side with a name that is longer than any that there is today")
    rows = [
        {"part": "compare", "network": network, "side": side, "microseconds": time, "mebibytes": 1234.5}
        for network in ("5 layers", "10 layers")
        for side in sides
        for time in (1234.56, 1_234_567.8)
    ]
    console = Console(width=80, record=True)
    console.print(report.table_of(pd.DataFrame(rows), "compare", "Dense networks"))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80 and "1,234.6 to 1,234,567.8" in "".join(lines)
