"""Does something simpler help as much as Oja's rule?

Three networks are those in which Oja's rule helps most: 15 layers of Glorot weights, 5 layers of poor weights (Glorot x
0.3), and 10 layers with random feedback. In each, the rule is compared with what might explain its effect. Initial weights:
He's, orthogonal at gain 1 and √2, or scaled by data so that each layer's signals have unit variance. Changes of the
weights: weight decay, a pull towards `W^T W = I` or `2 I` without any activity, normalized weights, gain homeostasis.
Changes of the network: layer norm, residual connections. Other steps: normalized, bounded or clipped ones, momentum,
RMSProp, Adam, a learning rate that falls. Other rules: Hebb's with normalized weights, Oja's with the wrong sign. Variants
of the rule are compared too: fading, alone first and then backprop alone, in some layers alone, neuron by neuron, Sanger's.
Each is tuned over the same number of settings: learning rates times values of its own parameter or, if it has none, more
learning rates, as many in all.
"""

from experiments.common import app, statistics, verdicts
from experiments.common.task import later
from experiments.tasks import comparing
from experiments.tasks.registry import RIVAL, RIVALS, RULE, VARIANT


def verdict(results):
    """Judges, in each network, the better of the two rules over its hardest rival (`comparing.nearest`)."""
    places, evidence, gains = [], [], {}
    for network, best in comparing.by_network(results, RIVALS).items():
        name = comparing.NETWORKS[network]
        rules = {rival: best[rival] for rival in best if RIVALS[rival].kind == RULE}
        if not rules or len(rules) == len(best):
            continue
        chosen_by = results.schema.score.chosen_by
        rule = max(rules, key=lambda rival: rules[rival].runs.table[chosen_by].mean())
        against = {rival: statistics.gain(rules[rule], other) for rival, other in best.items() if rival not in rules}
        simpler = {rival: other for rival, other in best.items() if RIVALS[rival].kind == RIVAL}
        if simpler:
            nearest = comparing.nearest(rules[rule], simpler, verdicts.LEAST)
            places.append(
                verdicts.part_of(
                    f"{name}: {RIVALS[rule].label} over its hardest rival, {RIVALS[nearest].label}",
                    rules[rule],
                    simpler[nearest],
                )
            )
            strongest = comparing.best_first(simpler)[0]
            gains[name] = f"{RIVALS[strongest].label} {simpler[strongest].accuracy}"
        as_good = {rival: gain for rival, gain in against.items() if gain.low <= verdicts.LEAST or not gain.known}
        named = [f"{RIVALS[r].label} ({gain.signed()})" for r, gain in sorted(as_good.items(), key=lambda i: i[1].mean)]
        evidence.append(
            f"{name}: {RIVALS[rule].label} reaches {rules[rule].accuracy}. Its gain over each of these is not clearly "
            f"above {verdicts.LEAST:g}: {', '.join(named) or 'none'}."
        )
    return verdicts.verdict_of(places, evidence, gains=gains)


def table(results):
    """Returns one row per rival, best first in each network."""
    return comparing.table(results, RIVALS)


def rivals(results):
    """Draws the final test accuracy of each method at its own best; dashed lines are constant Oja, dotted fading Oja.

    Rows have Oja's rule first, then its variants, then its rivals.
    """
    return comparing.chart(results, RIVALS, (RULE, VARIANT, RIVAL))


QUESTION = app.Question(
    module="experiments.controls",
    question=__doc__,
    claim="This project's own: where Oja's rule in all layers helps most, nothing simpler helps as much.",
    verdict=verdict,
    figures={"rivals": rivals},
    task=comparing.TASK,
    axes=comparing.axes(RIVALS),
    learner=later("experiments.tasks.rivals.learner"),
    methods="rival",
    keep=comparing.keep,
    varies=("depth", "init_gain", "feedback", "rival"),
    defaults={**comparing.DEFAULTS, "evals": "1"},
    table=table,
)

if __name__ == "__main__":
    app.run(QUESTION)
