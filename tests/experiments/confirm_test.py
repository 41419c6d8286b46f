"""The comparisons on new seeds: what their table tells."""

import pandas as pd

from experiments import confirm
from experiments.common.results import DIVERGED, SEED, SEEN, Results
from experiments.common.tables import with_method


def results(is_lost):
    """Returns a run of each side of each comparison on two new seeds; `is_lost(side, seed)` says which have diverged."""
    rows = [
        dict(zip(confirm.AXES, side, strict=True)) | {SEED: seed, DIVERGED: is_lost(side, seed)}
        for side in dict.fromkeys(confirm.SIDES)
        for seed in (400, 401)
    ]
    scores = {"test_accuracy": 0.5, "train_accuracy": 0.5, SEEN: 4000}
    table = pd.DataFrame(rows).assign(**confirm.OTHERS, **scores)
    return Results(with_method(table), None, confirm.QUESTION.schema)


def test_the_table_counts_the_runs_that_diverged():
    """A mean over seeds of which some have diverged is another number than one over networks that learned."""
    (first, second), *_ = zip(confirm.SIDES[::2], confirm.SIDES[1::2], strict=True)
    table = confirm.table(results(lambda side, seed: side == first or (side == second and seed == 401)))
    row = next(line for line in table.splitlines() if confirm.COMPARISONS[0]["name"] in line)
    assert row.count("(2 diverged)") == row.count("(1 diverged)") == 1
    assert "diverged" not in confirm.table(results(lambda side, seed: False))
