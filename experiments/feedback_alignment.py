"""Does Oja's rule help when errors come back through random weights instead of the transposed forward weights?

Two kinds of random feedback are compared with backprop, in networks of 5 and 10 layers. Feedback alignment has a fixed
random matrix in place of each layer's transposed weights. Direct feedback alignment has one from the read-out to each
hidden layer. Three measures are taken in addition to the accuracy: the angle between each sample's pseudo-gradient and its
true gradient, the growth of the weights, and the cosine between forward and feedback weights.
"""

from experiments.common import app, figures, statistics, verdicts
from experiments.common.results import Results
from experiments.tasks import classification

COLUMNS = {
    "gradient_angle": "angle to true\ngradient (°)",
    "feedback_alignment": "cosine of\nW and B",
    "growth": "norm of W /\nfirst norm",
}


def with_growth(measures):
    """Adds the growth to the measures: each layer's weight norm over its norm at the first evaluation."""
    run = [axis.name for tuned in (False, True) for axis in statistics.axes_of(measures, tuned=tuned)] + ["seed", "layer"]
    norms = measures.table["weight_norm"]
    return measures.of(measures.table.assign(growth=norms / measures.table.groupby(run)["weight_norm"].transform("first")))


def hidden(measures):
    """Returns the hidden layers' measures: the read-out gets its true gradient with any feedback."""
    return measures.where(measures.table["layer"] < measures.table["depth"])


def verdict(results):
    """Judges the tuned gain under random and direct feedback; the evidence has angles and growth of weights."""
    parts, evidence = [], []
    measures = None if results.measures is None else statistics.final_rows(hidden(with_growth(results.layers)))
    for (depth, feedback), rows in statistics.final_rows(results).by("depth", "feedback", sort=False):
        comparison = statistics.compare(rows)
        if comparison is None or feedback == "backprop":
            continue
        parts.append(verdicts.part_of_comparison(f"{depth} layers, {feedback} feedback", comparison))
        evidence.append(verdicts.sentence(f"{depth} layers, {feedback} feedback", comparison))
        if measures is not None and depth > 1:
            part = measures.where(depth=depth, feedback=feedback)
            settings = (comparison.backprop.setting, comparison.hybrid.setting)
            means = [
                statistics.at_setting(part, setting).table.groupby("seed")[["gradient_angle", "growth"]].mean()
                for setting in settings
            ]
            (angle, growth), (angle_with, growth_with) = (
                [statistics.mean_interval(table[name].to_numpy()) for name in table] for table in means
            )
            evidence.append(
                f"Its hidden layers' mean angle to the true gradient ends at {_range(angle_with)}° with Oja, "
                f"{_range(angle)}° without. Their weight norms end at {_range(growth_with)} times the norms at the first "
                f"evaluation with Oja, {_range(growth)} times without."
            )
        diverged = [int(part.table["diverged"].sum()) for part in statistics.by_method(rows).values()]
        if any(diverged):
            evidence.append(f"Over all its settings {diverged[1]} runs with Oja and {diverged[0]} without diverged.")
    return verdicts.verdict_of(parts, evidence)


def accuracy_by_feedback(results):
    """Draws the final test accuracy by feedback, each rule at its own best; grey lines connect a seed's two runs."""
    parts = list(statistics.final_rows(results).by("depth"))
    figure, panels = figures.make_panels(1, len(parts), width=2.6, height=2.3, sharey=True)
    for axes, (depth, rows) in zip(panels[0], parts, strict=True):
        names = [name for name in ("backprop", "random", "direct") if name in set(rows.table["feedback"])]
        for place, name in enumerate(names):
            comparison = statistics.compare(rows.where(feedback=name))
            if comparison is None:
                continue
            figures.paired_bars(axes, place, comparison)
            axes.text(place, 0.84, comparison.gain().signed().replace(" ", "\n"), ha="center", fontsize=6)
        axes.set_xticks(range(len(names)), names)
        axes.set(title=f"{depth} layers", xlabel="feedback", ylim=(0, 1))
    panels[0][0].set_ylabel("test accuracy")
    figures.legend(figure, panels[0][0])
    return figure


def _random_feedback(results):
    """Returns the settings to show, without backprop's."""
    parts = (results, hidden(with_growth(results.layers)))
    rows, measures = (part.where(part.table["feedback"] != "backprop").table for part in parts)
    return figures.measured_settings(Results(rows, measures, results.schema))


def alignment_by_layer(results):
    """Draws gradient angle, alignment and growth of each hidden layer after training; bands are 95 % intervals."""
    return _rows_of_panels(_random_feedback(results), "layer", lambda part, column: statistics.final_rows(part))


def alignment_over_training(results):
    """Draws gradient angle, alignment and growth, averaged over hidden layers, against samples seen."""

    def averaged(part, column):
        return part.of(part.table.groupby(["seed", "examples_seen"], as_index=False)[column].mean())

    return _rows_of_panels(_random_feedback(results), "examples_seen", averaged)


def _rows_of_panels(chosen, x, prepare):
    if not chosen:
        figure, panels = figures.make_panels(1, 1, width=3, height=0.4)
        panels[0][0].set_axis_off()
        panels[0][0].text(0.5, 0.5, "no hidden layer learned by random feedback", ha="center", va="center")
        return figure
    figure, panels = figures.make_panels(len(chosen), len(COLUMNS), width=2.1, height=1.6, sharex="row", sharey="col")
    for row, (title, parts) in zip(panels, chosen, strict=True):
        for axes, (column, label) in zip(row, COLUMNS.items(), strict=True):
            for method, part in parts.items():
                rows = prepare(part, column)
                figures.curve(axes, rows.where(rows.table[column].notna()), method, x=x, y=column)
            chance = {"gradient_angle": 90, "feedback_alignment": 0, "growth": 1}[column]
            axes.axhline(chance, color="0.6", linewidth=0.6, zorder=0)
            if column == "growth":
                axes.set_yscale("log")
            axes.set(xlabel=x.replace("examples_seen", "samples seen"), ylabel=label)
        row[0].set_title(title, loc="left")
    figures.legend(figure, panels[0][0])
    return figure


def _range(interval):
    if interval.mean != interval.mean:
        return "(diverged)"
    ends = f" [{interval.low:.2f}, {interval.high:.2f}]" if interval.known else ""
    return f"{interval.mean:.2f}{ends}"


QUESTION = app.Question(
    module="experiments.feedback_alignment",
    question=__doc__,
    task=classification.TASK,
    abstract=(
        "random feedback alignment, often suffer from instability ...; Oja's plasticity rule ... yields stable, "
        "efficient learning"
    ),
    claim="With fixed feedback, random or direct, a deep network learns online better with Oja's rule than without.",
    verdict=verdict,
    varies=("depth", "feedback"),
    figures={"accuracy_by_feedback": accuracy_by_feedback},
    measure_figures={
        "alignment_by_layer": alignment_by_layer,
        "alignment_over_training": alignment_over_training,
    },
    defaults={"feedback": "backprop,random,direct", "evals": "0,500,1000,2000,3000,4000,5000", "measures": "true"},
)

if __name__ == "__main__":
    app.run(QUESTION)
