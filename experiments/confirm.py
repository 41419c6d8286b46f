"""Which of the headline results hold on seeds that no pilot and no study used?

Each comparison was frozen, with the settings of both of its sides, before these seeds were run: `experiments/confirm.json`
has the date. Nothing is tuned here. With `--dataset=fashion_mnist`, the embedded images, with which the settings were
chosen, are left out of the test images.
"""

import json
import textwrap
from pathlib import Path

import numpy as np

from experiments.common import app, figures, markdown, statistics, verdicts
from experiments.common.flags import Axis
from experiments.common.parsers import Names, format_list
from experiments.common.results import SEED
from experiments.tasks import classification
from experiments.tasks.registry import ANATOMY, resolve

FROZEN = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
COMPARISONS = FROZEN["comparisons"]
# Oja's rule in all layers, in place of an arm of the anatomy.
WHOLE = "whole"
# Axes in which the two sides of a comparison may differ.
AXES = ("depth", "init", "feedback", "learning_rate", "oja_rate", "oja_half_life", "arm", *classification.NO_STRESS)

# The frozen values of the other axes.
OTHERS = {axis.name: axis.canonical for axis in classification.TASK.axes if axis.name not in AXES} | {"init_gain": 1.0}


def learner(setting, data):
    """Returns the task's learner with Oja's rule, or with an arm of the anatomy, whose own parameter is `oja_rate`."""
    if setting["arm"] == WHOLE:
        return classification.learner(setting, data)
    arm = ANATOMY[setting["arm"]]
    rule = resolve(arm.rule)
    return classification.learner(
        setting, data, network=resolve(arm.network), rule=lambda hyper: rule(hyper["learning_rate"], hyper["oja_rate"])
    )


def load(settings):
    """Loads the task's data; from the whole of Fashion-MNIST the test images of the embedded set are left out."""
    from ojax import datasets

    if settings["dataset"] != "fashion_mnist":
        return classification.load(settings)
    whole = classification.load(settings.changed(num_test=0))
    embedded = set(_as_bytes(datasets.load().test.inputs))
    kept = np.array([image not in embedded for image in _as_bytes(whole.test.inputs)])
    test = datasets.Examples(*(array[kept][: settings["num_test"] or None] for array in whole.test))
    return whole._replace(test=test)


def _as_bytes(images):
    return [image.tobytes() for image in np.round(np.asarray(images) * 255).astype(np.uint8)]


def side(runs):
    """Returns one side of a comparison as the values of its axes; by default the whole rule and no stress."""
    runs = {"arm": WHOLE, **classification.NO_STRESS, **runs}
    return tuple(float(runs[axis]) if axis == "oja_half_life" else runs[axis] for axis in AXES)


SIDES = [side(comparison[which]) for comparison in COMPARISONS for which in ("one", "other")]
_KEPT = frozenset(SIDES)


def keep(run):
    """Keeps only the two sides of each comparison, with every other axis as it was frozen."""
    return side(run) in _KEPT and all(run[name] == value for name, value in OTHERS.items())


def runs_of(final, wanted):
    """Returns the runs of one side, which have a single setting."""
    return final.where(**dict(zip(AXES, side(wanted), strict=True)))


def compared(results):
    """Yields each comparison whose runs are there, as it is frozen and as a part of the claim, with its two sides.

    A comparison that was made after results on some seeds had been seen has the first seed for which it is frozen.
    """
    final = statistics.final_rows(results)
    for comparison in COMPARISONS:
        if comparison.get("first_seed", 0) <= final.table[SEED].min():
            sides = [runs_of(final, comparison[which]) for which in ("one", "other")]
            if not any(runs.table.empty for runs in sides):  # `--depth=10`, say, leaves some comparisons out.
                one, other = map(statistics.Tuned, sides)
                yield comparison, verdicts.part_of(comparison["name"], one, other), one, other


def verdict(results):
    """Judges each comparison as a part; the frozen settings have no edges, as nothing is chosen here."""
    found = list(compared(results))
    parts = [part for _, part, *_ in found]
    dates = sorted({comparison.get("frozen", FROZEN["frozen"]) for comparison, *_ in found})
    judged = verdicts.verdict_of(parts, [], corrected=True)
    alone, corrected = sum(part.holds for part in parts), sum(part["says"] == "holds" for part in judged.parts)
    counted = f"{alone} of {len(parts)} hold if each is tested by itself, {corrected} after Holm's correction"
    told = f"Comparisons and settings were fixed on {' and '.join(dates)}; {counted}."
    return judged._replace(evidence=[told if found else "No comparison has the runs of both of its sides here."])


def table(results):
    """Returns one row per comparison."""
    rows = []
    for (comparison, part, *sides), judged in zip(compared(results), verdict(results).parts, strict=True):
        names = zip(sides, ("one", "other"), strict=True)
        first, second = (f"{runs.told} ({_setting(comparison[which])})" for runs, which in names)
        rows.append([part.name, first, second, part.gain.signed(), judged["says"]])
    columns = ["comparison, first over second", "first", "second", "gain, paired by seed", "after Holm's correction"]
    return markdown.table(columns, rows)


def _setting(wanted):
    """Returns the rates of one side in words: the learning rate, and the rate or parameter of its rule."""
    symbol = ANATOMY[wanted["arm"]].symbol if "arm" in wanted else "θ"
    if not symbol:  # An arm without a parameter multiplies the learning rate.
        return f"η = {wanted['learning_rate'] * wanted['oja_rate']:g}"
    words = [f"η = {wanted['learning_rate']:g}"]
    if wanted["oja_rate"]:
        words.append(f"{symbol} = {wanted['oja_rate']:g}")
    if np.isfinite(float(wanted["oja_half_life"])):
        words.append(f"half-life {wanted['oja_half_life']:g}")
    return ", ".join(words)


def gains(results):
    """Draws the gain of each comparison; points are seeds, bars 95 % intervals."""
    found = list(compared(results))
    figure, panels = figures.make_panels(1, 1, width=figures.WIDTH, height=0.3 * len(found) + 0.5)
    for row, (_, _, one, other) in enumerate(found):
        figures.interval_bar(panels[0][0], row, one.scores - other.scores, "#D55E00", horizontal=True, marker="s")
    names = [textwrap.fill(part.name, 48) for _, part, *_ in found]
    panels[0][0].set_yticks(range(len(found)), names, fontsize=7, linespacing=0.95)
    panels[0][0].set(xlabel="gain in test accuracy", ylim=(max(len(found), 1) - 0.5, -0.5))
    panels[0][0].axvline(0, color="0.6", linewidth=0.6, zorder=0)
    return figure


def _values(axis):
    return format_list(tuple(dict.fromkeys(values[AXES.index(axis)] for values in SIDES)))


def _is_alone(arm):
    """Returns whether an arm is only a rule or a network: it does nothing before learning and learns no other weights."""
    return arm.before is None and arm.learning is None and arm.init is None


QUESTION = app.Question(
    module="experiments.confirm",
    question=__doc__,
    task=classification.TASK,
    claim="This project's own: its headline results hold on other seeds.",
    verdict=verdict,
    figures={"gains": gains},
    axes=[
        Axis(
            "arm",
            WHOLE,
            "Oja's rule in all layers (whole), or an arm of the anatomy in the hidden ones, whose parameter is --oja_rate",
            Names((WHOLE, *(name for name, arm in ANATOMY.items() if _is_alone(arm)))),
            canonical=WHOLE,
        )
    ],
    learner=learner,
    data=load,
    defaults={axis: _values(axis) for axis in AXES} | {"num_train": 4000, "evals": "4", "seed": 300, "seeds": 16},
    keep=keep,
    both_methods=False,
    table=table,
)

if __name__ == "__main__":
    app.run(QUESTION)
