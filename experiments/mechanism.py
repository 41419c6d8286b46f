"""What does Oja's rule do to each layer's activity, weights and errors?

The grid of the main study is run again with measures of every layer: effective dimension of the activity, gain of the
activity and of the back-propagated error, distance of the weights from orthonormal rows, their singular values, and their
principal angles to the layer's input.
"""

import numpy as np

from experiments.common import app, figures, statistics, verdicts
from experiments.common.statistics import METHODS
from experiments.tasks import classification

# Per column of :func:`layer_means`: its gain's name, the least that matters, and its unit.
GAINS = {
    "effective_dimension": ("effective dimension", 0.1, "dimensions"),
    "activity_gain": ("steadier activity", 0.05, "decades"),
    "error_gain": ("steadier error", 0.05, "decades"),
}


def layer_means(table):
    """Returns one row per seed: effective dimension of the last hidden layer, and decades of signal change over all.

    Where a run has diverged, or a layer is silent, decades are NaN. With one hidden layer there are none of the error,
    which goes no further back than the first.
    """
    inner = table[table["layer"] < table["depth"]]
    last = inner[inner["layer"] == inner["layer"].max()].set_index("seed")
    is_known = (inner["activity_gain"] > 0) & ((inner["error_gain"] > 0) | (inner["layer"] == 1))
    gains, known = inner[is_known], is_known.groupby(inner["seed"]).all()
    decades = {
        name: np.log10(gains[name]).groupby(gains["seed"]).sum().abs().reindex(known.index).where(known)
        for name in ("activity_gain", "error_gain")[: 2 if inner["layer"].max() > 1 else 1]
    }
    return last[["effective_dimension"]].assign(**decades).sort_index()


def verdict(results):
    """Judges whether the last hidden layer's activity is richer, and all layers together change signals and errors less."""
    claims, evidence = [], []
    for title, parts in figures.measured_settings(results):
        if not set(METHODS) <= set(parts):
            continue
        without, with_oja = (layer_means(statistics.final_rows(parts[method]).table) for method in METHODS)
        if without.empty:
            evidence.append(f"{title}: there is no hidden layer.")
            continue
        asked = {column: GAINS[column] for column in without}
        known = without.notna().all(axis=1) & with_oja.notna().all(axis=1)
        unknown = f"{(~known).sum()} of {len(known)} seeds have a run that diverged, or a layer that is silent"
        doubts = [] if known.all() else [unknown]
        if not known.any():
            claims += [
                verdicts.Part(f"{title}: {name}", statistics.NO_INTERVAL, least, doubts, unit=unit)
                for name, least, unit in asked.values()
            ]
            continue
        without, with_oja = without[known], with_oja[known]
        found = {name: [statistics.mean_interval(t[name].to_numpy()) for t in (with_oja, without)] for name in without}
        for column, (name, least, unit) in asked.items():
            more = with_oja[column] - without[column]
            gain = statistics.mean_interval((more if column == "effective_dimension" else -more).to_numpy())
            claims.append(verdicts.Part(f"{title}: {name}", gain, least, doubts, unit=unit))
        (d1, d0), (a1, a0), *of_errors = found.values()
        evidence.append(
            f"{title}: the last hidden layer's effective dimension is {d1} with Oja, {d0} without. Over all hidden layers, "
            f"the norm of the activity changes by {a1} decades with Oja, {a0} without."
        )
        for e1, e0 in of_errors:
            evidence[-1] += f" The norm of the error on its way back changes by {e1} decades with Oja, {e0} without."
    networks = statistics.networks(statistics.final_rows(results))
    best = [method for _, runs in networks for method in statistics.tuned_variants(runs).values()]
    return verdicts.verdict_of(claims, evidence, doubts=verdicts.too_little_learned(best))


QUESTION = app.Question(
    module="experiments.mechanism",
    question=__doc__,
    task=classification.TASK,
    abstract=("Oja's rule preserves richer activation subspaces, mitigates exploding or vanishing signals"),
    claim="With Oja's rule activity keeps a richer subspace, and neither signals nor errors explode or vanish with depth.",
    verdict=verdict,
    figures={},  # Every experiment draws figures of measures with --measures.
    defaults={"measures": "true"},
    both_methods=False,
    equal_rates=True,
)

if __name__ == "__main__":
    app.run(QUESTION)
