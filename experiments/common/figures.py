"""Figures of results, for a screen (PNG) and for a paper (PDF).

Matplotlib is imported when something is drawn: every experiment imports this module before it reads its flags.
"""

from __future__ import annotations

import inspect
import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.common import needs, statistics
from experiments.common.flags import LEARNING_RATE, OJA_HALF_LIFE, OJA_RATE
from experiments.common.results import DIVERGED, LAYER, METHOD, METHODS, SEED, SEEN, VARIANTS, Results
from experiments.common.statistics import by_variant, final_rows, mean_interval, networks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Drawings = Mapping[str, Callable[[Results], Figure]]

# Okabe and Ito's palette, which colour-blind readers can distinguish; in print the markers differ.
COLOURS = {"backprop": "#0072B2", "hybrid": "#D55E00", "fading": "#009E73"}
MARKERS = {"backprop": "o", "hybrid": "s", "fading": "^"}
LABELS = {"backprop": "without Oja", "hybrid": "with Oja", "fading": "with fading Oja"}
# File formats and their options: for a screen, and for a paper.
FORMATS: dict[str, dict[str, Any]] = {".png": {"dpi": 200}, ".pdf": {"metadata": {"CreationDate": None}}}
# Largest width in inches, so that text is legible at the page's width.
WIDTH = 7.0
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,
}


def save(folder: Path, name: str, draw: Callable[[Results], Figure], results: Results) -> Figure:
    """Draws `figures/NAME.png` and `.pdf`."""
    from experiments.common.files import replacing  # Imports JAX.

    with needs.matplotlib().rc_context(_STYLE):
        figure = draw(results)
        for suffix, options in FORMATS.items():
            with replacing(folder / "figures" / f"{name}{suffix}") as path:
                figure.savefig(path, **options)
            figure.set_layout_engine("none")  # Reuses the first file's layout, which takes most of the time.
        return figure


def in_style(draw: Callable[..., Figure], *results: Any) -> Figure:
    """Returns `draw(*results)`, a figure, in the style of all figures."""
    with needs.matplotlib().rc_context(_STYLE):
        return draw(*results)


def learning_curves(results: Results) -> Figure:
    """Draws the score against samples seen: at the equal rate with the largest difference, and each at its own best.

    At each learning rate, Oja's rule has its best rate there. Thin lines are seeds; bands are 95 % intervals of the mean.
    """
    chosen = []
    for title, part in networks(results):
        chosen += [(name, part, settings) for name, settings in compared_settings(title, final_rows(part)).items()]
    figure, panels = make_rows(chosen, per_row=4, height=1.9, sharex=True, sharey=True)
    for axes, (name, part, settings) in filled(panels, chosen):
        for variant, setting in settings.items():
            curve(axes, statistics.at_setting(by_variant(part)[variant], setting), variant)
        words = [results.schema.named(setting).replace(" = ", " ") for setting in settings.values()]
        axes.set_title("\n".join([name.replace(": ", "\n"), *words]), fontsize=7)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    label(panels, x="samples seen", y=results.schema.score.words)
    panels[0][0].set_ylim(*results.schema.score.limits)
    legend(figure, panels[0][0])
    return figure


def compared_settings(title: str, final: Results) -> dict[str, dict[str, statistics.Best]]:
    """Returns each rule's settings to show, by title: at the equal rate with the largest difference, and its own best."""
    found = {}
    widest = statistics.widest(final)
    if widest is not None:
        eta = widest.backprop.setting[LEARNING_RATE.name]
        found[f"{title}: all at η = {eta:g}"] = final.where(**{LEARNING_RATE.name: eta})
    if widest is None or statistics.compare_tuned(final) is not None:
        found[title if widest is None else f"{title}: each at its own best"] = final
    return {
        name: {variant: statistics.Tuned(mine).setting for variant, mine in by_variant(part).items()}
        for name, part in found.items()
    }


def shades(number: int) -> Sequence[Any]:
    """Returns colours of one ordered scale, dark to light."""
    return needs.matplotlib().colormaps["viridis"](np.linspace(0, 0.92, number))


def filled(panels: np.ndarray, contents: Sequence[Any]) -> Iterator[tuple[Axes, Any]]:
    """Yields each panel with its content, and hides the remaining panels."""
    for axes in panels.flat[len(contents) :]:
        axes.set_axis_off()
    return zip(panels.flat, contents, strict=False)


def label(panels: np.ndarray, x: str, y: str) -> None:
    """Labels the axes of the leftmost panels and of the lowest panel in each column, which also gets tick labels."""
    for row, rows in enumerate(panels):
        rows[0].set_ylabel(y)
        for column, axes in enumerate(rows):
            below = panels[row + 1, column] if row + 1 < len(panels) else None
            if axes.axison and (below is None or not below.axison):
                axes.set_xlabel(x)
                axes.tick_params(labelbottom=True)


def caption(draw: Any) -> str:
    """Returns a figure's caption: the first paragraph of its docstring, without the word "Draws" at its start."""
    paragraph = (inspect.getdoc(getattr(draw, "func", draw)) or "").partition("\n\n")[0]
    text = " ".join(paragraph.split()).removeprefix("Draws ")
    return text[:1].upper() + text[1:]


def search_budget(results: Results, methods: str = METHOD) -> Figure:
    """Draws the score against search: the expected score of the best of k settings, drawn from a method's settings.

    There is one panel per network and one line per method, with bands of 95 % intervals for few methods.

    Args:
      results: Results with several settings of at least one method.
      methods: The column of methods; by default the rule: without it, constant, or fading.
    """
    parts = list(networks(final_rows(results), but=methods))
    parts = [(title, part) for title, part in parts if part.table[methods].nunique() > 1] or parts
    height = 1.6 if results.table[methods].nunique() <= len(VARIANTS) else 2.6
    figure, panels = make_rows(parts, per_row=4, height=height, sharey=True)
    for axes, (title, part) in filled(panels, parts):
        found = {name: statistics.Tuned(mine) for name, mine in part.by(methods, sort=False)}
        colours = dict(zip(found, shades(len(found)), strict=True)) | COLOURS
        for name, method in found.items():
            budgets = np.unique(np.geomspace(1, method.setting.tried, 8).round().astype(int))
            mean, low, high, _ = np.array([mean_interval(method.searched(budget)) for budget in budgets]).T
            words = LABELS.get(name, str(name).replace("_", " "))
            axes.plot(budgets, mean, color=colours[name], marker=MARKERS.get(name, "."), markersize=3, label=words)
            if len(found) <= len(VARIANTS):
                axes.fill_between(budgets, low, high, color=colours[name], alpha=0.2, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.minorticks_off()
        axes.set_title(textwrap.fill(title, 28), fontsize=7)
    label(panels, x="settings tried", y=results.schema.score.words)
    panels[0][0].set_ylim(*results.schema.score.limits)
    legend(figure, *panels.flat[: len(parts)], columns=len(COLOURS))
    return figure


def accuracy_plane(results: Results) -> Figure:
    """Draws the final score over the two rates, one panel per network and half-life, with the counts of diverged runs."""
    score = results.schema.score
    parts = [item for title, part in networks(final_rows(results)) for item in _by_half_life(title, part)]
    rates = {"index": OJA_RATE.name, "columns": LEARNING_RATE.name}
    num_etas, num_thetas = results.table[LEARNING_RATE.name].nunique(), results.table[OJA_RATE.name].nunique()
    width, height = max(2.4, 0.75 + 0.45 * num_etas), max(1.8, 0.9 + 0.35 * num_thetas)
    figure, panels = make_rows(parts, per_row=max(1, int(WIDTH / width)), width=width, height=height)
    known = results.table[score.column].min(), results.table[score.column].max()
    low, high = (end if end is not None else limit for end, limit in zip(score.limits, known, strict=True))
    for axes, (title, part) in filled(panels, parts):
        plane = part.table.pivot_table(**rates, values=score.column, aggfunc="mean", dropna=False)
        lost = part.table.pivot_table(**rates, values=DIVERGED, aggfunc="sum")
        image = axes.imshow(plane, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="viridis")
        for (y, x), accuracy in np.ndenumerate(plane.to_numpy()):
            if not np.isfinite(accuracy):
                continue  # The question does not keep these rates.
            diverged = int(lost.iloc[y, x])
            note = f"\n{diverged} div." if diverged else ""
            colour = "black" if accuracy > low + 0.6 * (high - low) else "white"
            axes.text(x, y, f"{accuracy:.2f}{note}", ha="center", va="center", color=colour, fontsize=6)
        axes.set_xticks(range(plane.shape[1]), [f"{rate:g}" for rate in plane.columns])
        axes.set_yticks(range(plane.shape[0]), [f"{rate:g}" for rate in plane.index])
        axes.set_title(title, fontsize=7)
        axes.spines[:].set_visible(False)
    label(panels, x="learning rate η", y="Oja rate θ (0: backprop)")
    figure.colorbar(image, ax=panels, label=score.words)
    return figure


def _by_half_life(title: str, part: Results) -> list[tuple[str, Results]]:
    """Splits the runs by the half-life of the rule; each part also has the runs without the rule."""
    name, rows = OJA_HALF_LIFE.name, part.table
    if name not in rows or rows[name].nunique() < 2:
        return [(title, part)]
    without = rows[METHOD] == METHODS[0]
    values = sorted(rows.loc[~without, name].unique())
    return [(f"{title}\n{OJA_HALF_LIFE.named(value)}", part.where(without | (rows[name] == value))) for value in values]


def make_panels(num_rows: int, num_columns: int, *, width: float, height: float, **options) -> tuple[Figure, np.ndarray]:
    """Makes a figure with a grid of panels of this size in inches; the options go to `Figure.subplots`."""
    needs.matplotlib()
    from matplotlib.figure import Figure

    class Shown(Figure):
        """A figure that a notebook shows with any Matplotlib backend."""

        def _repr_png_(self) -> bytes:
            self.savefig(png := io.BytesIO(), format="png", dpi=110)
            return png.getvalue()

    width_ratios = options.get("width_ratios")
    size = (0.6 + width * (sum(width_ratios) if width_ratios else num_columns), 0.6 + height * num_rows)
    figure = Shown(figsize=size)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **options)


def make_rows(parts: Sequence[Any], *, per_row: int, **options) -> tuple[Figure, np.ndarray]:
    """Makes a figure with a panel per part, in rows of about equal length; see :func:`make_panels`.

    By default they fill the page's width.
    """
    rows = -(-len(parts) // per_row)
    columns = -(-len(parts) // rows)
    return make_panels(-(-len(parts) // columns), columns, **{"width": WIDTH / max(columns, 2), **options})


def paired_bars(axes: Axes, x: float, comparison: statistics.Comparison) -> None:
    """Draws both methods at `x`, each at its own best; a grey line connects the two runs of each seed."""
    ends = [comparison.of(method).scores for method in METHODS]
    axes.plot([x - 0.15, x + 0.15], ends, color="0.75", linewidth=0.6, zorder=0)
    for method, end, shift in zip(METHODS, ends, (-0.15, 0.15), strict=True):
        interval_bar(axes, x + shift, end, method)


def curve(axes: Axes, results: Results, method: str, x: str = SEEN, y: str | None = None) -> None:
    """Draws the mean of `y` (default: the score) over seeds against `x`, with a 95 % band and a thin line per seed."""
    from matplotlib.ticker import MaxNLocator

    y, rows = y or results.schema.score.column, results.table
    if rows[y].isna().all():  # All of these runs diverged.
        return
    seeds = rows.pivot_table(index=x, columns=SEED, values=y, sort=True)
    mean, low, high, _ = np.array([mean_interval(row) for row in seeds.to_numpy()]).T
    colour = COLOURS[method]
    if x == LAYER:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.plot(seeds.index, seeds, color=colour, alpha=0.25, linewidth=0.5)
    axes.fill_between(seeds.index, low, high, color=colour, alpha=0.25, linewidth=0)
    axes.plot(seeds.index, mean, color=colour, marker=MARKERS[method], markersize=2.5, label=LABELS[method])


def interval_bar(
    axes: Axes,
    x: float,
    values: np.ndarray,
    method: str,
    *,
    horizontal: bool = False,
    label: str | None = None,
    marker: str | None = None,
) -> None:
    """Draws each seed's value at `x`, and their mean with a 95 % interval, in the style of a method or in a colour."""
    mean, low, high, _ = mean_interval(values)
    colour = COLOURS.get(method, method)
    faint = {"color": colour, "alpha": 0.35, "marker": ".", "markersize": 3, "linestyle": "none"}
    bold = {"color": colour, "marker": marker or MARKERS[method], "markersize": 4, "capsize": 2, "linestyle": "none"}
    bold["label"] = label or LABELS.get(method)
    bar = np.nan_to_num([[mean - low], [high - mean]])
    if horizontal:
        axes.plot(values, [x] * len(values), **faint)
        axes.errorbar([mean], [x], xerr=bar, **bold)
    else:
        axes.plot([x] * len(values), values, **faint)
        axes.errorbar([x], [mean], yerr=bar, **bold)


def legend(figure: Figure, *panels: Axes, columns: int | None = None) -> None:
    """Draws one legend below all panels, of these panels' labels: one row or `columns` columns, fewer if too wide."""
    once: dict[Any, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        once |= dict(zip(labels, handles, strict=True))
    size, columns = (8, len(once)) if columns is None else (7, min(columns, len(once)))
    for number in range(columns, 0, -1):  # No legend if nothing is drawn: all runs diverged.
        drawn = figure.legend(once.values(), once.keys(), loc="outside lower center", ncols=number, fontsize=size)
        if number == 1 or drawn.get_window_extent().width <= figure.bbox.width:
            break
        drawn.remove()


# Measures of the figures: their columns, names and units.
_MEASURES = {
    "effective_dimension": "effective dimension\nof activity",
    "activity_gain": "gain of activity\n(norm out / in)",
    "error_gain": "gain of the error\n(norm below / here)",
    "distance_from_orthonormal": "distance of WWᵀ\nfrom identity",
    "principal_angle_mean": "mean principal angle\nof rows and input (°)",
}


def measures_by_layer(results: Results) -> Figure:
    """Draws each layer's measures after training, at equal rates and each method at its own best, with intervals."""

    def last(part: Results, column: str) -> Results:
        found = final_rows(part)
        return found.where(found.table[column].notna())

    return _measures(results, LAYER, "layer", last, sharex="row")


def measures_over_training(results: Results) -> Figure:
    """Draws the measures' means over hidden layers (gains: geometric means) against samples seen, with intervals."""

    def means(part: Results, column: str) -> Results:
        gain, deepest = column.endswith("_gain"), part.table[LAYER].max()
        values = part.table[(part.table[LAYER] < deepest) | (deepest == 1)]
        values = values.assign(**{column: np.log(values[column])}) if gain else values
        found = values.groupby([SEED, SEEN], as_index=False)[column].mean()
        return part.of(found.assign(**{column: np.exp(found[column])}) if gain else found)

    return _measures(results, SEEN, "samples seen", means, sharex=True)


def _measures(results: Results, x: str, words: str, prepared: Callable[[Results, str], Results], *, sharex: Any) -> Figure:
    """Draws all measures against `x`, one row per setting; `prepared(part, column)` returns the rows of a measure."""
    chosen = measured_settings(results)
    figure, panels = make_panels(len(chosen), len(_MEASURES), width=1.75, height=1.6, sharex=sharex, sharey="col")
    for row, (title, parts) in zip(panels, chosen, strict=True):
        for axes, (column, label) in zip(row, _MEASURES.items(), strict=True):
            for method, part in parts.items():
                curve(axes, prepared(part, column), method, x=x, y=column)
            axes.set(xlabel=words, ylabel=label)
            _log_axis(axes, column)
        row[2].set_title(title)
    legend(figure, panels[0][0])
    return figure


def singular_spectra(results: Results) -> Figure:
    """Draws the singular values of each layer's weights at the end of training, in descending order."""
    chosen = measured_settings(results)
    depths = [max(int(part.table[LAYER].max()) for part in parts.values()) for _, parts in chosen]
    columns = min(max(depths), 5)
    figure, panels = make_panels(len(chosen), columns, width=1.6, height=1.6, sharex=True, sharey=True)
    for row, (title, parts), depth in zip(panels, chosen, depths, strict=True):
        layers = np.unique(np.linspace(1, depth, min(depth, columns)).round().astype(int))
        for axes in row[len(layers) :]:
            axes.set_axis_off()
        for axes, layer in zip(row, layers, strict=False):
            for method, part in parts.items():
                rows = final_rows(part).where(layer=layer).table
                names = [name for name in rows if name.startswith("singular_value_p")]
                spectrum = rows.melt(id_vars=SEED, value_vars=names, value_name="singular_value")
                spectrum["rank"] = 1 - spectrum["variable"].str.removeprefix("singular_value_p").astype(int) / 100
                curve(axes, results.of(spectrum), method, x="rank", y="singular_value")
            axes.set_yscale("log")
            axes.axhline(1, color="0.6", linewidth=0.6, zorder=0)
            axes.set(xlabel="rank / number", title=f"layer {layer}")
        row[0].set_ylabel("singular value")
        row[len(layers) // 2].set_title(f"{title}\nlayer {layers[len(layers) // 2]}")
    legend(figure, panels[0][0])
    return figure


def _log_axis(axes: Axes, column: str) -> None:
    """Sets a logarithmic axis with a line at 1 for measures that are ratios."""
    if column not in ("activity_gain", "error_gain", "distance_from_orthonormal"):
        return
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.axhline(1, color="0.6", linewidth=0.6, zorder=0)


def measured_settings(results: Results) -> Sequence[tuple[str, dict[str, Results]]]:
    """Returns titles with the measures of each rule's runs at :func:`compared_settings`."""
    found, finals = [], dict(networks(final_rows(results)))  # Some of which may have none of the layers.
    for title, measured in networks(results.layers):
        parts = by_variant(measured)
        for name, settings in compared_settings(title, finals[title]).items():
            found.append((name, {c: statistics.at_setting(parts[c], setting) for c, setting in settings.items()}))
    return found


# The figures that every experiment draws with --measures.
OF_MEASURES = {
    "measures_by_layer": measures_by_layer,
    "measures_over_training": measures_over_training,
    "singular_spectra": singular_spectra,
}
