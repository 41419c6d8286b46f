"""Does Oja's rule slow the loss of plasticity when the data change, and does the effect of its early phase last?

A network learns a stream of images online, one task after the other, and is not told when the task changes. From task to
task pixels are permuted, labels are permuted, the input gain drifts, or classes come in sequence. Oja's rule, in the hidden
layers, is constant, fades once, or fades again when the loss tells of a change. It is compared with methods that are known
to keep networks plastic. Settings are chosen by the online accuracy in the first quarter of the tasks, for each seed by the
other seeds. They are judged by the online accuracy in the last half. Online accuracy scores each sample before its update,
so that learning a task faster shows.
"""

from experiments.common import app, figures, markdown, statistics, verdicts
from experiments.common.results import DIVERGED, SEED, SEEN, Results, Score
from experiments.tasks import comparing, continual
from experiments.tasks.registry import CONTINUAL, RIVAL, RULE

# Rivals that are compared in streams other than permuted pixels: the rules, and the three best rivals on permuted pixels in
# a pilot of ten tasks and two seeds.
ELSEWHERE = ("backprop", "oja", "fading_oja", "layer_norm", "adam", "upgd_features")
EARLY, LATE = "early_accuracy", "late_accuracy"
_HOW = (
    "Online accuracy scores each sample before its update; its mean over the last half of the tasks and over seeds has a "
    "95 % interval by Student's t. Each seed has the setting that is best for the other seeds in the first quarter of the "
    "tasks; the table names the one that all choose. Gains are paired by seed: the same initial weights, and the same "
    "samples in the same order. Dead units, effective rank and the test accuracy on the first task are measured after the "
    "last task."
)
_COLUMNS = (
    *("stream", "method", "online accuracy, last half", "gain over backprop", "change from the first quarter"),
    *("dead units", "effective rank", "test accuracy on the first task, at the end", "best setting", "settings tried"),
)
COLOURS = {
    "backprop": figures.COLOURS["backprop"],
    "oja": figures.COLOURS["hybrid"],
    "fading_oja": figures.COLOURS["fading"],
    "fading_again": "#CC79A7",
    "layer_norm": "#E69F00",
    "adam": "#56B4E9",
}


def keep(run):
    """Keeps all rivals for permuted pixels, and a few for other streams."""
    return run["change"] == "pixels" or run["rival"] in ELSEWHERE


def by_run(results):
    """Returns one row per run: its last evaluation, and its mean online accuracy in the first quarter and the last half."""
    table = results.table
    settings = [axis.name for axis in results.schema.axes if axis.name in table]
    task = table.groupby([*settings, SEED])[SEEN].rank(method="first")
    number = task.max()
    accuracy = results.schema.score.column
    means = {
        name: table[chosen].groupby([*settings, SEED])[accuracy].mean().rename(name)
        for name, chosen in ((EARLY, task <= max(number // 4, 1)), (LATE, task > number - max(number // 2, 1)))
    }
    last = table[task == number].set_index([*settings, SEED])
    rows = last.join(list(means.values())).reset_index()
    return Results(rows, None, results.schema._replace(score=Score(LATE, EARLY, "online accuracy")))


def by_network(results):
    """Yields, per stream and network, a name and each rival at its own best."""
    for name, part in statistics.networks(by_run(results), but="rival", always="change"):
        yield name, comparing.by_rival(part, CONTINUAL)


def change_of(best):
    """Returns the online accuracy in the last half minus that in the first quarter, paired by seed."""
    return statistics.mean_interval(best.scores - best.runs.table[EARLY].to_numpy())


def verdict(results):
    """Judges the gains of the constant and the fading rule over backprop in each stream."""
    parts, evidence, gains = [], [], {}
    for name, best in by_network(results):
        if "backprop" not in best:
            continue
        rules = {rival: best[rival] for rival in best if CONTINUAL[rival].kind == RULE}
        for rival, tuned in rules.items():
            if rival != "fading_again":
                parts.append(verdicts.part_of(f"{name}: {CONTINUAL[rival].label} over backprop", tuned, best["backprop"]))
        others = {rival: tuned for rival, tuned in best.items() if CONTINUAL[rival].kind == RIVAL and rival != "backprop"}
        words = [_told(rival, tuned) for rival, tuned in {"backprop": best["backprop"], **rules}.items()]
        if others:
            strongest = comparing.best_first(others)[0]
            words.append(f"the best rival is {_told(strongest, others[strongest])}")
            gains[name] = f"{CONTINUAL[strongest].label} {others[strongest].accuracy}"
        evidence.append(f"{name}: {'; '.join(words)}. In brackets is the change from the first quarter of the tasks.")
    return verdicts.verdict_of(parts, evidence, gains=gains)


def _told(rival, tuned):
    return f"{CONTINUAL[rival].label} {tuned.accuracy} ({change_of(tuned).mean:+.3f})"


def table(results):
    """Returns one row per rival, best first in each stream."""
    rows = []
    for name, best in by_network(results):
        for rival in comparing.best_first(best):
            tuned, runs = best[rival], best[rival].runs.table
            known = "backprop" in best and rival != "backprop"
            measured = [_mean(runs, column) for column in ("dead_units", "effective_rank", "test_first_accuracy")]
            gain = statistics.gain(tuned, best["backprop"]).signed() if known else ""
            cells = [name, CONTINUAL[rival].label, tuned.told, gain, change_of(tuned).signed()]
            rows.append([*cells, *measured, comparing.at(CONTINUAL[rival], tuned), tuned.setting.tried])
    return f"{markdown.table(_COLUMNS, rows)}\n\n{_HOW}"


def _mean(runs, column):
    return f"{runs.loc[~runs[DIVERGED], column].mean():.3g}" if column in runs else ""


def accuracy_by_task(results):
    """Draws the mean online accuracy per task, each method at its own best; grey lines, if any, are other rivals."""
    found = list(by_network(results))
    figure, panels = figures.make_rows(found, per_row=2, height=2.2)
    for axes, (name, best) in figures.filled(panels, found):
        for rival in sorted(best, key=lambda rival: rival in COLOURS):
            rows = _rows_at(results, best[rival])
            means = rows.groupby(SEEN)[results.schema.score.column].mean()
            style = {"color": COLOURS.get(rival, "0.75"), "linewidth": 1.2 if rival in COLOURS else 0.6}
            label = CONTINUAL[rival].label if rival in COLOURS else "other rivals"
            axes.plot(range(1, len(means) + 1), means, label=label, **style)
        axes.set_title(name)
    figures.label(panels, x="task", y="online accuracy")
    figures.legend(figure, *panels.flat, columns=4)
    return figure


def _rows_at(results, tuned):
    """Returns all evaluations of the reported runs."""
    settings = [axis.name for axis in results.schema.axes if axis.name in results.table]
    return results.table.merge(tuned.runs.table[[*settings, SEED]], on=[*settings, SEED])


def search_budget(results):
    """Draws the expected online accuracy, in the last half of the tasks, of the best of k settings against k."""
    return figures.search_budget(by_run(results), "rival")


QUESTION = app.Question(
    module="experiments.continual",
    question=__doc__,
    claim=(
        "This project's own: in a stream that changes, Oja's rule improves the online accuracy in the last half of the "
        "tasks, at a constant rate and at one that fades within the first few tasks."
    ),
    verdict=verdict,
    figures={
        "accuracy_by_task": accuracy_by_task,
        "search_budget": search_budget,
    },
    task=continual.TASK,
    keep=keep,
    varies=("change", "depth", "init", "init_gain", "activation", "rival"),
    requires={"rival": ("backprop",)},
    both_methods=False,
    defaults={"change": "pixels,labels,gain,classes", "depth": "5", "num_train": 20_000, "num_test": 500},
    table=table,
)

if __name__ == "__main__":
    app.run(QUESTION)
