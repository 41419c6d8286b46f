"""Is there a critical period: does Oja's rule help most when it acts early and fades?

The rate of Oja's rule halves every so many samples, from 125 to never. Networks of 10 and 20 layers learn from
Glorot-uniform and from He-normal weights, ten layers with random feedback too. Each half-life has its own best learning
and Oja rate. In ten layers of Glorot weights the same dose (the sum of the rate over all samples) is also given in three
other ways: at full rate early, at full rate late, and spread evenly. In these networks a further comparison keeps the
rule out of the read-out, since the cost of a constant rate may arise there.
"""

import math
import textwrap

import numpy as np

from experiments.common import app, figures, markdown, statistics, verdicts
from experiments.common.flags import Axis
from experiments.common.parsers import Names
from experiments.tasks import classification

# Timings of the dose; the first is that of a half-life.
TIMINGS = ("fading", "early", "late", "even")
WORDS = {"late": "late", "even": "evenly"}
# Layers; deeper networks learn nothing by random feedback in a few thousand samples, and have neither other timings than
# fading nor the rule without the read-out.
ALL_UP_TO = 10


def rate_at(count, timing, rate, half_life, total):
    """Returns Oja's rate before update number `count` of `total`; `timing` is an index into the compared timings.

    All timings have the dose of the fading rate, `rate` times `span` updates.
    """
    import jax.numpy as jnp

    import ojax

    span = jnp.where(jnp.isinf(half_life), total, half_life / math.log(2) * (1 - jnp.exp2(-total / half_life)))
    rates = {
        "fading": ojax.fading(rate, half_life)(count),
        "early": jnp.where(count < span, rate, 0.0),
        "late": jnp.where(count >= total - span, rate, 0.0),
        "even": rate * span / total,
    }
    return jnp.stack([rates[name] for name in TIMINGS])[timing]


def learner(setting, data):
    """Returns the task's learner, with a rule whose rate follows its timing."""
    import jax.numpy as jnp

    import ojax
    from experiments.tasks.rivals import layers_where

    total = setting["num_train"] // setting["batch_size"] * setting["epochs"]
    mask = None if setting["plastic"] == "all" else layers_where(lambda layer, layers: layer < layers - 1)
    places = jnp.array([TIMINGS.index(name) for name in setting["timing"]])

    def rule(hyper):
        timing, half_life = places[hyper["timing"].astype(int)], hyper["oja_half_life"] / setting["batch_size"]
        return ojax.oja_sgd(
            hyper["learning_rate"], lambda count: rate_at(count, timing, hyper["oja_rate"], half_life, total), mask=mask
        )

    return classification.learner(setting, data, rule=rule)


def keep(run):
    """Keeps the fading or constant rule in all layers with backprop, and anything else only up to ten layers.

    Other timings than fading are kept for Glorot weights and backprop, the rule in hidden layers alone for Glorot weights.
    """
    if run["depth"] > ALL_UP_TO and (run["feedback"], run["timing"], run["plastic"]) != ("backprop", "fading", "all"):
        return False
    if run["plastic"] == "hidden" and (run["timing"] != "fading" or run["init"] != "glorot_uniform"):
        return False
    if run["timing"] == "fading":
        return True
    repeats = run["oja_rate"] == 0 or math.isinf(run["oja_half_life"])
    return not repeats and run["init"] == "glorot_uniform" and run["feedback"] == "backprop"


def by_network(results):
    """Yields each network's name and runs of all timings."""
    return statistics.networks(results, but="timing")


def lives(part):
    """Returns each row's half-life: 0 without the rule, and inf for a constant rate."""
    return np.where(part.table["method"] == "backprop", 0.0, part.table["oja_half_life"])


def by_half_life(network):
    """Returns one network's best runs without the rule (0), at each half-life, and with a constant rate (inf)."""
    fading = network.where(timing="fading")
    return {value: statistics.Tuned(part) for value, part in fading.by(lives(fading))}


def by_timing(network):
    """Returns one network's best runs at each of its timings with a finite half-life."""
    finite = network.where((lives(network) > 0) & (lives(network) < math.inf))
    return {name: statistics.Tuned(part) for name, part in finite.by("timing", sort=False)}


def rules(network):
    """Returns one network's best runs without Oja's rule, with a constant rate and with a fading one."""
    return statistics.tuned_variants(network.where(timing="fading"))


def verdict(results):
    """Judges the gain, per network, of the fading rule over a constant one, and over an equal dose given late or evenly."""
    parts, evidence = [], []
    for name, rows in by_network(statistics.final_rows(results)):
        found, timed = rules(rows), by_timing(rows)
        if set(found) == set(statistics.VARIANTS):
            backprop, constant, fading = (found[variant] for variant in statistics.VARIANTS)
            parts.append(verdicts.part_of(f"{name}: fading over constant", fading, constant))
            evidence.append(
                f"{name}: {fading.accuracy} with the fading rule, {constant.accuracy} with a constant one "
                f"(fading over constant: {verdicts.gain_in_words(fading, constant)}), {backprop.accuracy} without the rule "
                f"(fading over none: {verdicts.gain_in_words(fading, backprop)})."
            )
        if len(timed) > 1 and "fading" in timed:
            reached = [f"{n} {runs.accuracy}" for n, runs in timed.items()]
            evidence.append(f"{name}, the same dose at each timing: {', '.join(reached)}.")
            parts += [
                verdicts.part_of(f"{name}: fading over a dose given {WORDS[other]}", timed["fading"], timed[other])
                for other in ("late", "even")
                if other in timed
            ]
    evidence += [f"{name}: best half-life {text}." for name, text in _best_half_lives(results)]
    return verdicts.verdict_of(parts, evidence)


def _best_half_lives(results):
    """Yields each network's half-life with the best accuracy at each number of samples seen, in words."""
    for name, network in by_network(results):
        best = {}
        for seen, part in network.where(network.table["examples_seen"] > 0).by("examples_seen"):
            found = by_half_life(part)
            best[seen] = max(found, key=lambda life: found[life].scores.mean())
        yield name, ", ".join(f"{life_in_words(life)} at {seen:,} samples" for seen, life in best.items())


def life_in_words(life):
    """Returns a half-life as a figure's tick label."""
    return "no rule" if life == 0 else "constant" if math.isinf(life) else f"{life:g}"


def table(results):
    """Returns one row per network and half-life or timing, each at its own best rates."""
    columns = ["network", "half-life", "timing", "test accuracy", "gain over no rule, equal search", "best rates"]
    rows = []
    for name, network in by_network(statistics.final_rows(results)):
        fading = network.where(timing="fading")
        parts = [
            (life_in_words(value), "fading" if 0 < value < math.inf else "", part)
            for value, part in fading.by(lives(fading))
        ]
        others = network.where(network.table["timing"] != "fading")
        parts += [(f"{value:g}", timing, part) for (timing, value), part in others.by("timing", "oja_half_life")]
        without = by_half_life(network).get(0.0)
        for half_life, timing, part in parts:
            best = statistics.Tuned(part)
            gain = "" if without is None or half_life == "no rule" else statistics.gain(best, without).signed()
            rates = {axis: best.setting[axis] for axis in ("learning_rate", "oja_rate")}
            edges = ", ".join(best.edges)
            at = results.schema.named(rates) + (f" (at the edge: {edges})" if edges else "")
            rows.append([name, half_life, timing, best.told, gain, at, best.setting.tried])
    return markdown.table([*columns, "settings tried"], rows)


def accuracy_by_half_life(results):
    """Draws the final test accuracy against the half-life, from no rule to a constant rate; bars are 95 % intervals."""
    parts = [(name, by_half_life(rows)) for name, rows in by_network(statistics.final_rows(results))]
    figure, panels = figures.make_rows(parts, per_row=3, height=1.9, sharey=True)
    for axes, (name, found) in figures.filled(panels, parts):
        values = sorted(found)
        for place, life in enumerate(values):
            variant = "backprop" if life == 0 else "hybrid" if math.isinf(life) else "fading"
            figures.interval_bar(axes, place, found[life].scores, variant)
        axes.plot(range(len(values)), [found[life].scores.mean() for life in values], color="0.7", zorder=0)
        axes.set_xticks(range(len(values)), [life_in_words(life) for life in values], rotation=30, fontsize=7)
        axes.set_title(textwrap.fill(name, 40), fontsize=7)
    figures.label(panels, x="half-life in samples", y="test accuracy")
    panels[0][0].set_ylim(0, 1)
    figures.legend(figure, panels[0][0])
    return figure


def accuracy_by_timing(results):
    """Draws the final test accuracy with no rule, a constant rate, and each timing of the dose; bars are 95 % intervals.

    Each is at its own best rates and dose.
    """
    parts = [(name, by_timing(rows), rules(rows)) for name, rows in by_network(statistics.final_rows(results))]
    parts = [part for part in parts if len(part[1]) > 1] or parts[:1]
    figure, panels = figures.make_rows(parts, per_row=len(parts), height=1.9, sharey=True)
    for axes, (name, timed, found) in zip(panels[0], parts, strict=True):
        bars = [("no rule", found.get("backprop"), "backprop"), ("constant", found.get("hybrid"), "hybrid")]
        bars += [(timing, runs, "fading") for timing, runs in timed.items()]
        bars = [bar for bar in bars if bar[1] is not None]
        for place, (_, runs, variant) in enumerate(bars):
            figures.interval_bar(axes, place, runs.scores, variant)
        axes.set_xticks(range(len(bars)), [bar[0] for bar in bars], rotation=30)
        axes.set_title(name)
        axes.set_xlim(-0.5, len(bars) - 0.5)
    panels[0][0].set(ylabel="test accuracy", ylim=(0, 1))
    return figure


def half_life_by_samples(results):
    """Draws mean test accuracy against samples seen, one line per half-life, each at its best rates for these samples.

    If the best half-life were a fraction of the training, longer half-lives would be best later.
    """
    parts = list(by_network(results.where(results.table["examples_seen"] > 0)))
    figure, panels = figures.make_rows(parts, per_row=3, height=1.9, sharey=True, sharex=True)
    tried = sorted({life for _, network in parts for life in by_half_life(statistics.final_rows(network))})
    shades = figures.shades(len(tried))
    for axes, (name, network) in figures.filled(panels, parts):
        counts = {seen: by_half_life(part) for seen, part in network.by("examples_seen")}
        for life, shade in zip(tried, shades, strict=True):
            means = [found[life].scores.mean() for found in counts.values() if life in found]
            axes.plot(list(counts)[: len(means)], means, color=shade, marker=".", label=life_in_words(life))
        axes.set_title(textwrap.fill(name, 40), fontsize=7)
        axes.set_xscale("log")
        axes.set_xticks(list(counts), [f"{seen:,}" for seen in counts], fontsize=7)
        axes.minorticks_off()
    figures.label(panels, x="samples seen", y="test accuracy")
    panels[0][0].set_ylim(0, 1)
    figures.legend(figure, panels[0][0])
    return figure


QUESTION = app.Question(
    module="experiments.critical_period",
    question=__doc__,
    task=classification.TASK,
    claim=(
        "This project's own: an Oja rule that fades does better than a constant one, and better than the same dose given "
        "late or evenly."
    ),
    verdict=verdict,
    figures={
        "accuracy_by_half_life": accuracy_by_half_life,
        "accuracy_by_timing": accuracy_by_timing,
        "half_life_by_samples": half_life_by_samples,
    },
    axes=[
        Axis("timing", "fading,early,late,even", "When the dose is given", Names(TIMINGS), traced=True),
        Axis(
            "plastic",
            "all",
            "Layers with Oja's rule: all, or hidden, without the read-out",
            Names(("all", "hidden")),
            words="rule in {} layers",
            canonical="all",
        ),
    ],
    learner=learner,
    keep=keep,
    varies=("depth", "init", "feedback", "timing", "plastic"),
    requires={"timing": ("fading",)},
    defaults={
        "depth": "10,20",
        "init": "glorot_uniform,he_normal",
        "feedback": "backprop,random",
        "learning_rate": "1e-3,3e-3,1e-2",
        "oja_rate": "0,1e-3,3e-3",
        "oja_half_life": "250,500,1000,2000,inf",
        "evals": "1000,2000,5000",
    },
    table=table,
)

if __name__ == "__main__":
    app.run(QUESTION)
