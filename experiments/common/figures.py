"""Figures of results tables, for a screen (PNG) and for a paper (PDF)."""

from collections.abc import Callable, Iterator, Mapping

import matplotlib as mpl
import matplotlib.colors
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.common import statistics
from experiments.common.statistics import RULES, Comparison, final_rows, mean_interval
from experiments.common.workdir import Workdir

Drawings = Mapping[str, Callable[[pd.DataFrame], Figure]]

# Okabe and Ito's palette, which colour-blind readers can tell apart; the markers tell them apart in print.
_COLOURS = {"backprop": "#0072B2", "hybrid": "#D55E00"}
_MARKERS = {"backprop": "o", "hybrid": "s"}
_LABELS = {"backprop": "backprop", "hybrid": "backprop + Oja"}
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}


def save(folder: Workdir, name: str, draw: Callable[[pd.DataFrame], Figure], results: pd.DataFrame) -> None:
    """Draws `figures/NAME.png` and `.pdf` from a table with a column `rule`."""
    with mpl.rc_context(_STYLE):
        figure = draw(results)
        for suffix, options in ((".png", {"dpi": 200}), (".pdf", {"metadata": {"CreationDate": None}})):
            with folder.replacing(f"figures/{name}{suffix}") as path:
                figure.savefig(path, **options)


def learning_curves(results: pd.DataFrame) -> Figure:
    """Test accuracy against samples seen, one panel a learning rate and one with each rule at its own best.

    At each learning rate the hybrid has the Oja rate that does best there. Thin lines are seeds; bands are 95 %
    intervals of the mean.
    """
    networks = list(_networks(results))
    rates = sorted(results["learning_rate"].unique())
    tuned = len(rates) > 1
    figure, panels = _panels(len(networks), len(rates) + tuned, width=1.75, height=1.7, sharex=True, sharey=True)
    for row, (title, table) in zip(panels, networks, strict=True):
        tables = [table[table["learning_rate"] == rate] for rate in rates] + [table] * tuned
        titles = [f"both at η = {rate:g}" for rate in rates] + ["each at its own best"] * tuned
        for axes, part, panel_title in zip(row, tables, titles, strict=True):
            settings = []
            for rule in RULES:
                rows = final_rows(part[part["rule"] == rule])
                if not rows.empty:
                    setting = statistics.best_setting(rows)
                    _curve(axes, statistics.at_setting(part, setting), rule)
                    settings.append(setting)
            axes.set_title(f"{panel_title}\n{_rates_text(settings, own_best=part is table)}")
        row[0].set_ylabel(f"{title}\ntest accuracy")
    for axes in panels[-1]:
        axes.set_xlabel("samples seen")
    panels[0][0].set_ylim(0, 1)
    _legend(figure, panels[0][0])
    return figure


def accuracy_plane(results: pd.DataFrame) -> Figure:
    """Final test accuracy over the plane of the two rates, one panel a network; runs that diverged are counted."""
    networks = list(_networks(final_rows(results)))
    num_rates = results["learning_rate"].nunique(), results["oja_rate"].nunique()
    width, height = max(2.4, 0.75 + 0.55 * num_rates[0]), max(1.8, 0.9 + 0.35 * num_rates[1])
    figure, panels = _panels(1, len(networks), width=width, height=height)
    for axes, (title, rows) in zip(panels[0], networks, strict=True):
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


def backprop_vs_hybrid(results: pd.DataFrame) -> Figure:
    """The two rules at equal learning rates (left), and each at its own best, paired by seed (right).

    At each learning rate the hybrid has the Oja rate that does best there. Points are seeds, bars 95 % intervals.
    """
    networks = list(_networks(final_rows(results)))
    figure, panels = _panels(len(networks), 2, width=2.6, height=2.0, sharey=True, width_ratios=[1.5, 1])
    for (left, right), (title, rows) in zip(panels, networks, strict=True):
        _equal_rates(left, rows)
        left.set(xscale="log", ylabel=f"{title}\ntest accuracy", title="at equal learning rates")
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
    _legend(figure, panels[0][0])
    return figure


def _networks(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The parts of the table with one network and one scale of the initial weights each, with a name."""
    many_gains = table["init_gain"].nunique() > 1
    for (depth, gain), part in table.groupby(["depth", "init_gain"]):
        yield f"{depth} layers" + (f", gain {gain:g}" if many_gains else ""), part


def _panels(num_rows: int, num_columns: int, *, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    width_ratios = options.get("width_ratios")
    size = (0.6 + width * (sum(width_ratios) if width_ratios else num_columns), 0.6 + height * num_rows)
    figure = Figure(figsize=size)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def _curve(axes: Axes, rows: pd.DataFrame, rule: str) -> None:
    curves = rows.pivot_table(index="examples_seen", columns="seed", values="test_accuracy", sort=True)
    mean, low, high = np.array([mean_interval(row) for row in curves.to_numpy()]).T
    colour = _COLOURS[rule]
    axes.plot(curves.index, curves, color=colour, alpha=0.25, linewidth=0.5)
    axes.fill_between(curves.index, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(curves.index, mean, color=colour, marker=_MARKERS[rule], markersize=2.5, label=_LABELS[rule])


def _equal_rates(axes: Axes, rows: pd.DataFrame) -> None:
    # A small shift keeps the two rules' points apart on the logarithmic axis.
    for rule, shift in zip(RULES, (0.95, 1.05), strict=True):
        chosen = rows[rows["rule"] == rule]
        if chosen.empty:
            continue
        best = [statistics.at_setting(part, statistics.best_setting(part)) for _, part in chosen.groupby("learning_rate")]
        rates = np.array([part["learning_rate"].iloc[0] for part in best]) * shift
        for rate, part in zip(rates, best, strict=True):
            axes.plot([rate] * len(part), part["test_accuracy"], ".", color=_COLOURS[rule], alpha=0.35, markersize=3)
        mean, low, high = np.array([mean_interval(part["test_accuracy"].to_numpy()) for part in best]).T
        bars = np.nan_to_num([mean - low, high - mean])
        style = {"color": _COLOURS[rule], "marker": _MARKERS[rule], "markersize": 4, "capsize": 2}
        axes.errorbar(rates, mean, bars, label=_LABELS[rule], **style)


def _own_best(axes: Axes, comparison: Comparison) -> None:
    pairs = np.array([comparison.backprop["test_accuracy"], comparison.hybrid["test_accuracy"]])
    axes.plot([0, 1], pairs, color="0.75", linewidth=0.6, zorder=0)
    for x, rule in enumerate(RULES):
        interval = comparison.accuracy(rule)
        bar = np.nan_to_num([[interval.mean - interval.low], [interval.high - interval.mean]])
        axes.plot([x] * pairs.shape[1], pairs[x], ".", color=_COLOURS[rule], alpha=0.35, markersize=3)
        axes.errorbar([x], [interval.mean], bar, color=_COLOURS[rule], marker=_MARKERS[rule], markersize=4, capsize=2)
    backprop, hybrid = comparison.backprop_setting, comparison.hybrid_setting
    axes.set_xticks([0, 1], [f"backprop\nη = {backprop[0]:g}", f"+ Oja\nη = {hybrid[0]:g}, θ = {hybrid[1]:g}"])
    axes.set_xlim(-0.5, 1.5)
    axes.set_title(f"each at its own best\ngain {comparison.gain().signed()}")


def _rates_text(settings: list[tuple[float, float]], *, own_best: bool) -> str:
    """The rates behind a panel's curves, for its title."""
    etas = " and ".join(f"{eta:g}" for eta, _ in settings)
    thetas = "".join(f"θ = {theta:g}" for _, theta in settings if theta)
    return f"η = {etas}\n{thetas}" if own_best else thetas


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
