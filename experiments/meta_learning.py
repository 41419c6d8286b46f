"""Which local rule does meta-learning choose?

In each episode a network starts with new weights and new feedback, and learns five classes online from 50 images of each.
Its rule is a sum of local rules, whose coefficients all layers share. The loss on ten more images of each class is
differentiated through the whole episode, and its gradient changes the coefficients (Adam, after clipping). The pools of
rules are the pseudo-gradient alone, with each of the nine others, with eHebb and Oja, and all ten. They learn with random
feedback, some also with backprop and direct feedback. An L1 norm of the coefficients tells which of the ten can be left
out. Meta-accuracy is the accuracy on the ten images of each class. On test images it is measured in episodes that had no
part in meta-learning. An episode in which the network diverges adds nothing to the meta-gradient; the table has the share
of these episodes.
"""

import numpy as np

from experiments.common import app, figures, markdown, statistics, verdicts
from experiments.common.statistics import mean_interval
from experiments.tasks import episodes
from experiments.tasks.registry import POOL, POOLS

# The axes of a setting.
SETTING = ("feedback", "pool", "l1", "held_out")
# Pools that figures show over episodes; Okabe and Ito's palette.
COLOURS = {"alone": "#0072B2", "ehebb": "#009E73", "oja": "#D55E00", "ehebb_oja": "#E69F00", "all": "#CC79A7"}
LINES = {"random": "-", "backprop": "--", "direct": ":"}


def keep(run):
    """Keeps all pools for random feedback; for other feedback, the pseudo-gradient alone and with Oja.

    L1 is kept for the pool of all rules. Held-out classes are kept for the pools of :mod:`experiments.transfer`.
    """
    if run["held_out"] and (run["feedback"] != "random" or run["pool"] not in episodes.TAKEN_ELSEWHERE or run["l1"]):
        return False
    return (run["feedback"] == "random" or run["pool"] in ("alone", "oja")) and (run["l1"] == 0 or run["pool"] == "all")


def settings_of(results):
    """Returns the rows of all seeds at the best meta-rate, by feedback, pool, L1 and number of classes held out."""
    best = {key: statistics.Tuned(part).setting for key, part in statistics.final_rows(results).by(*SETTING, sort=False)}
    return {key: statistics.at_setting(part, best[key]).table for key, part in results.by(*SETTING, sort=False)}


def canonical_of(results):
    """Returns the rows of all seeds by feedback and pool, without L1 and without held-out classes."""
    return {key[:2]: rows for key, rows in settings_of(results).items() if not any(key[2:])}


def named(results, setting):
    """Returns a setting in words."""
    return results.schema.named(dict(zip(SETTING, setting, strict=False)))


def accuracy(rows, column="test_accuracy"):
    """Returns the mean accuracy with its interval over meta-seeds."""
    return mean_interval(rows[column].to_numpy())


def tuned(final, feedback, pool):
    """Returns one pool without L1 and held-out classes, at its best meta-rate; None if it is missing."""
    part = final.where(feedback=feedback, pool=pool, l1=0, held_out=0)
    return None if part.table.empty else statistics.Tuned(part)


def survivors(rows):
    """Returns the rules whose coefficient is clearly not 0 and above Adam's step of two episodes, with its interval."""
    least = 2 * rows["meta_rate"].max()
    found = {name: accuracy(rows, f"coefficient_{name}") for name in POOL if f"coefficient_{name}" in rows}
    return {name: interval for name, interval in found.items() if interval.sign and abs(interval.mean) > least}


def verdict(results):
    """Judges Oja's term with random feedback against the pseudo-gradient alone, and against backprop."""
    final = statistics.final_rows(results)
    with_oja, alone = tuned(final, "random", "oja"), tuned(final, "random", "alone")
    backprop = tuned(final, "backprop", "alone")
    evidence = [
        f"{words[0].upper()}{words[1:]}: meta-accuracy {accuracy(rows)}, at {_coefficients(key[1], rows)}."
        for key, rows in canonical_of(final).items()
        if key[1] in COLOURS and (words := named(results, key))
    ]
    parts = []
    if with_oja is not None and alone is not None:
        parts.append(verdicts.part_of("random feedback: with Oja's rule over the pseudo-gradient alone", with_oja, alone))
    if with_oja is not None and backprop is not None:
        doubts = verdicts.doubts_about({"Oja's rule": with_oja, "backprop": backprop})
        difference = statistics.gain(with_oja, backprop)
        parts.append(
            verdicts.not_worse("random feedback with Oja's rule as good as backprop without it", difference, doubts)
        )
    evidence = [f"{part.name[0].upper()}{part.name[1:]}: {part.gain.signed()}." for part in parts] + evidence
    lost = lost_episodes(results)
    for key, rows in settings_of(final).items():
        if key[1] == "all":
            kept = [f"{name} ({interval.signed()})" for name, interval in survivors(rows).items()]
            evidence.append(
                f"Of all ten with L1 {key[2]:g} these survive: {', '.join(kept) or 'none'}; {lost[key]:.1%} of episodes "
                "were lost to divergence."
            )
    if len(parts) < 2:
        return verdicts.verdict_of([], evidence)
    return verdicts.verdict_of(parts, evidence, doubts=verdicts.single(results, "meta_rate"))


def _coefficients(pool, rows):
    means = {name: rows[f"coefficient_{name}"].mean() for name in POOLS[pool]}
    return ", ".join(f"{name} {mean:.4f}" for name, mean in means.items() if abs(mean) >= 5e-5) or "coefficients near 0"


def lost_episodes(results):
    """Returns the share of training episodes in which the network diverged, per setting."""
    found = {}
    for key, rows in settings_of(results).items():
        rows = rows[rows["train_lost"].notna()]  # Each row is the mean since the evaluation before.
        seen = np.unique(rows["examples_seen"])
        episodes_of_row = rows["examples_seen"].map(dict(zip(seen, np.diff(seen, prepend=0), strict=True)))
        found[key] = np.average(rows["train_lost"], weights=episodes_of_row) if len(rows) else np.nan
    return found


def table(results):
    """Returns meta-accuracy, meta-loss, lost episodes, angle of the errors and coefficients, one row per pool."""
    final = statistics.final_rows(results)
    columns = ["feedback, pool", "meta-accuracy", "on training images", "meta-loss", "episodes lost"]
    columns += ["angle to true gradient", "coefficients"]
    lines = []
    angles, lost = [name for name in final.table if name.startswith("test_error_angle_")], lost_episodes(results)
    for key, rows in settings_of(final).items():
        known = rows[angles].to_numpy()[np.isfinite(rows[angles].to_numpy())]
        angle = f"{known.mean():.0f}°" if known.size and key[0] != "backprop" else ""
        scores = accuracy(rows), accuracy(rows, "train_accuracy"), f"{rows['test_loss'].mean():.3g}", f"{lost[key]:.1%}"
        lines.append([named(results, key), *scores, angle, _coefficients(key[1], rows)])
    notes = (
        "Meta-accuracy, meta-loss and the mean angle of the errors are from episodes of test images. Meta-accuracy on "
        "training images is the mean over the episodes of the last interval. Lost are training episodes in which the "
        "network diverged: they add nothing to the meta-gradient, and their accuracy counts."
    )
    return f"{markdown.table(columns, lines)}\n\n{notes}"


def over_episodes(results):
    """Draws meta-accuracy and meta-loss on training images against episodes; bands are 95 % intervals over meta-seeds.

    The loss of all ten rules is not shown: an episode that nearly diverges has an unbounded loss.
    """
    figure, panels = figures.make_panels(1, 2, width=3.2, height=2.6)
    for (feedback, pool), rows in canonical_of(results).items():
        if pool not in COLOURS:
            continue
        columns = ("train_accuracy",) if pool == "all" else ("train_accuracy", "train_loss")
        for axes, column in zip(panels[0], columns, strict=False):
            style = {"color": COLOURS[pool], "linestyle": LINES[feedback], "label": named(results, (feedback, pool))}
            _band(axes, rows[rows["examples_seen"] > 0], column, **style)
    panels[0][0].set(xlabel="episodes", ylabel="meta-accuracy", ylim=(0, 1))
    panels[0][1].set(xlabel="episodes", ylabel="meta-loss (nats)", ylim=(0, 5))
    figures.legend(figure, panels[0][0], columns=3)
    return figure


def _band(axes, rows, column, **style):
    seeds = rows.pivot_table(index="examples_seen", columns="seed", values=column, dropna=False)
    seeds = seeds[np.isfinite(seeds).any(axis=1)]
    if seeds.empty:  # In all of these episodes the network diverged.
        return
    mean, low, high, _ = np.transpose([mean_interval(row[np.isfinite(row)]) for row in seeds.to_numpy()])
    axes.plot(seeds.index, mean, **style)
    axes.fill_between(seeds.index, low, high, color=style["color"], alpha=0.15, linewidth=0)


def by_pool(results):
    """Draws the final meta-accuracy on test images by feedback and pool; points are meta-seeds, bars 95 % intervals."""
    final = statistics.final_rows(results)
    found = canonical_of(final)
    keys = sorted(found, key=lambda key: (key[0] == "random", found[key]["test_accuracy"].mean()))
    figure, panels = figures.make_panels(1, 1, width=4.6, height=0.19 * len(keys) + 0.5)
    for place, key in enumerate(keys):
        colour = COLOURS.get(key[1], "0.5")
        figures.interval_bar(
            panels[0][0], place, found[key]["test_accuracy"].to_numpy(), colour, horizontal=True, marker="o"
        )
    panels[0][0].set_yticks(range(len(keys)), [named(results, key) for key in keys])
    panels[0][0].set(xlabel="meta-accuracy", xlim=(0, 1))
    return figure


def coefficients(results):
    """Draws the coefficients against episodes, by pool, with random feedback; bands are 95 % intervals over meta-seeds."""
    random = settings_of(results.where(feedback="random"))
    shown = {key: part for key, part in random.items() if key[1] in ("oja", "ehebb_oja", "all") and not key[3]}
    chosen = shown or random or settings_of(results)
    figure, panels = figures.make_panels(1, len(chosen), width=6.6 / len(chosen), height=2.4, sharey=True)
    main = {"pseudo_gradient": COLOURS["alone"], "ehebb": COLOURS["ehebb"], "oja": COLOURS["oja"]}
    others = [name for name in POOL if name not in main]
    colours = main | dict(zip(others, figures.shades(len(others)), strict=True))
    for axes, (key, part) in zip(panels[0], chosen.items(), strict=True):
        for name in POOLS[key[1]]:
            style = {"color": colours[name], "linestyle": "-" if name in main else "--"}
            label = {"ehebb": "eHebb", "oja": "Oja"}.get(name, name.replace("_", " "))
            _band(axes, part, f"coefficient_{name}", label=label, **style)
        axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        axes.set(xlabel="episodes", title=named(results, key).partition(", ")[2])
    panels[0][0].set_ylabel("coefficient")
    figures.legend(figure, *panels[0], columns=5)
    return figure


def alignment(results):
    """Draws the angle between each hidden layer's error and its true gradient, on test images after the last episode."""
    final = statistics.final_rows(results)
    columns = [name for name in final.table if name.startswith("test_error_angle_")]
    figure, panels = figures.make_panels(1, 1, width=4.6, height=2.6)
    axes, layers = panels[0][0], 1 + np.arange(len(columns))
    for (feedback, pool), rows in canonical_of(final).items():
        if pool in COLOURS and feedback != "backprop":
            angles = rows[columns].to_numpy()
            mean, low, high, _ = np.transpose([mean_interval(angle[np.isfinite(angle)]) for angle in angles.T])
            style = {"color": COLOURS[pool], "linestyle": LINES[feedback], "label": named(results, (feedback, pool))}
            bars = np.nan_to_num([mean - low, high - mean])
            axes.errorbar(layers, mean, bars, marker="o", markersize=3, capsize=2, **style)
    axes.axhline(90, color="0.6", linewidth=0.6, zorder=0)
    axes.set(xlabel="hidden layer", ylabel="angle of the error to\nthe true gradient (°)", xticks=layers)
    figures.legend(figure, axes, columns=2)
    return figure


QUESTION = app.Question(
    module="experiments.meta_learning",
    question=__doc__,
    abstract=(
        "meta-learned local plasticity rules incorporating Oja's principle not only match but surpass standard "
        "backpropagation in data-scarce regimes"
    ),
    claim="With random feedback and little data, meta-learned local rules do better with Oja's term than without, and as "
    "well as backprop.",
    verdict=verdict,
    task=episodes.TASK,
    varies=("pool", "feedback", "l1", "held_out"),
    methods="pool",
    figures={
        "over_episodes": over_episodes,
        "by_pool": by_pool,
        "coefficients": coefficients,
        "alignment": alignment,
    },
    defaults={
        "pool": ",".join(POOLS),
        "feedback": "random,backprop,direct",
        "num_train": 600,
        "evals": "12",
    },
    keep=keep,
    table=table,
)

if __name__ == "__main__":
    app.run(QUESTION)
