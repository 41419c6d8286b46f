"""Figures of results tables, for a screen (PNG) and for a paper (PDF).

Matplotlib is imported when something is drawn, since every experiment names its figures before it has read its flags.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.common import statistics
from experiments.common.statistics import METHODS, Comparison, Tuned, final_rows, mean_interval, networks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from experiments.common.tables import Tables
    from experiments.common.workdir import Workdir

    Drawings = Mapping[str, Callable[[Tables], Figure]]

# Okabe and Ito's palette, which colour-blind readers can tell apart; the markers tell them apart in print.
COLOURS = {"backprop": "#0072B2", "hybrid": "#D55E00"}
MARKERS = {"backprop": "o", "hybrid": "s"}
LABELS = {"backprop": "without Oja", "hybrid": "with Oja"}
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}


def save(folder: Workdir, name: str, draw: Callable[[Tables], Figure], tables: Tables) -> Figure:
    """Draws `figures/NAME.png` and `.pdf`."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure = drawn(draw, tables)
        for suffix, options in ((".png", {"dpi": 200}), (".pdf", {"metadata": {"CreationDate": None}})):
            with folder.replacing(f"figures/{name}{suffix}") as path:
                figure.savefig(path, **options)
            figure.set_layout_engine("none")  # What the first file has found; finding it takes most of the time.
        return figure


def drawn(draw: Callable[[Tables], Figure], tables: Tables) -> Figure:
    """A figure in the style of all."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        return draw(tables)


def learning_curves(tables: Tables) -> Figure:
    """Test accuracy against samples seen, one panel a learning rate and one with each method at its own best.

    At each learning rate the hybrid has the Oja rate that does best there. Thin lines are seeds; bands are 95 %
    intervals of the mean.
    """
    parts = list(networks(tables.results))
    rates = sorted(tables.results["learning_rate"].unique())
    tuned = len(rates) > 1
    figure, panels = make_panels(len(parts), len(rates) + tuned, width=1.75, height=1.7, sharex=True, sharey=True)
    for row, (title, table) in zip(panels, parts, strict=True):
        columns = [table[table["learning_rate"] == rate] for rate in rates] + [table] * tuned
        titles = [f"both at η = {rate:g}" for rate in rates] + ["each at its own best"] * tuned
        for axes, part, panel_title in zip(row, columns, titles, strict=True):
            settings = []
            for method in METHODS:
                rows = final_rows(part[part["method"] == method])
                if not rows.empty:
                    setting = statistics.best_setting(rows)
                    curve(axes, statistics.at_setting(part, setting), method)
                    settings.append(setting)
            axes.set_title(f"{panel_title}\n{_rates_text(settings, own_best=part is table)}")
        row[0].set_ylabel(_wrapped(title))
    for axes in panels[-1]:
        axes.set_xlabel("samples seen")
    panels[0][0].set_ylim(0, 1)
    legend(figure, panels[0][0])
    return figure


def accuracy_plane(tables: Tables) -> Figure:
    """Final test accuracy over the plane of the two rates, one panel a network; runs that diverged are counted."""
    parts = list(networks(final_rows(tables.results)))
    num_rates = tables.results["learning_rate"].nunique(), tables.results["oja_rate"].nunique()
    width, height = max(2.4, 0.75 + 0.55 * num_rates[0]), max(1.8, 0.9 + 0.35 * num_rates[1])
    figure, panels = make_panels(1, len(parts), width=width, height=height)
    for axes, (title, rows) in zip(panels[0], parts, strict=True):
        plane = rows.pivot_table(index="oja_rate", columns="learning_rate", values="test_accuracy", aggfunc="mean")
        lost = rows.pivot_table(index="oja_rate", columns="learning_rate", values="diverged", aggfunc="sum")
        image = axes.imshow(plane, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis")
        for (y, x), accuracy in np.ndenumerate(plane.to_numpy()):
            diverged = int(lost.iloc[y, x])
            note = f"\n{diverged} diverged" if diverged else ""
            colour = "black" if accuracy > 0.6 else "white"
            axes.text(x, y, f"{accuracy:.2f}{note}", ha="center", va="center", color=colour, fontsize=7)
        axes.set_xticks(range(plane.shape[1]), [f"{rate:g}" for rate in plane.columns])
        axes.set_yticks(range(plane.shape[0]), [f"{rate:g}" if rate else "0 (backprop)" for rate in plane.index])
        axes.set(title=title, xlabel="learning rate η")
        axes.spines[:].set_visible(False)
    panels[0][0].set_ylabel("Oja rate θ")
    figure.colorbar(image, ax=panels[0], label="test accuracy")
    return figure


def backprop_vs_hybrid(tables: Tables) -> Figure:
    """The two methods at equal learning rates (left), and each at its own best, paired by seed (right).

    At each learning rate the hybrid has the Oja rate that does best there. Points are seeds, bars 95 % intervals.
    """
    parts = list(networks(final_rows(tables.results)))
    figure, panels = make_panels(len(parts), 2, width=2.6, height=2.0, sharey=True, width_ratios=[1.5, 1])
    for (left, right), (title, rows) in zip(panels, parts, strict=True):
        _equal_rates(left, rows)
        left.set(xscale="log", ylabel=_wrapped(title), title="at equal learning rates")
        left.set_xticks(sorted(rows["learning_rate"].unique()))
        left.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        left.minorticks_off()
        comparison = statistics.compare_tuned(rows)
        if comparison is None:
            right.set_axis_off()
        else:
            _own_best(right, comparison)
    panels[-1][0].set_xlabel("learning rate η")
    panels[0][0].set_ylim(0, 1)
    legend(figure, panels[0][0])
    return figure


def _wrapped(title: str) -> str:
    """A label for the vertical axis, with a line for each part of a network's name."""
    return title.replace(", ", ",\n") + "\ntest accuracy"


def make_panels(num_rows: int, num_columns: int, *, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of panels of that size in inches; the options are those of `Figure.subplots`."""
    from matplotlib.figure import Figure

    width_ratios = options.get("width_ratios")
    size = (0.6 + width * (sum(width_ratios) if width_ratios else num_columns), 0.6 + height * num_rows)
    figure = Figure(figsize=size)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def curve(axes: Axes, rows: pd.DataFrame, method: str, x: str = "examples_seen", y: str = "test_accuracy", **style) -> None:
    """The mean of column `y` over seeds against column `x`, its 95 % interval as a band, and each seed as a thin line."""
    from matplotlib.ticker import MaxNLocator

    if rows[y].isna().all():  # Of runs that diverged there is nothing to draw.
        return
    seeds = rows.pivot_table(index=x, columns="seed", values=y, sort=True)
    mean, low, high, _ = np.array([mean_interval(row) for row in seeds.to_numpy()]).T
    colour = COLOURS[method]
    if x == "layer":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(seeds.index, seeds, color=colour, alpha=0.25, linewidth=0.5)
    axes.fill_between(seeds.index, low, high, color=colour, alpha=0.25, linewidth=0)
    usual = {"color": colour, "marker": MARKERS[method], "markersize": 2.5, "label": LABELS[method]}
    axes.plot(seeds.index, mean, **usual | style)


def interval_bar(axes: Axes, x: float, values: np.ndarray, method: str, *, horizontal: bool = False) -> None:
    """Each seed's value as a faint point at `x`, their mean as a marker, and its 95 % interval as a bar."""
    mean, low, high, _ = mean_interval(values)
    faint = {"color": COLOURS[method], "alpha": 0.35, "marker": ".", "markersize": 3, "linestyle": "none"}
    bold = {"color": COLOURS[method], "marker": MARKERS[method], "markersize": 4, "capsize": 2, "linestyle": "none"}
    bar = np.nan_to_num([[mean - low], [high - mean]])
    if horizontal:
        axes.plot(values, [x] * len(values), **faint)
        axes.errorbar([mean], [x], xerr=bar, **bold, label=LABELS[method])
    else:
        axes.plot([x] * len(values), values, **faint)
        axes.errorbar([x], [mean], yerr=bar, **bold, label=LABELS[method])


def legend(figure: Figure, axes: Axes) -> None:
    """One legend below all panels, from the labels of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=len(once), fontsize=8, frameon=False)


def _equal_rates(axes: Axes, rows: pd.DataFrame) -> None:
    # A small shift keeps the two methods' points apart on the logarithmic axis.
    for method, shift in zip(METHODS, (0.95, 1.05), strict=True):
        chosen = rows[rows["method"] == method]
        if chosen.empty:
            continue
        best = [statistics.at_setting(part, statistics.best_setting(part)) for _, part in chosen.groupby("learning_rate")]
        rates = np.array([part["learning_rate"].iloc[0] for part in best]) * shift
        accuracies = [part["test_accuracy"].to_numpy() for part in best]
        for rate, accuracy in zip(rates, accuracies, strict=True):
            interval_bar(axes, rate, accuracy, method)
        axes.plot(rates, [accuracy.mean() for accuracy in accuracies], color=COLOURS[method])


def _own_best(axes: Axes, comparison: Comparison) -> None:
    pairs = np.array([comparison.backprop["test_accuracy"], comparison.hybrid["test_accuracy"]])
    axes.plot([0, 1], pairs, color="0.75", linewidth=0.6, zorder=0)
    for x, method in enumerate(METHODS):
        interval_bar(axes, x, pairs[x], method)
    backprop, hybrid = comparison.backprop_setting, comparison.hybrid_setting
    axes.set_xticks([0, 1], [f"without Oja\n{statistics.named(backprop)}", f"with Oja\n{statistics.named(hybrid)}"])
    axes.set_xlim(-0.5, 1.5)
    axes.set_title(f"each at its own best\ngain {comparison.gain().signed()}")


def _rates_text(settings: Sequence[Tuned], *, own_best: bool) -> str:
    """The settings behind a panel's curves, for its title."""
    etas = " and ".join(f"{setting['learning_rate']:g}" for setting in settings)
    others = [{name: value for name, value in setting.items() if name != "learning_rate"} for setting in settings]
    thetas = "".join(statistics.named(other) for other in others if other.get("oja_rate"))
    return f"η = {etas}\n{thetas}" if own_best else thetas


# The measures as a figure shows them: their columns, names and units.
_MEASURES = {
    "effective_dimension": "effective dimension\nof activity",
    "activity_gain": "gain of activity\n(norm out / in)",
    "error_gain": "gain of the error\n(norm below / here)",
    "distance_from_orthonormal": "distance of WWᵀ\nfrom identity",
    "principal_angle_mean": "mean principal angle\nof rows and input (°)",
}


def measures_by_layer(tables: Tables) -> Figure:
    """The measures of each layer at the end of learning, at equal rates and each method at its own best, with intervals."""
    chosen = measured_settings(tables)
    figure, panels = make_panels(len(chosen), len(_MEASURES), width=1.75, height=1.6, sharex="row", sharey="col")
    for row, (title, parts) in zip(panels, chosen, strict=True):
        for axes, (column, label) in zip(row, _MEASURES.items(), strict=True):
            for method, table in parts.items():
                curve(axes, final_rows(table).dropna(subset=[column]), method, x="layer", y=column)
            axes.set(xlabel="layer", ylabel=label)
            _log_axis(axes, column)
        row[2].set_title(title)
    legend(figure, panels[0][0])
    return figure


def measures_over_training(tables: Tables) -> Figure:
    """The measures averaged over hidden layers (gains: their geometric mean) against samples seen, with intervals."""
    chosen = measured_settings(tables)
    figure, panels = make_panels(len(chosen), len(_MEASURES), width=1.75, height=1.6, sharex=True, sharey="col")
    for row, (title, parts) in zip(panels, chosen, strict=True):
        for axes, (column, label) in zip(row, _MEASURES.items(), strict=True):
            gain = column.endswith("_gain")
            for method, table in parts.items():
                hidden = table[table["layer"] < table["layer"].max()] if table["layer"].max() > 1 else table
                values = hidden.assign(**{column: np.log(hidden[column])}) if gain else hidden
                means = values.groupby(["seed", "examples_seen"], as_index=False)[column].mean()
                curve(axes, means.assign(**{column: np.exp(means[column])}) if gain else means, method, y=column)
            axes.set(xlabel="samples seen", ylabel=label)
            _log_axis(axes, column)
        row[2].set_title(title)
    legend(figure, panels[0][0])
    return figure


def singular_spectra(tables: Tables) -> Figure:
    """The singular values of each layer's weights at the end of learning, from its largest to its smallest."""
    chosen = measured_settings(tables)
    depths = [max(int(table["layer"].max()) for table in parts.values()) for _, parts in chosen]
    columns = min(max(depths), 5)
    figure, panels = make_panels(len(chosen), columns, width=1.6, height=1.6, sharex=True, sharey=True)
    for row, (title, parts), depth in zip(panels, chosen, depths, strict=True):
        layers = np.unique(np.linspace(1, depth, min(depth, columns)).round().astype(int))
        for axes in row[len(layers) :]:
            axes.set_axis_off()
        for axes, layer in zip(row, layers, strict=False):
            for method, table in parts.items():
                rows = final_rows(table)
                rows = rows[rows["layer"] == layer]
                names = [name for name in rows if name.startswith("singular_value_p")]
                spectrum = rows.melt(id_vars="seed", value_vars=names, value_name="singular_value")
                spectrum["rank"] = 1 - spectrum["variable"].str.removeprefix("singular_value_p").astype(int) / 100
                curve(axes, spectrum, method, x="rank", y="singular_value")
            axes.set_yscale("log")
            axes.axhline(1, color="0.6", linewidth=0.6, zorder=0)
            axes.set(xlabel="rank / number", title=f"layer {layer}")
        row[0].set_ylabel("singular value")
        row[len(layers) // 2].set_title(f"{title}\nlayer {layers[len(layers) // 2]}")
    legend(figure, panels[0][0])
    return figure


def _log_axis(axes: Axes, column: str) -> None:
    """A logarithmic axis for the measures that are ratios, with a line at 1."""
    if column not in ("activity_gain", "error_gain", "distance_from_orthonormal"):
        return
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.axhline(1, color="0.6", linewidth=0.6, zorder=0)


def measured_settings(tables: Tables) -> Sequence[tuple[str, dict[str, pd.DataFrame]]]:
    """The measures that a figure shows: of each network, both methods where they differ most, and each at its own best.

    Returns:
      Titles, and the measures of each method's runs by method.
    """
    assert tables.measures is not None
    found = []
    for (title, rows), (_, measured) in zip(networks(final_rows(tables.results)), networks(tables.measures), strict=True):
        comparisons = {}
        equal = statistics.widest(rows)
        if equal is not None:
            comparisons[f"{title}, both at η = {equal.backprop_setting['learning_rate']:g}"] = equal
        tuned = statistics.compare_tuned(rows)
        if tuned is not None:
            comparisons[f"{title}, each at its own best"] = tuned
        for name, comparison in comparisons.items():
            settings = zip(METHODS, (comparison.backprop_setting, comparison.hybrid_setting), strict=True)
            found.append((name, {method: statistics.at_setting(measured, setting) for method, setting in settings}))
        if not comparisons:
            best = statistics.best_setting(rows)
            found.append((title, {rows["method"].iloc[0]: statistics.at_setting(measured, best)}))
    return found


# What every experiment draws when it is asked for measures.
OF_MEASURES = {
    "measures_by_layer": measures_by_layer,
    "measures_over_training": measures_over_training,
    "singular_spectra": singular_spectra,
}
