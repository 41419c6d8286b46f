"""Which part of Oja's rule does the work?

Oja's change of a kernel W, `D = (x - W y) y^T`, is taken apart in four ways: into its Hebbian and its decay term; into its
component along W, which only scales the weights, and the rest, which turns them; into these two for each neuron's own
weights; and into its projection on the leading direction of the layer's input and the remainder. These parts are compared
with other means to the same end: gain homeostasis, a pull towards `W^T W = 2 I`, normalized weights, layer norm, a phase of
the rule on images with shuffled pixels, and the rule in some layers alone. All of these are the arms of the study. They act
in the hidden layers alone unless their names say otherwise. Each has the same number of settings: learning rates times
three values of its own parameter. With measures, the study also asks: which measure of the hidden layers early in training
predicts the final accuracy, across all arms?
"""

import functools

import numpy as np

from experiments.common import app, figures, markdown, statistics, verdicts
from experiments.common.results import LAYER, SEED, SEEN
from experiments.tasks import comparing
from experiments.tasks.comparing import DEEP, NETWORKS, RANDOM
from experiments.tasks.registry import ANATOMY, RIVAL

# Learning rates outside this range are tried in the deep network alone.
LOWEST, HIGHEST = 5e-4, 2e-2
# The measures of a layer, as figures and tables name them.
MEASURES = {
    "activity_gain": "gain: distance from 1",
    "centred_gain": "gain about the mean: distance from 1",
    "sample_correlation": "correlation between samples",
    "explained_energy": "explained energy",
    "leading_share": "share of W in leading directions",
    "effective_dimension": "effective dimension",
    "effective_rank": "effective rank",
    "dead_units": "dead units",
    "gradient_angle": "angle to the true gradient",
    "feedback_alignment": "alignment of feedback and weights",
}
# A gain is as bad above 1 as below it.
_GAINS = ("activity_gain", "centred_gain")
# The arms that the figures of single layers show.
SHOWN = {
    "backprop": figures.COLOURS["backprop"],
    "oja": figures.COLOURS["hybrid"],
    "rest": "#E69F00",
    "along_weights": "0.5",
    "homeostasis": figures.COLOURS["fading"],
}
BY_LAYER = {
    "centred_gain": "gain of activity\nabout its mean",
    "explained_energy": "explained energy",
    "gradient_angle": "angle to the\ntrue gradient (°)",
}
# The least explained energy that figures show; in the first layer gain homeostasis has less.
LEAST_ENERGY = -2.5
# A gain over learning without a rule by which an arm rescues a network: as much as tells learning from a guess.
RESCUED = verdicts.LEARNED * verdicts.LEAST
# The least lead over gain homeostasis under random feedback with which that alone is not what the rule does there.
AHEAD = 0.02
_OJA = ANATOMY["oja"].label
# Between fewer arms a rank correlation is chance.
FEWEST_ARMS = 5


def keep(run):
    """Keeps the lowest and the highest learning rate in the deep network alone.

    There some arms do best at lower rates than elsewhere, and learning without a rule needs higher ones to learn at all.
    """
    network = run["depth"], run["init_gain"], run["feedback"]
    return network in NETWORKS and (network == DEEP or LOWEST < run["learning_rate"] < HIGHEST)


def verdict(results):
    """Judges that turning does as well as the whole, scaling rescues nothing, and homeostasis is enough with backprop."""
    parts, evidence, gains = [], [], {}
    for network, best in comparing.by_network(results, ANATOMY).items():
        name = NETWORKS[network]
        parts += _split(name, best)
        if {"oja", "homeostasis"} <= set(best) and network == DEEP:
            parts.append(_as_good(f"{name}: gain homeostasis as good as {_OJA}", best["homeostasis"], best["oja"]))
        if {"oja", "homeostasis"} <= set(best) and network == RANDOM:
            over = f"{name}: {_OJA} over gain homeostasis"
            parts.append(verdicts.part_of(over, best["oja"], best["homeostasis"], least=AHEAD))
        order = comparing.best_first(best)
        told = [f"{ANATOMY[arm].label} {best[arm].accuracy}" for arm in order if arm in SHOWN or arm == order[0]]
        evidence.append(f"{name}, the best first: {'; '.join(told)}.")
        if simpler := [arm for arm in order if ANATOMY[arm].kind == RIVAL]:
            gains[name] = f"{ANATOMY[simpler[0]].label} {best[simpler[0]].accuracy}"
    evidence += [f"{words}." for words in _best_predictors(results)]
    return verdicts.verdict_of(parts, evidence, gains=gains)


def _split(name, best):
    """Returns the parts on Oja's component along the weights, and the rest, in one network."""
    if not {"backprop", "oja", "rest", "along_weights"} <= set(best):
        return []
    along, rest, oja, nothing = (best[arm] for arm in ("along_weights", "rest", "oja", "backprop"))
    # That nothing is learned along the weights is what is claimed, if the whole rule does learn.
    doubts = [doubt for doubt in verdicts.doubts_about({"the component": along}) if doubt != verdicts.TOO_LITTLE_LEARNED]
    doubts += verdicts.too_little_learned([oja])
    no_rescue = f"{name}: learning without a rule as good as with the component along W"
    return [
        verdicts.part_of(f"{name}: the rest over the component along W", rest, along),
        verdicts.not_worse(no_rescue, statistics.gain(nothing, along), doubts, least=RESCUED),
        _as_good(f"{name}: the rest as good as {_OJA}", rest, oja),
    ]


def _as_good(name, one, other):
    return verdicts.not_worse(name, statistics.gain(one, other), verdicts.doubts_about({"": one, "the other": other}))


def table(results):
    """Returns one row per arm, best first in each network; with measures, a second table with one row per measure."""
    arms, found = comparing.table(results, ANATOMY), predictors(results)
    if not found:
        return arms
    title = f"rank correlation, across methods, of the final accuracy with a measure after {_early(results):,} samples"
    rows = []
    for measure, words in MEASURES.items():
        cells = [found[network][measure][0].signed() if measure in found[network] else "" for network in found]
        rows += [[words, *cells]] if any(cells) else []
    return "\n\n".join([arms, markdown.table([title, *(NETWORKS[network] for network in found)], rows), _HOW])


_HOW = (
    "The second table has the rank correlation, across methods, between a measure's mean over the hidden layers and the "
    "final accuracy. Each method is at its own best. There is one correlation per seed; the table has their mean with its "
    "95 % interval by Student's t. A gain is ranked by the distance of its logarithm from 0. Runs that had diverged "
    "before the measurement are left out."
)


def _early(results):
    """Returns the number of samples at the first evaluation after the start."""
    seen = results.layers.table[SEEN]
    return int(seen[seen > 0].min())


def _final(results):
    return int(results.layers.table[SEEN].max())


def measured(results, network, best, at):
    """Yields, for each arm, the measures of the hidden layers of its reported runs after so many samples, with `score`."""
    layers = results.layers.table
    names = [axis.name for axis in results.schema.axes if axis.name in layers] + [SEED]
    layers = layers[(layers[SEEN] == at) & (layers[LAYER] < network[0])]
    for arm, tuned in best.items():
        runs = tuned.runs.table[names].assign(score=tuned.scores, arm=arm)
        yield layers.merge(runs, on=names)


def predictors(results):
    """For each network and measure, the rank correlation across arms of its early value with the final accuracy.

    Returns:
      By network and measure: the mean over seeds of the rank correlation with its interval, for the mean over layers; and
      the mean correlation of each layer. A network in which no arm learns, or with few arms, is left out. Empty without
      measures.
    """
    import pandas as pd

    if results.measures is None:
        return {}
    found: dict = {}
    for network, best in comparing.by_network(results, ANATOMY).items():
        if len(best) < FEWEST_ARMS or verdicts.too_little_learned(best.values()):
            continue
        rows = pd.concat(list(measured(results, network, best, _early(results))))
        rows = rows.assign(**{name: np.abs(np.log(rows[name].clip(lower=1e-12))) for name in _GAINS})
        found[network] = {}
        for measure in MEASURES:
            means = rows.groupby([SEED, "arm"], as_index=False)[[measure, "score"]].mean()
            overall, by_layer = _rank_correlations(means, measure, SEED), _rank_correlations(rows, measure, LAYER, SEED)
            if len(overall):
                layers = by_layer.groupby(LAYER).mean().to_dict()
                mean, low, high, seeds = statistics.mean_interval(overall.to_numpy())
                interval = statistics.Interval(mean, float(np.clip(low, -1, 1)), float(np.clip(high, -1, 1)), seeds)
                found[network][measure] = interval, layers
    return found


def _rank_correlations(rows, measure, *by):
    """Returns one rank correlation across arms per value of these columns, if ranks differ and enough are known."""
    values, scores = (rows.pivot(index=list(by), columns="arm", values=name) for name in (measure, "score"))
    ranks = [part.rank(axis=1) for part in (values, scores.where(values.notna()))]
    one, other = (part.sub(part.mean(axis=1), axis=0) for part in ranks)
    norms = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    known = (values.count(axis=1) >= FEWEST_ARMS) & (norms > 0)
    return (one * other).sum(axis=1)[known] / norms[known]


def _best_predictors(results):
    """Yields, for each network, which measure correlates most with the final accuracy, if any clearly does."""
    for network, of_measures in predictors(results).items():
        clear = {measure: found for measure, (found, _) in of_measures.items() if found.sign}
        if clear:
            best = max(clear, key=lambda measure: abs(clear[measure].mean))
            yield (
                f"{NETWORKS[network]}: of the measures after {_early(results):,} samples, {MEASURES[best]} correlates most "
                f"with the final accuracy, with a rank correlation across methods of {clear[best].signed()}"
            )


def arms(results):
    """Draws the final test accuracy of each arm at its own best; dashed lines are constant Oja, dotted fading Oja.

    Rows are ordered by the mean over networks.
    """
    return comparing.chart(results, ANATOMY)


def prediction(results):
    """Draws the rank correlation with the final accuracy of each measure's mean over hidden layers, and of layers (grey).

    Bars are 95 % intervals.
    """
    found = predictors(results)
    size = {"width": (figures.WIDTH - 2) / max(len(found), 2), "height": 0.5 + 0.2 * len(MEASURES)}
    figure, panels = figures.make_panels(1, max(len(found), 1), **size, sharey=True, sharex=True)
    for axes, (network, of_measures) in zip(panels[0], found.items(), strict=False):
        for row, measure in enumerate(MEASURES):
            if measure in of_measures:
                interval, layers = of_measures[measure]
                axes.plot(list(layers.values()), [row] * len(layers), ".", color="0.6", markersize=3, zorder=0)
                bar = np.nan_to_num([[interval.mean - interval.low], [interval.high - interval.mean]])
                axes.errorbar([interval.mean], [row], xerr=bar, color=figures.COLOURS["hybrid"], marker="s", markersize=4)
        axes.set_title(comparing.titled(network))
    for axes in panels[0]:
        axes.axvline(0, color="0.5", linewidth=0.6, zorder=0)
        axes.set(xlabel="rank correlation", xlim=(-1.05, 1.05), ylim=(len(MEASURES) - 0.5, -0.5))
    panels[0][0].set_yticks(range(len(MEASURES)), list(MEASURES.values()))
    return figure


def by_layer(results):
    """Draws gain, explained energy and gradient angle by layer: dotted early in training, solid at its end.

    With backprop the angle is 0, and not drawn.
    """
    found = comparing.by_network(results, ANATOMY)
    size = {"width": (figures.WIDTH - 0.6) / max(len(found), 2), "height": 1.5}
    figure, panels = figures.make_panels(len(BY_LAYER), len(found), **size, sharex="col", sharey="row")
    for column, (network, best) in zip(panels.T, found.items(), strict=True):
        best = {arm: best[arm] for arm in SHOWN if arm in best}
        for at in sorted({_early(results), _final(results)}):
            style, is_final = ("-", True) if at == _final(results) else (":", False)
            for arm, rows in zip(best, measured(results, network, best, at), strict=True):
                label = ANATOMY[arm].label if is_final else None
                width = 2.5 if arm == "rest" else 1.0  # It lies below constant Oja.
                for axes, measure in zip(column, BY_LAYER, strict=True):
                    means = rows.groupby(LAYER)[measure].mean().dropna()
                    if measure != "gradient_angle" or network == RANDOM:
                        look = {"color": SHOWN[arm], "linewidth": width, "zorder": 2 - width / 10}
                        axes.plot(means.index, means, style, label=label, marker=".", markersize=3, **look)
        column[0].set_title(comparing.titled(network))
        column[0].set_yscale("log")
        column[1].set_ylim(LEAST_ENERGY, 1.2)
        column[-1].set(xlabel="layer", xlim=(0.5, network[0] - 0.5))
        if network != RANDOM:
            column[-1].text(
                0.5, 0.5, "0 with backprop", transform=column[-1].transAxes, ha="center", fontsize=7, color="0.4"
            )
    for row, words in zip(panels, BY_LAYER.values(), strict=True):
        row[0].set_ylabel(words)
    figures.legend(figure, *panels[0])
    return figure


def identity(results):
    """Draws each hidden layer's squared gain at the end against the energy of its input that its output explains.

    On the line they are equal, as they are where Oja's rule alone is at rest; see the page on the rule.
    """
    found = comparing.by_network(results, ANATOMY)
    size = {"width": (figures.WIDTH - 0.6) / max(len(found), 2), "height": 2.0}
    figure, panels = figures.make_panels(1, len(found), **size, sharex=True, sharey=True)
    for axes, (network, best) in zip(panels[0], found.items(), strict=True):
        best = {arm: best[arm] for arm in SHOWN if arm in best}
        for arm, rows in zip(best, measured(results, network, best, _final(results)), strict=True):
            style = {"color": SHOWN[arm], "label": ANATOMY[arm].label, "markersize": 2, "linestyle": "none"}
            axes.plot(rows["explained_energy"], rows["activity_gain"] ** 2, marker=".", **style)
        axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.7, zorder=0)
        axes.set(title=comparing.titled(network), xlabel="explained energy", xlim=(LEAST_ENERGY, 1.2), ylim=(0, 1.6))
    panels[0][0].set_ylabel("gain², E|y|² / E|x|²")
    figures.legend(figure, *panels[0])
    return figure


QUESTION = app.Question(
    module="experiments.anatomy",
    question=__doc__,
    claim=(
        "This project's own: Oja's rule works by turning the weights. Its component along the weights, which scales them, "
        "rescues no network, and the rest does as well as the whole rule. With backprop, but not under random feedback, "
        "gain homeostasis does as well too."
    ),
    verdict=verdict,
    figures={"arms": arms},
    measure_figures={"prediction": prediction, "by_layer": by_layer, "identity": identity},
    task=comparing.TASK,
    axes=comparing.axes(ANATOMY),
    learner=functools.partial(comparing.learner, rivals=ANATOMY, measures=tuple(MEASURES)),
    methods="rival",
    keep=keep,
    varies=("depth", "init_gain", "feedback", "rival"),
    defaults={
        **comparing.DEFAULTS,
        "learning_rate": "3e-4,1e-3,3e-3,1e-2,3e-2",
        "evals": "500,3000",
        "measures": "true",
        "seed": 16,
    },
    table=table,
)

if __name__ == "__main__":
    app.run(QUESTION)
