"""Does Oja's rule let a deep network learn online, one sample at a time, without tuning?

The main question of https://arxiv.org/abs/2408.08408: networks of 5 and 10 layers, Glorot-uniform weights, plain SGD at
batch size 1, each sample seen once. Every learning rate is tried with pure backprop (Oja rate 0) and with the hybrid
rule; the two are compared at equal learning rates and, separately, each at its own best.
"""

from experiments.common import app, figures, statistics, verdicts


def verdict(tables):
    """Of the deepest networks: the gain where the learning rate is equal, and where each rule has its own best."""
    final = statistics.final_rows(tables.results)
    found: dict[str, statistics.Comparison] = {}
    for title, rows in statistics.networks(final[final["depth"] == final["depth"].max()]):
        equal, tuned = statistics.widest(rows), statistics.compare_tuned(rows)
        compared = {"largest difference at an equal learning rate": equal, "each at its own best": tuned}
        found |= {f"{title}, {name}": comparison for name, comparison in compared.items() if comparison is not None}
    evidence = [verdicts.sentence(name, comparison) for name, comparison in found.items()]
    return verdicts.verdict_of([comparison.gain() for comparison in found.values()], evidence)


QUESTION = app.Question(
    module="experiments.deep_mlp",
    question=__doc__,
    claim="Learning online, a network of ten layers does substantially better with Oja's rule than with pure backprop.",
    verdict=verdict,
    figures={
        "backprop_vs_hybrid": figures.backprop_vs_hybrid,
        "learning_curves": figures.learning_curves,
        "accuracy_plane": figures.accuracy_plane,
    },
    both_methods=False,
    equal_rates=True,
)

if __name__ == "__main__":
    app.run(QUESTION)
