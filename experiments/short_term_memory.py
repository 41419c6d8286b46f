"""Does Oja's rule lengthen the short-term memory of a recurrent network?

A network of tanh units, h' = tanh(x U + h W), reads independent inputs, and recalls the inputs of the last steps. Its
memory capacity is measured with frozen weights: the sum over delays of r² of linear read-outs, fitted afterwards. Its
recall is measured with its own read-out, which learns online, one time step after the other. Either the read-out learns
alone, by the delta rule, or the error reaches the cell as well (RFLO with random feedback, BPTT through the last ten
steps). Oja's rule acts on U and W with the same postsynaptic activity, as on one stacked matrix; or on W alone; or with its
sign reversed. The rival is an orthogonal W that no rule has changed, of several gains and with smaller inputs too. Each
method has its own best rates.
"""

import numpy as np

from experiments.common import app, figures, markdown, statistics, verdicts
from experiments.common.errors import UserError
from experiments.common.results import Results
from experiments.common.statistics import METHODS, mean_interval
from experiments.tasks import stream
from experiments.tasks.registry import DELAYS_PER_COLUMN, LAGS, LEARNING, RECALLED

# Ranges of learning rates per learning method: the further the error goes, the smaller they must be.
RATES = {"readout": (3e-4, 3e-1), "rflo": (3e-4, 3e-2), "tbptt": (3e-4, 1e-2)}
# Gains, by initial scheme, of the recurrent weights of cells that learn by an error.
LEARNED_FROM = {"normal": (0.3, 1.0, 1.5), "orthogonal": (1.0,)}
INPUTS = 0.5


def complete(settings):
    """Returns the settings after checking that the stream has a memory capacity."""
    settings = stream.complete(settings)
    if settings["dataset"] not in RECALLED:
        raise UserError(
            f"--dataset={settings['dataset']}: this study counts the past inputs that are recalled, of "
            f"{' or '.join(RECALLED)} inputs. For another stream write a question of your own by experiments.tasks.stream."
        )
    return settings


def keep(run):
    """Keeps all gains for the read-out alone, few for cells with an error; small inputs and other rules on one side."""
    low, high = RATES.get(run["learning"], (0, np.inf))
    if not low <= run["learning_rate"] <= high:
        return False
    if run["rule"] != "stacked":  # Only this rule changes the cell, so one learning rate is enough.
        same = run["init"] == "normal" and run["input_scale"] == INPUTS and run["learning_rate"] == 1e-2
        return run["learning"] == "readout" and same
    if run["input_scale"] != INPUTS:
        return run["learning"] == "readout" and run["init"] == "orthogonal" and run["oja_rate"] == 0
    return run["learning"] == "readout" or run["init_gain"] in LEARNED_FROM[run["init"]]


def networks(final):
    """Yields, per learning method and network, the comparison without and with Oja's rule, each at its own best rates."""
    rows = final.where(rule="stacked", input_scale=INPUTS)
    for network, comparison in statistics.comparisons(rows, "learning", "init", "init_gain", sort=False).items():
        yield *network, comparison


def capacities(rows):
    """Returns the rows of networks whose cell has no error, by init, input scale, rule and Oja rate.

    Each is taken at its lowest learning rate, since the cell does not depend on it.
    """
    rows = rows[rows["learning"] == "readout"].sort_values("learning_rate", kind="stable")
    network = ["init", "input_scale", "rule", "oja_rate"]
    once = rows.drop_duplicates([*network, "init_gain", "seed", "examples_seen"])
    return dict(iter(once.groupby(network)))


def name_of(init, scale, rule, theta):
    """Returns a network's name in figures; normal weights are not named."""
    start = "" if init == "normal" else f"{init} W, " if scale == INPUTS else f"{init} W, inputs ±{scale:g}, "
    which = {"stacked": "Oja", "recurrent": "Oja on W alone", "anti": "anti-Oja"}[rule]
    return start + (f"{which} {theta:g}" if theta else "untrained")


def scored_by(results, column, chosen_by):
    """Returns the rows with another score column and another column that chooses settings."""
    schema = results.schema
    return Results(results.table, None, schema._replace(score=schema.score._replace(column=column, chosen_by=chosen_by)))


def in_capacity(comparison):
    """Returns the comparison by memory capacity, at settings chosen by the recall."""
    parts = (scored_by(method.part, "test_capacity", "train_r2") for method in comparison)
    return statistics.Comparison(*(statistics.Tuned(part) for part in parts))


def against(name, comparison, unit):
    """Returns a comparison in words."""
    with_oja, without = comparison.hybrid, comparison.backprop
    more = verdicts.gain_in_words(with_oja, without)
    return (
        f"{name}: {with_oja.accuracy} {unit} with Oja ({with_oja.words}) against {without.accuracy} without, gain {more}."
    )


def titled(learning, init, gain):
    """Returns a network in words."""
    words = {"readout": "read-out alone", "rflo": "RFLO", "tbptt": "truncated BPTT"}.get(learning, learning)
    return f"{words}, {'' if init == 'normal' else init + ' W, '}gain {gain:g}"


def best_of_all(final, column, chosen_by):
    """Returns the best runs with the read-out alone: normal weights with Oja's rule, orthogonal ones without and with it.

    For each kind, the initial gain and the scale of the inputs are chosen too, for each seed by the other seeds.

    Returns:
      The best runs by kind; empty if a kind is missing.
    """
    rows = scored_by(final.where(learning="readout", rule="stacked"), column, chosen_by)
    chosen = [axis._replace(tuned=axis.tuned or axis.name in ("init_gain", "input_scale")) for axis in rows.schema.axes]
    rows = Results(rows.table, None, rows.schema._replace(axes=tuple(chosen)))
    has_rule, is_normal = rows.table["oja_rate"] > 0, rows.table["init"] == "normal"
    kinds = {"Oja": is_normal & has_rule, "orthogonal": ~is_normal & ~has_rule, "both": ~is_normal & has_rule}
    parts = {kind: rows.where(mask) for kind, mask in kinds.items()}
    return {} if any(part.table.empty for part in parts.values()) else {k: statistics.Tuned(p) for k, p in parts.items()}


def verdict(results):
    """Judges gains in capacity by initial gain, in recall by network, and the best networks against orthogonal weights."""
    final = statistics.final_rows(results)
    capacity, recalled, evidence = [], [], []
    for learning, init, gain, comparison in networks(final):
        if learning == "readout" and init == "normal":
            by_capacity = in_capacity(comparison)
            capacity.append(verdicts.part_of_comparison(f"capacity, gain {gain:g}", by_capacity))
            evidence.append(against(f"Capacity, gain {gain:g}", by_capacity, "inputs"))
    for learning, init, gain, comparison in networks(final):
        if gain in LEARNED_FROM.get(init, ()):
            recalled.append(verdicts.part_of_comparison(f"recalled, {titled(learning, init, gain)}", comparison))
            evidence.append(against(f"Recalled, {titled(learning, init, gain)}", comparison, "inputs"))
    rivals = [*_against_orthogonal(final, "capacity", chosen_by="test_capacity")]
    rivals += _against_orthogonal(final, "recall", chosen_by="train_r2")
    headline = [_counted("the capacity is clearly larger", capacity), _counted("clearly more is recalled online", recalled)]
    first = f"With Oja's rule {'; '.join(words for words in headline if words)}."
    return verdicts.verdict_of([*capacity, *recalled], [first, *rivals, *evidence])


def _counted(words, parts):
    """Returns in how many comparisons the gain is clear, and by how much."""
    if not parts:
        return ""
    better = [part.gain.mean for part in parts if part._replace(doubts=()).holds]
    by = f", by {min(better):.1f} to {max(better):.1f} inputs" if better else ""
    return f"{words} in {len(better)} of {len(parts)} comparisons{by}"


def _against_orthogonal(final, words, *, chosen_by):
    """Yields a sentence on the best networks of the three kinds."""
    found = best_of_all(final, f"test_{words}", chosen_by)
    if found:
        oja, rival, both = found.values()
        more = statistics.gain(oja, rival)
        says = {1: "clearly more", 0: "no clear difference", -1: "clearly less"}[more.sign]
        yield (
            f"Best {words} of all networks, read-out alone: {oja.accuracy} with Oja from normal weights (gain "
            f"{oja.setting['init_gain']:g}, θ = {oja.setting['oja_rate']:g}) against {rival.accuracy} with an orthogonal W "
            f"that no rule has changed (gain {rival.setting['init_gain']:g}, inputs ±{rival.setting['input_scale']:g}): "
            f"{says}, {verdicts.gain_in_words(oja, rival)}. An orthogonal W with Oja has {both.accuracy}; its gain over "
            f"the one without is {verdicts.gain_in_words(both, rival)}."
        )


def table(results):
    """Returns tables of capacity by initial gain, for all delays and the first 60, and of recall at each method's best."""
    final = statistics.final_rows(results)
    series = capacities(final.table)
    gains = sorted({gain for rows in series.values() for gain in rows["init_gain"]})
    by_gain = [
        [name_of(*network), *(_capacity_cell(rows[rows["init_gain"] == gain]) for gain in gains)]
        for network, rows in series.items()
    ]
    recalled = []
    for learning, init, gain, comparison in networks(final):
        if gain in LEARNED_FROM.get(init, ()):
            cells = [comparison.of(method).accuracy for method in METHODS]
            rates = "; ".join(comparison.of(method).words for method in METHODS)
            recalled.append([titled(learning, init, gain), *cells, rates, comparison.gain().signed()])
    columns = ["network", "inputs recalled without Oja", "with Oja", "best rates", "gain, paired by seed"]
    tables = markdown.table(["weights", *(f"gain {gain:g}" for gain in gains)], by_gain), markdown.table(columns, recalled)
    return f"\n\n{_CAPACITY}\n\n".join(tables)


_CAPACITY = (
    "Memory capacity after the last step: mean ± standard deviation over seeds; in brackets, the mean for delays 1 to 60."
)


def _capacity_cell(rows):
    if rows.empty:
        return ""
    if rows["diverged"].any():
        return f"{rows['diverged'].sum()} of {len(rows)} diverged"
    columns, count = [name for name in rows if name.startswith("capacity_r2_")], 60 // DELAYS_PER_COLUMN
    # The last column may be the mean of fewer delays.
    all_are_first = len(columns) <= count
    first = rows["test_capacity"] if all_are_first else DELAYS_PER_COLUMN * rows[columns[:count]].sum(axis=1)
    return f"{rows['test_capacity'].mean():.1f} ± {rows['test_capacity'].std():.1f} ({first.mean():.1f})"


def curve_of(rows, prefix):
    """Returns the delays, and r² per seed (rows) and delay."""
    columns = [name for name in rows if name.startswith(prefix)]
    delays = DELAYS_PER_COLUMN * np.arange(len(columns)) + (DELAYS_PER_COLUMN + 1) / 2
    return delays, rows.sort_values("seed")[columns].to_numpy(np.float64)


def shown(final):
    """Returns the networks of the figures: each kind at its best Oja rate by capacity, and Oja's rule at all rates."""
    series = {network: rows for network, rows in capacities(final.table).items() if not rows["diverged"].all()}
    best: dict[tuple, tuple] = {}
    for (init, scale, rule, theta), rows in series.items():
        kind = (init, scale, rule, theta > 0)
        mean = rows["test_capacity"].mean()
        if mean > best.get(kind, (-1.0, None))[0]:
            best[kind] = (mean, (init, scale, rule, theta))
    kept = {network for _, network in best.values()}
    return {
        network: rows for network, rows in series.items() if network in kept or network[:3] == ("normal", INPUTS, "stacked")
    }


def style_of(init, scale, rule, theta):
    """Returns one colour per kind of network (Okabe and Ito's), and another line for other rates and small inputs."""
    if init == "normal":
        colour = {"stacked": "#D55E00", "recurrent": "#E69F00", "anti": "#000000"}[rule] if theta else "#999999"
    else:
        colour = "#CC79A7" if theta else "#0072B2"
    lines = {0.2: (0, (5, 1)), 5e-2: "-.", 2e-2: "--", 5e-3: "-", 0.0: ":"}  # By the rate that is exceeded.
    line = next((lines[rate] for rate in lines if theta > rate), "--" if scale != INPUTS else "-")
    return {"color": colour, "linestyle": line, "label": name_of(init, scale, rule, theta)}


def capacity(results):
    """Draws memory capacity against the initial gain, with 95 % bands (left), and r² against delay at gain 1 (right)."""
    final = statistics.final_rows(results)
    figure, panels = figures.make_panels(1, 2, width=3.2, height=3.2)
    left, right = panels[0]
    for network, rows in shown(final).items():
        style = style_of(*network)
        parts = list(rows[~rows["diverged"]].groupby("init_gain"))
        means, lows, highs, _ = np.transpose([mean_interval(part["test_capacity"].to_numpy()) for _, part in parts])
        gains = [gain for gain, _ in parts]
        left.plot(gains, means, marker="o", markersize=2.5, **style)
        left.fill_between(gains, lows, highs, color=style["color"], alpha=0.2, linewidth=0)
        at_one = min(gains, key=lambda gain: abs(np.log(gain)))
        delays, curves = curve_of(rows[rows["init_gain"] == at_one], "capacity_r2_")
        right.plot(delays, curves.mean(axis=0), **style)
    left.set(xscale="log", xlabel="initial gain of W", ylabel="memory capacity (inputs)", title="frozen weights, no error")
    ticks = [gain for gain in sorted(final.table["init_gain"].unique()) if gain == 1 or abs(np.log(gain)) > 0.05]
    left.set_xticks(ticks, [f"{gain:g}" for gain in ticks])
    left.minorticks_off()
    right.set(xlabel="delay (steps)", ylabel="r²", ylim=(0, 1.02), title="at gain 1")
    figures.legend(figure, left, columns=3)
    return figure


def recall(results):
    """Draws the inputs recalled by the online read-out: at equal learning rates (left), each at its own best (right)."""
    final = statistics.final_rows(results)
    ways = [name for name in LEARNING if name in set(final.table["learning"])]
    figure, panels = figures.make_panels(len(ways), 2, width=3.0, height=1.9, sharey=True, sharex="col")
    rows = final.where(rule="stacked", input_scale=INPUTS)
    for (left, right), way in zip(panels, ways, strict=True):
        mine = [found for found in networks(final) if found[0] == way and found[2] in LEARNED_FROM.get(found[1], ())]
        for place, (_, init, gain, comparison) in enumerate(mine):
            line = ("-", "--", ":", "-.")[place % 4]
            here = rows.where(learning=way, init=init, init_gain=gain)
            for method, part in statistics.by_method(here).items():
                best = {eta: statistics.Tuned(same).scores.mean() for eta, same in part.by("learning_rate")}
                style = {"color": figures.COLOURS[method], "marker": figures.MARKERS[method], "markersize": 3}
                left.plot(list(best), list(best.values()), linestyle=line, **style)
            for method, shift in zip(METHODS, (-0.12, 0.12), strict=True):
                figures.interval_bar(right, place + shift, comparison.of(method).scores, method)
        names = [
            f"{'' if init == 'normal' else init + ' '}gain {gain:g}".replace("l g", "l\ng") for _, init, gain, _ in mine
        ]
        right.set_xticks(range(len(names)), names)
        right.set_xlim(-0.5, max(len(names), 1) - 0.5)
        left.set(xscale="log", ylabel=f"{titled(way, 'normal', 1).partition(',')[0]}\ninputs recalled", ylim=(0, None))
    panels[0][0].set_title("at equal learning rates\n(solid, dashed, dotted, dash-dotted: as on the right)")
    panels[0][1].set_title("each at its own best")
    panels[-1][0].set_xlabel("learning rate η")
    figures.legend(figure, panels[0][1])
    return figure


def recall_by_delay(results):
    """Draws R² of the online recall of an input against its delay, each method at its best; bands are 95 % intervals."""
    final = statistics.final_rows(results)
    found = [entry for entry in networks(final) if entry[2] in LEARNED_FROM.get(entry[1], ())]
    # Other gains than those from which an error is learned leave nothing to draw.
    ways = [name for name in LEARNING if any(entry[0] == name for entry in found)] or ["readout"]
    most = max(1, *(sum(entry[0] == way for entry in found) for way in ways))
    figure, panels = figures.make_panels(len(ways), most, width=1.9, height=1.5, sharex=True, sharey=True)
    for row, way in zip(panels, ways, strict=True):
        mine = [entry for entry in found if entry[0] == way]
        for axes, (_, init, gain, comparison) in zip(row, mine, strict=False):
            for method in METHODS:
                delays, curves = curve_of(comparison.of(method).runs.table, "recall_r2_")
                mean, low, high, _ = np.transpose([mean_interval(column) for column in curves.T])
                axes.plot(delays, mean, color=figures.COLOURS[method], label=figures.LABELS[method])
                axes.fill_between(delays, low, high, color=figures.COLOURS[method], alpha=0.25, linewidth=0)
            axes.set_title(titled(way, init, gain).replace(", ", "\n", 1))
        for axes in row[len(mine) :]:
            axes.set_axis_off()
        row[0].set_ylabel("R² of recall")
    for axes in panels[-1]:
        axes.set_xlabel("delay (steps)")
    panels[0][0].set_ylim(0, 1.02)
    figures.legend(figure, panels[0][0])
    return figure


MEASURES = {
    "singular_value_p050": "singular values of W",
    "spectral_radius": "spectral radius of W",
    "effective_dimension": "effective dimension",
    "input_norm": "norm of U",
}


def dynamics(results):
    """Draws measures of a cell that no error reaches, during training, and the growth of a perturbation at the end.

    Singular values are the median and the range from the 10th to the 90th percentile. The effective dimension is the hidden
    state's. The last column is the norm of the product of the Jacobians over a lag. All are means over seeds.
    """
    over_time, final = capacities(results.table), statistics.final_rows(results)
    networks = [network for network in shown(final) if network[1] == INPUTS]
    networks = [network for network in networks if network[2] == "stacked" and not 0 < network[3] < 5e-3]
    tried = sorted(results.table["init_gain"].unique())
    gains = [gain for gain in (0.3, 1.0, 1.5) if gain in tried] or tried[:1]
    figure, panels = figures.make_panels(len(gains), len(MEASURES) + 1, width=1.55, height=1.5, sharex="col", sharey="col")
    for row, gain in zip(panels, gains, strict=True):
        for network in networks:
            style = style_of(*network)
            mine = over_time[network][over_time[network]["init_gain"] == gain]
            by_time = mine.groupby("examples_seen")
            for axes, column in zip(row, MEASURES, strict=False):
                means = by_time[column].mean()
                axes.plot(means.index, means, marker="o", markersize=2, **style)
            low, high = (by_time[f"singular_value_p{q:03}"].mean() for q in (10, 90))
            row[0].fill_between(low.index, low, high, color=style["color"], alpha=0.12, linewidth=0)
            norms = [column for column in mine if column.startswith("jacobian_norm_")]
            last = statistics.final_rows(results.of(mine)).table[norms].mean()
            row[-1].plot(LAGS, np.maximum(last, 1e-6), marker="o", markersize=2, **style)
        row[0].set(ylabel=f"gain {gain:g}", ylim=(0, 2.5))
        row[-1].set(xscale="log", yscale="log", ylim=(1e-3, 3))
    for axes, title in zip(panels[0], [*MEASURES.values(), "norm of the product\nof Jacobians"], strict=True):
        axes.set_title(title)
    for axes in panels[-1][:-1]:
        axes.set_xlabel("steps")
    panels[-1][-1].set_xlabel("lag (steps)")
    figures.legend(figure, panels[0][0], columns=3)
    return figure


QUESTION = app.Question(
    module="experiments.short_term_memory",
    question=__doc__,
    abstract=("improves short-term memory in recurrent networks"),
    claim="A recurrent network keeps a longer short-term memory with Oja's rule.",
    verdict=verdict,
    table=table,
    task=stream.TASK._replace(complete=complete),
    varies=("learning", "init", "init_gain", "input_scale", "rule"),
    figures={"capacity": capacity, "recall": recall, "recall_by_delay": recall_by_delay, "dynamics": dynamics},
    requires={"learning": ("readout",), "init": ("normal",), "rule": ("stacked",), "input_scale": (INPUTS,)},
    defaults={
        "init": "normal,orthogonal",
        "init_gain": "0.3,0.5,0.9,0.98,1,1.5",
        "input_scale": "0.5,0.1",
        "rule": "stacked,recurrent,anti",
        "learning_rate": "3e-4,1e-3,3e-3,1e-2,3e-2,1e-1",
        "oja_rate": "0,1e-3,1e-2,3e-2",
        "num_train": 20000,
        "evals": "0,1000,5000",
    },
    keep=keep,
)

if __name__ == "__main__":
    app.run(QUESTION)
