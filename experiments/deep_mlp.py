"""How deep can a network be and still learn online, with Oja's rule and without, and from which initial weights?

Plain SGD at batch size 1 sees each sample once, in networks of many depths. From Glorot-uniform weights, the paper's, small
signals die out in a deep network of softplus units. From He-normal weights they do not. From each, three methods are
compared: backprop alone, Oja's rule at a constant rate as in the paper, and a fading rule, whose rate halves every so many
samples. Each method has its own best rates at each depth. A constant rate is at most 0.003 and a fading one begins with at
least 0.001, so that the two have as many rates to choose from. A method learns at a depth if its test accuracy is at least
half-way from chance to the best accuracy of any method at any depth. The depth at which it stops learning is interpolated
between depths, for each seed.
"""

import math

import numpy as np

from experiments.common import app, figures, markdown, statistics, verdicts
from experiments.tasks import classification

# Bounds on Oja rates: a fading rule is best at rates about three times as high. Both rules have equally many rates.
CONSTANT_UP_TO, FADING_FROM = 3e-3, 1e-3
LABELS = {"backprop": "without Oja", "hybrid": "constant Oja", "fading": "fading Oja"}
# Depth and initial weights of the networks in the paper's claim.
CLAIMED, PAPERS_WEIGHTS = 10, "glorot_uniform"


def keep(run):
    """Keeps constant rates up to 0.003 and fading ones from 0.001."""
    if math.isinf(run["oja_half_life"]):
        return run["oja_rate"] <= CONSTANT_UP_TO
    return run["oja_rate"] == 0 or run["oja_rate"] >= FADING_FROM


def by_depth(protocol):
    """Returns, per rule and depth, its runs at its own best setting for the depth."""
    return {
        variant: {depth: statistics.Tuned(part) for depth, part in runs.by("depth")}
        for variant, runs in statistics.by_variant(protocol).items()
    }


def protocols(results):
    """Returns the final rows per kind of initial weights and of other axes but the depth, by name."""
    return statistics.networks(statistics.final_rows(results), but="depth")


def threshold(results):
    """Returns the accuracy at which a depth counts as learned, half-way from chance to the best; None if none learned."""
    found = [best for _, rows in protocols(results) for depths in by_depth(rows).values() for best in depths.values()]
    if not any(verdicts.learned(best) for best in found):
        return None
    return (statistics.chance(results) + max(best.scores.mean() for best in found)) / 2


def depth_reached(found, level):
    """Returns the depth at which a rule stops learning, one per seed.

    For a seed that learns at all depths it is the largest depth, and for a seed that learns at no depth the smallest.
    """
    depths = np.array(sorted(found), float)
    accuracies = np.array([found[depth].scores for depth in sorted(found)])
    return np.array([_crossing(depths, seed, level) for seed in accuracies.T])


def _crossing(depths, accuracies, level):
    """Returns the depth at which the accuracy, interpolated between depths, first falls below the level."""
    below = np.flatnonzero(accuracies < level)
    if not len(below):
        return depths[-1]
    last = below[0]
    if not last:
        return depths[0]
    high, low = accuracies[last - 1], accuracies[last]
    return depths[last - 1] + (high - level) / (high - low) * (depths[last] - depths[last - 1])


def verdict(results):
    """Judges the paper's claim, on ten layers with its initial weights; the evidence has the depth reached per rule."""
    level, parts, evidence = threshold(results), [], []
    gains: dict[str, str] = {}
    found = {name: by_depth(rows) for name, rows in protocols(results)}
    claimed = {name: f for name, f in found.items() if _has(f, "init", PAPERS_WEIGHTS)} or found
    for name, variants in found.items():
        if "backprop" not in variants or len(variants) < 2:
            continue
        if name in claimed and CLAIMED in variants["backprop"]:
            rule = "hybrid" if "hybrid" in variants else "fading"
            at = {variant: depths[CLAIMED] for variant, depths in variants.items()}
            parts.append(verdicts.part_of(f"{name}, {CLAIMED} layers: {LABELS[rule]}", at[rule], at["backprop"]))
            gains |= {"constant" if v == "hybrid" else v: _gain(at, v).signed() for v in list(at)[1:]}
        for variant in list(variants)[1:]:
            evidence += [
                _gain_in_words(name, depth, variant, variants[variant][depth], variants["backprop"][depth])
                for depth in _told(variants, level)
            ]
        if len(variants["backprop"]) > 1 and level is not None:
            words = [_reach_in_words(variant, depths, level) for variant, depths in variants.items()]
            evidence.insert(0, f"{name}: {'; '.join(words)}.")
    if not evidence:
        return verdicts.verdict_of([], ["There is no rule to compare backprop with."])
    if level is not None:
        evidence.append(f"A depth counts as learned if the test accuracy is at least {level:.2f}.")
    doubts = verdicts.single(results, "depth")
    if CLAIMED not in set(results.table["depth"]):
        doubts.append(f"the claim is about {CLAIMED} layers, and no such network was trained")
    if rival := _rival(found, claimed):
        gains["rival"] = f"He's weights in place of the rule, gain {rival.signed()}"
    return verdicts.verdict_of(parts, evidence, doubts=doubts, gains=gains)


def _told(variants, level):
    """Returns the depths in the evidence: the smallest, the claim's, and the largest that any rule learns."""
    depths = sorted(variants["backprop"])
    learned = [d for d in depths if level is not None and any(v[d].scores.mean() >= level for v in variants.values())]
    return sorted({depths[0], max(learned, default=depths[-1])} | {CLAIMED} & set(depths))


def _has(variants, axis, value):
    """Returns whether the networks of these rules have a value of an axis."""
    (table, *_) = [best.runs.table for depths in variants.values() for best in depths.values()]
    return table[axis].iloc[0] == value


def _gain(at, variant):
    return statistics.gain(at[variant], at["backprop"])


def _rival(found, claimed):
    """Returns the gain of He's weights without the rule at the claim's depth; None if they were not tried."""
    others = [f for name, f in found.items() if name not in claimed and _has(f, "init", "he_normal")]
    if len(claimed) != 1 or len(others) != 1:
        return None
    pair = [f.get("backprop", {}).get(CLAIMED) for f in (*others, *claimed.values())]
    return None if None in pair else statistics.gain(*pair)


def _reach_in_words(variant, found, level):
    depths = sorted(found)
    first, last = (found[depth].scores >= level for depth in (depths[0], depths[-1]))
    layers = depth_reached(found, level)
    if last.all():
        return f"{LABELS[variant]} learns at {depths[-1]:g} layers, the most tried"
    if not first.any():
        return f"{LABELS[variant]} learns at none of these depths"
    interval = statistics.mean_interval(layers)
    depth = f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]" if interval.known else f"{interval.mean:.1f}"
    counted = [f"{(~first).sum()} of {len(layers)} seeds learn at none of these depths"] if not first.all() else []
    counted += [f"{last.sum()} of {len(layers)} seeds learn at {depths[-1]:g}, the most tried"] if last.any() else []
    return f"{LABELS[variant]} stops at {depth} layers" + (f" ({'; '.join(counted)})" if counted else "")


def _gain_in_words(name, depth, variant, with_rule, without):
    accuracies = f"{with_rule.accuracy} against {without.accuracy} without"
    gain = verdicts.gain_in_words(with_rule, without)
    return f"{name}, {depth} layers, {LABELS[variant]}: {accuracies}, gain {gain}."


def table(results):
    """Returns one row per kind of initial weights, depth and rule, each at its own best."""
    lines = []
    for name, rows in protocols(results):
        for depth, part in rows.by("depth"):
            mine = statistics.by_variant(part)
            backprop = statistics.Tuned(mine["backprop"]) if "backprop" in mine else None
            lines += [[name, depth, *_cells(variant, runs, backprop)] for variant, runs in mine.items()]
    columns = ["initial weights", "layers", "rule", "test accuracy", "gain over backprop, equal search", "best setting"]
    return markdown.table([*columns, "settings tried"], lines)


def _cells(variant, part, backprop):
    best = statistics.Tuned(part)
    edges = ", ".join(best.edges)
    gain = "" if variant == "backprop" or backprop is None else statistics.gain(best, backprop).signed()
    at = best.words + (f" (at the edge: {edges})" if edges else "")
    return [LABELS[variant], best.told, gain, at, best.setting.tried]


def accuracy_by_depth(results):
    """Draws test accuracy against depth, each rule at its own best per depth; points are seeds, bars 95 % intervals.

    There is one panel per kind of initial weights. A dashed line is the accuracy from which a depth counts as learned.
    """
    level = threshold(results)

    def accuracies(protocol):
        found = by_depth(protocol)
        return {variant: {depth: runs.scores for depth, runs in found[variant].items()} for variant in found}

    figure, panels = _against_depth(results, accuracies, "test accuracy", height=2.6)
    for axes in panels.flat[: len(list(protocols(results)))]:
        _level_line(axes, level)
    panels[0][0].set_ylim(0, 1)
    return figure


def _level_line(axes, level):
    if level is not None:
        axes.axhline(level, color="0.6", linewidth=0.6, linestyle="--", zorder=0)


def learning_rate_range(results):
    """Draws the decades of learning rates at which each rule learns, against depth; bars are 95 % intervals.

    A rule learns at a learning rate if its accuracy there, at its best other settings, is at least half-way from chance to
    the best.
    """
    level = threshold(results)
    level = math.inf if level is None else level  # If nothing was learned, no learning rate counts.

    def decades(protocol):
        found = statistics.by_variant(protocol)
        return {variant: {depth: _widths(part, level) for depth, part in found[variant].by("depth")} for variant in found}

    figure, panels = _against_depth(results, decades, "range of learning rates\nthat learn (decades)", height=2.2)
    panels[0][0].set_ylim(bottom=0)
    return figure


def _against_depth(results, values, label, *, height):
    """Draws one panel per kind of initial weights, with each rule's values by depth, one per seed."""
    parts = list(protocols(results))
    figure, panels = figures.make_rows(parts, per_row=2, height=height, sharey=True, sharex=True)
    for axes, (name, protocol) in figures.filled(panels, parts):
        for (variant, found), shift in zip(values(protocol).items(), (-0.25, 0, 0.25), strict=False):
            for depth, seeds in found.items():
                figures.interval_bar(axes, depth + shift, seeds, variant, label=LABELS[variant])
            means = [seeds.mean() for seeds in found.values()]
            axes.plot(np.array(list(found)) + shift, means, color=figures.COLOURS[variant])
        axes.set_title(name)
        axes.set_xticks(sorted(protocol.table["depth"].unique()))
    figures.label(panels, x="layers", y=label)
    figures.legend(figure, panels[0][0])
    return figure, panels


def _by_learning_rate(part):
    """Returns a rule's accuracies at each learning rate, one per seed, at its best other settings there."""
    return {eta: statistics.Tuned(runs).scores for eta, runs in part.by("learning_rate")}


def _widths(part, level):
    """Returns the decades of learning rate over which a rule learns, one per seed."""
    best = _by_learning_rate(part)
    return np.array([statistics.width(list(best), seed, level) for seed in np.transpose(list(best.values()))])


def accuracy_by_learning_rate(results):
    """Draws test accuracy against the learning rate, by initial weights (rows) and depth (columns).

    At each learning rate a rule has its best other settings.
    """
    parts, level = list(protocols(results)), threshold(results)
    depths = sorted(results.table["depth"].unique())
    size = {"width": figures.WIDTH / max(len(depths), 3), "height": 1.7}
    figure, panels = figures.make_panels(len(parts), len(depths), **size, sharey=True, sharex=True)
    for row, (name, rows) in zip(panels, parts, strict=True):
        for axes, depth in zip(row, depths, strict=True):
            for variant, part in statistics.by_variant(rows.where(depth=depth)).items():
                best = _by_learning_rate(part)
                for eta, accuracies in best.items():
                    figures.interval_bar(axes, eta, accuracies, variant, label=LABELS[variant])
                axes.plot(list(best), [accuracies.mean() for accuracies in best.values()], color=figures.COLOURS[variant])
            _level_line(axes, level)
            axes.set(xscale="log", title=f"{depth} layers")
            axes.minorticks_off()
        row[0].set_ylabel(f"{name}\ntest accuracy")
    for axes in panels[-1]:
        axes.set_xlabel("learning rate η")
    panels[0][0].set_ylim(0, 1)
    figures.legend(figure, panels[0][0])
    return figure


QUESTION = app.Question(
    module="experiments.deep_mlp",
    question=__doc__,
    task=classification.TASK,
    abstract=(
        "... online learning, deep architectures, ... Oja's rule can substantially improve the performance of "
        "pure backpropagation"
    ),
    claim="Learning online, a network of ten layers does better with Oja's rule than with pure backprop.",
    verdict=verdict,
    figures={
        "accuracy_by_depth": accuracy_by_depth,
        "learning_rate_range": learning_rate_range,
        "accuracy_by_learning_rate": accuracy_by_learning_rate,
        "learning_curves": figures.learning_curves,
    },
    keep=keep,
    both_methods=False,
    table=table,
)

if __name__ == "__main__":
    app.run(QUESTION)
