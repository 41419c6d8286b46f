"""Does a meta-learned rule do well under conditions for which it was not meta-learned?

The rules that `experiments.meta_learning` learned with random feedback are used unchanged: their coefficients are the mean
over its meta-seeds. New networks learn by them in episodes of the same kind, of classes that had no part in meta-learning
(by coefficients learned without these), of another data set, with more images per class, and with more layers. In each of
these places they are compared with rules set by hand: the pseudo-gradient and Oja's rule, and the pseudo-gradient alone,
with random feedback and with backprop. With Oja's rule 12 settings are tried by hand, without it 6. They are chosen by the
accuracy in episodes of training images. The reported accuracy is from episodes of test images.
"""

from pathlib import Path

import numpy as np

from experiments.common import app, figures, statistics, verdicts, workdir
from experiments.common.errors import UserError
from experiments.common.files import read_json
from experiments.common.flags import BATCH_SIZE, Axis, Flag, kind_of_data, whole
from experiments.common.parsers import DataName, FilePath, Names, Numbers
from experiments.common.results import Results, Schema, Score
from experiments.common.task import Task
from experiments.tasks import episodes
from experiments.tasks.registry import POOL, POOLS, resolve

PLACES = {
    "home": "the same episodes",
    "classes": "other classes",
    "data": "other data",
    "samples": "more images",
    "depth": "more layers",
}
BY_HAND = "by_hand"
RULES = {
    BY_HAND: "set by hand",
    "alone": "found: pseudo-gradient alone",
    "oja": "found: with Oja",
    "ehebb_oja": "found: with eHebb and Oja",
}
# Rates for the pseudo-gradient alone; with Oja's rule they are far from the best.
ONLY_ALONE = (3e-3, 6e-3)
AXES = (
    Axis(
        "place",
        "home,classes,samples,depth",
        "Where the rules are tried: as they were found, or with other classes, data, more images per class, or more layers",
        Names(PLACES),
        words=lambda value: PLACES.get(value, value),
    ),
    Axis(
        "rule",
        ",".join(RULES),
        "The rule: set by hand, or found with that pool",
        Names(RULES),
        traced=True,
        words=lambda value: RULES.get(value.replace(" ", "_"), value),
    ),
    episodes.FEEDBACK,
    BATCH_SIZE,
    Axis(
        "hand_rate",
        "0,3e-3,6e-3,1.25e-2,2.5e-2,5e-2,0.1",
        "Coefficients of the pseudo-gradient that are set by hand; 0 is for the rules that were found.",
        Numbers(float, 0),
        traced=True,
        tuned=True,
        words="η = {:g}",
    ),
    Axis(
        "hand_oja_rate",
        "0,1e-2,2e-2,4e-2",
        "Coefficients of Oja's rule that are set by hand.",
        Numbers(float, 0),
        traced=True,
        tuned=True,
        words="θ = {:g}",
        canonical=0,
        natural_ends=(0.0,),
    ),
)
FLAGS = (
    *episodes.IMAGES_AND_NETWORK,
    Flag(
        "found",
        None,
        "Folder of a finished study of meta-learning, whose rules are used; by default meta_learning next to --workdir.",
        FilePath(),
        decides=False,  # The rules are part of the data, which are identified by their hash.
    ),
    Flag("other", "mnist", "The other data set, see --dataset.", DataName(), fixed=kind_of_data),
    Flag("more_images", 150, "Training images per class in the place with more images.", whole(1)),
    Flag("deeper", 2, "Copies of each hidden layer in the place with more layers.", whole(1)),
)


def keep(run):
    """Keeps rates only for rules set by hand. Backprop is only tried by hand, and without Oja's rule."""
    if run["rule"] != BY_HAND:
        return run["feedback"] == "random" and run["hand_rate"] == run["hand_oja_rate"] == 0
    if run["hand_oja_rate"] == 0:
        return run["hand_rate"] > 0
    return run["feedback"] == "random" and run["hand_rate"] > 0 and run["hand_rate"] not in ONLY_ALONE


def drawn_at(setting, place, held_out):
    """Returns the episodes of a place."""
    from experiments.tasks import meta_learners

    found = meta_learners.episodes_of(setting, slice(-held_out, None) if place == "classes" else slice(None))
    return found._replace(num_train=setting["more_images"]) if place == "samples" else found


def source_of(place):
    """Returns which of the two data sets a place has: `own`, or `other`."""
    return "other" if place == "data" else "own"


def load(settings):
    """Loads images by class, of the other data set too if it is asked for, and the found rules."""
    from ojax.datasets import Shared

    coefficients, held_out = found_in(settings)
    images, by_class = {"own": episodes.load_images(settings)}, {}
    if "data" in settings["place"]:
        images["other"] = episodes.load_images(settings.changed(dataset=settings["other"]))
    for place in dict.fromkeys(("home", *settings["place"])):  # All runs share the images at home, asked for or not.
        source = source_of(place)
        if place == "classes" and held_out < settings["classes"]:
            raise UserError(
                f"--place=classes: the study held out {held_out} classes, and an episode has {settings['classes']}."
            )
        try:
            by_class[source] = drawn_at(settings, place, held_out).of(images[source], settings["num_train"])
        except ValueError as error:
            raise UserError(f"--place={place}: {error}") from None
    train = {source: data.train["images"].arrays for source, data in by_class.items()}
    test = {source: data.test for source, data in by_class.items()}
    found = {"coefficients": coefficients, "held_out": np.array([held_out])}
    own = by_class["own"]
    shared = own.train | {"images": Shared(train)}
    return own._replace(train=shared, test=test | found, class_names=(), name=settings["dataset"])


def shown(setting, data):
    """Returns the images of a setting's place."""
    from ojax.datasets import Shared

    source = source_of(setting["place"])
    images = Shared(data.train["images"].arrays[source])
    return data._replace(train=data.train | {"images": images}, test=data.test[source])


def apart(setting, data):
    """Returns the images of the other data set if the setting's place has it."""
    if source_of(setting["place"]) == "own":
        return None
    return data.train["images"].arrays["other"], data.test["other"]


def found_in(settings):
    """Returns the rules' coefficients, learned on all classes and without the held-out ones, and the number of the latter.

    They do not depend on the grid's rules and places, so that a study can be extended by others.

    Returns:
      An array of shape (2, rules, 10), with zeros for rules that are set by hand or missing, and the number.
    """
    try:
        return _read(settings)
    except UserError:
        if set(settings["rule"]) == {BY_HAND}:  # Nothing that was found is used.
            return np.zeros((2, len(RULES), len(POOL)), np.float32), settings["classes"]
        raise


def _read(settings):
    """Returns what :func:`found_in` returns; raises UserError if the folder lacks a rule that is asked for."""
    import pandas as pd

    wanted = {int(place == "classes") for place in settings["place"]}
    table = np.zeros((2, len(RULES), len(POOL)), np.float32)
    folder = settings["found"] or Path(settings["workdir"]).parent / "meta_learning"
    path = Path(folder) / "results.csv"
    if not path.is_file():
        command = "python -m experiments.meta_learning --flagfile=experiments/flagfiles/meta_learning.flags"
        raise UserError(f"--found={folder}: no results.csv of meta-learning; {command} --workdir={folder} makes one.")
    found = pd.read_csv(path)
    _check_same_episodes(settings, Path(folder))
    if not {"pool", "feedback", "l1", "held_out", "coefficients", "meta_rate", "train_accuracy"} <= set(found):
        raise UserError(f"--found={folder}: its results.csv is not one of experiments.meta_learning.")
    schema = Schema(episodes.AXES, episodes.TASK.score)
    final = statistics.final_rows(Results(found, None, schema)).where(feedback="random", l1=0, coefficients="shared")
    if len(numbers := sorted({*map(int, final.table["held_out"])} - {0})) > 1:
        several = ", ".join(map(str, numbers))
        raise UserError(f"--found={folder}: it held out {several} classes; the place with other classes takes one number.")
    for index, rule in enumerate(RULES):
        names = list(POOLS.get(rule, ()))
        for without in (0, 1) if rule != BY_HAND else ():
            part = final.where((final.table["held_out"] > 0) == without, pool=rule)
            rows = part.table if part.table.empty else statistics.Tuned(part).runs.table
            if not rows.empty:
                places = [list(POOL).index(name) for name in names]
                table[without, index, places] = rows[[f"coefficient_{name}" for name in names]].mean()
            elif rule in settings["rule"] and without in wanted:
                words = "classes held out" if without else "no class held out"
                raise UserError(f"--found={folder}: there is no run of the pool {rule} with random feedback and {words}.")
    return table, *(numbers or [settings["classes"]])


def _check_same_episodes(settings, folder):
    """Checks that a study of meta-learning had such episodes and networks, as its rules are used unchanged.

    Of its data only the kind is compared.

    Raises:
      UserError: If it had not, or the folder has no such study.
    """
    held = read_json(folder / workdir.IDENTITY, {"question": str, "settings": dict})
    if held is None or held["question"] != "experiments.meta_learning":
        raise UserError(f"--found={folder}: its results.csv is not one of experiments.meta_learning.")
    mine, theirs = settings.fixed(), held["settings"]
    names = ("dataset", "side", "widths", "outputs", "classes", "images", "queries")
    if differing := [f"--{name}={theirs.get(name)}" for name in names if theirs.get(name) != mine[name]]:
        raise UserError(f"--found={folder}: its rules were found with {' '.join(differing)}: give that here too.")


def learner(setting, data):
    """Returns a learner of episodes by a fixed rule: a meta-learner without learned numbers."""
    import jax.numpy as jnp
    import optax

    from experiments.tasks import meta_learners
    from ojax import meta

    place = setting["place"]
    indices = [list(RULES).index(name) for name in setting["rule"]]
    table = jnp.asarray(data.test["coefficients"][int(place == "classes"), indices])
    names = ("pseudo_gradient",) if setting["feedback"] == "backprop" else ("pseudo_gradient", "ehebb", "oja")

    def coefficients(hyper):
        found = table[hyper["rule"].astype(jnp.int32)]
        by_hand = {"pseudo_gradient": hyper["hand_rate"], "oja": hyper["hand_oja_rate"]}
        return {name: found[list(POOL).index(name)] + by_hand.get(name, 0) for name in names}

    hidden = np.repeat(setting["widths"], setting["deeper"] if place == "depth" else 1).tolist()
    widths = [data.test[source_of(place)].shape[-1], *hidden, setting["outputs"]]
    rules = {name: resolve(POOL[name]) for name in names}
    inner = meta.classifier(widths, rules, feedback=setting["feedback"], coefficients=coefficients)
    fixed = meta.learner(
        inner,
        {},
        lambda hyper: optax.identity(),
        episodes=drawn_at(setting, place, int(data.test["held_out"][0])),
        num_test=setting["num_test"],
    )

    def evaluate(params, state, test, hyper):
        # The number of angles depends on the depth, and all runs must have equal columns.
        scores = fixed.evaluate(params, state, test, hyper)
        return {name: jnp.mean(score) for name, score in scores.items()} | meta_learners.guess_of(setting)

    return fixed._replace(evaluate=evaluate)


# The rules that are compared in each place, with their colours in figures (Okabe and Ito's).
COMPARED = {
    "found: with eHebb and Oja": "#E69F00",
    "found: with Oja": "#D55E00",
    "by hand: with Oja": "#009E73",
    "backprop, tuned": "#0072B2",
    "found: pseudo-gradient alone": "#CC79A7",
    "by hand: pseudo-gradient alone": "0.5",
}
FOUND, HAND, BACKPROP, ALONE = "found: with Oja", "by hand: with Oja", "backprop, tuned", "by hand: pseudo-gradient alone"


def compared(final):
    """Returns each rule in one place, by name, at the setting that the training images choose."""
    hand = final.where(rule=BY_HAND)
    random, oja = hand.table["feedback"] == "random", hand.table["hand_oja_rate"] > 0
    parts = {
        **{RULES[rule]: final.where(rule=rule) for rule in ("ehebb_oja", "oja", "alone")},
        HAND: hand.where(random & oja),
        BACKPROP: hand.where(~random),
        ALONE: hand.where(random & ~oja),
    }
    return {name: statistics.Tuned(parts[name]) for name in COMPARED if name in parts and not parts[name].table.empty}


def by_place(results):
    """Returns the compared rules of each place."""
    final = statistics.final_rows(results)
    return {place: compared(final.where(place=place)) for place in PLACES if (final.table["place"] == place).any()}


def verdict(results):
    """Judges the found rule with Oja's term in other places, against rules that are tuned there."""
    parts, evidence = [], []
    for place, found in by_place(results).items():
        for name in (RULES["ehebb_oja"], FOUND):  # The claim is about the last one.
            others = [other for other in (ALONE, HAND, BACKPROP) if name in found and other in found]
            # A found rule has no settings, so it is compared with the best of all settings by hand.
            gains = {other: statistics.mean_interval(found[name].scores - found[other].scores) for other in others}
            words = "".join(f"; gain over {_phrase(other)} {interval.signed()}" for other, interval in gains.items())
            if name in found:
                rule = name.replace("found:", "the rule found")
                evidence.append(f"{PLACES[place].capitalize()}: {rule} {found[name].accuracy}{words}.")
        if place != "home" and len(gains) == 3:
            for other in (HAND, BACKPROP):
                doubts = verdicts.doubts_about({FOUND: found[FOUND], _phrase(other): found[other]})
                parts.append(
                    verdicts.not_worse(
                        f"{PLACES[place]}: the rule found with Oja as good as {_phrase(other)}", gains[other], doubts
                    )
                )
    return verdicts.verdict_of(parts, evidence)


def _phrase(name):
    return name.replace("by hand: with Oja", "Oja's rule set by hand there").replace("by hand: p", "the tuned p")


def table(results):
    """Returns the accuracy of each rule in each place, and the chosen settings of rules set by hand."""
    found = by_place(results)
    names = [name for name in COMPARED if any(name in rows for rows in found.values())]
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for place, rows in found.items():
        cells = []
        for name in names:
            if name not in rows:
                cells.append("")
                continue
            best = rows[name]
            chosen = f" ({best.words})" if best.setting["hand_rate"] else ""
            lost = best.runs.table["test_lost"].mean()
            cells.append(f"{best.accuracy}{chosen}" + (f", {lost:.1%} lost" if lost else ""))
        lines.append(f"| {PLACES[place]} | {' | '.join(cells)} |")
    notes = (
        "Accuracy on query images of episodes of test images, with its 95 % interval over seeds. Lost are episodes in "
        "which the network diverged; their accuracy counts. Edges of the grid of rates that were chosen: "
    )
    edges = [
        f"{PLACES[place]}, {name}: {', '.join(best.edges)}"
        for place, rows in found.items()
        for name, best in rows.items()
        if best.edges
    ]
    return "\n".join([*lines, "", f"{notes}{'; '.join(edges) or 'none'}."])


def accuracy(results):
    """Draws the accuracy on test images by place and rule; points are seeds, bars 95 % intervals."""
    found = by_place(results)
    figure, panels = figures.make_panels(1, 1, width=4.8, height=0.75 * len(found) + 0.4)
    axes = panels[0][0]
    for row, rows in enumerate(found.values()):
        for number, (name, colour) in enumerate(COMPARED.items()):
            if name in rows:
                place = row + 0.12 * (number - 2.5)
                values = rows[name].scores
                marker = "o" if name.startswith("found") else "s"
                figures.interval_bar(axes, place, values, colour, horizontal=True, marker=marker, label=name)
    axes.set_yticks(range(len(found)), [PLACES[place] for place in found])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy on test images", xlim=(0, 1))
    figures.legend(figure, axes, columns=2)
    return figure


TASK = Task(
    axes=AXES,
    flags=FLAGS,
    complete=episodes.complete,
    load=load,
    learner=learner,
    score=Score(words="accuracy", samples="episodes"),
    shuffle=False,
    shown=shown,
    apart=apart,
)
QUESTION = app.Question(
    module="experiments.transfer",
    question=__doc__,
    claim="This project's own: a rule with Oja's term that was meta-learned under one condition does as well under others "
    "as rules that are tuned there.",
    verdict=verdict,
    task=TASK,
    varies=("place", "rule", "feedback"),
    figures={"accuracy": accuracy},
    methods="rule",
    defaults={"num_train": 12, "evals": "1"},
    keep=keep,
    table=table,
)

if __name__ == "__main__":
    app.run(QUESTION)
