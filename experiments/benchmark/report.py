"""Tables, a figure and remarks of the benchmark's rows."""

from collections.abc import Iterator
from typing import Any

import pandas as pd
import rich.box
from rich.table import Table

from experiments.benchmark.least import operations, peak, roofline
from experiments.benchmark.sides import CONVOLUTIONS, CORES, NETWORKS, OJAX
from experiments.common import figures


def table_of(rows: pd.DataFrame, part: str, what: str) -> Table:
    """Returns medians and ranges of a comparison, and the speed of ojax over each side, one section per network."""
    table = Table(title=f"{what}:\nmicroseconds per sample and run", box=rich.box.SIMPLE)
    table.add_column("side")
    for column in ("median", "range", "times", "MiB"):
        table.add_column(column, justify="right", no_wrap=True)
    compared = rows[rows["part"] == part]
    for network, mine in compared.groupby("network", sort=False):
        table.add_section()
        table.add_row(str(network))
        medians = mine.groupby("side")["microseconds"].median()
        for side, found in mine.groupby("side", sort=False):
            times = found["microseconds"]
            cells = (f"{times.median():,.1f}", f"{times.min():,.1f} to {times.max():,.1f}")
            memory = f"{found['mebibytes'].max():,.0f}"
            table.add_row(f"  {side}", *cells, f"{times.median() / medians[OJAX]:.3g}", memory)
    return table


def figure_of(rows: pd.DataFrame) -> Any:
    """Draws the cost against runs, depth, width and samples; the panel of runs also shows the other sides."""
    names = {"runs": "runs", "depth": "layers", "width": "width of the first\nhidden layer", "samples": "samples of a run"}
    figure, panels = figures.make_panels(1, 4, width=2.6, height=3.0, sharex=False)
    for axes, (part, label) in zip(panels[0], names.items(), strict=True):
        mine = rows[rows["part"] == part]
        x = mine[part if part in ("runs", "samples") else "network"].astype(float)
        axes.plot(x, mine["microseconds"], marker="o", markersize=3, color=figures.COLOURS["hybrid"])
        axes.set(xlabel=label, xscale="log", ylim=(0, 1.15 * mine["microseconds"].max()))
        if part in ("depth", "width"):
            axes.set_xticks(x, [f"{value:g}" for value in x], minor=False)
            axes.minorticks_off()
    axes = panels[0][0]
    others = rows[(rows["part"] == "compare") & (rows["network"] == "5 layers") & ~rows["side"].str.startswith("ojax")]
    costs = others.groupby("side", sort=False)["microseconds"].median()
    above = float("inf")
    for side, cost in costs.sort_values(ascending=False).items():
        axes.axhline(cost, color=figures.COLOURS["backprop"], linewidth=0.7)
        place = "bottom" if above / cost > 1.4 else "top"
        axes.annotate(str(side), (0.98, cost), xycoords=("axes fraction", "data"), fontsize=6, ha="right", va=place)
        above = cost
    highest = max([*costs, *rows.loc[rows["part"] == "runs", "microseconds"]])
    axes.set(ylabel="µs per sample and run", yscale="log", ylim=(10, 2 * highest))
    figure.tight_layout()
    return figure


def remarks(rows: pd.DataFrame) -> Iterator[str]:
    """Yields remarks on the table, one line each."""
    compared = rows[rows["part"] == "compare"]
    medians = compared.groupby(["side", "network"])["microseconds"].median()
    for name, widths in NETWORKS.items():
        least, mine = roofline(widths), medians[OJAX, name]
        bound = max(least["by_bandwidth_us"], least["by_peak_us"]) / CORES
        yield (
            f"{name}: one step after the other, {CORES} cores need at least {least['by_bandwidth_us'] / CORES:.1f} µs a "
            f"sample-run by bandwidth ({least['bandwidth_gb_s']:.0f} GB/s a core, measured over weights of this size) and "
            f"{least['by_peak_us'] / CORES:.1f} µs by arithmetic ({least['peak_gflop_s']:.0f} GFLOP/s a core, measured on "
            f"large matrices); ojax takes {mine / bound:.1f} times the larger. Its windows read most weights once in 16 "
            "samples, so that arithmetic bounds it, not bandwidth."
        )
    others = rows[rows["part"] == "convolutions"].groupby(["side", "network"])["microseconds"].median()
    for name, network in CONVOLUTIONS.items():
        bound = 1e6 * operations(network) / peak() / CORES
        yield (
            f"Convolutions, {name}: {operations(network) / 1e6:.1f} million operations a sample take {CORES} cores "
            f"{bound:.1f} µs at their measured peak, so that arithmetic bounds ojax, which takes "
            f"{others[OJAX, name] / bound:.1f} times that; the rest is exponentials and the making of patches. PyTorch has "
            "one thread there: more make it slower."
        )
    first = compared[(compared["side"] == OJAX) & (compared["repeat"] == 0)].set_index("network")["first_seconds"]
    yield "From the call to the first samples learned, compilation included: " + ", ".join(
        f"{name} {first[name]:.1f} s" for name in NETWORKS
    )
    yield _of_checkpoints(rows[rows["part"] == "checkpoints"])
    for part, fewest in (("runs", 8), ("samples", 1000)):
        mine = rows[(rows["part"] == part) & (rows[part] >= fewest)]
        spread = mine["microseconds"].max() / mine["microseconds"].min()
        yield f"From {fewest:,} to {mine[part].max():,} {part} the cost stays within {spread:.2f} times its least."


def _of_checkpoints(rows: pd.DataFrame) -> str:
    """Returns the cost of checkpoints at the measured interval, and scaled to the default interval."""
    seconds = rows["microseconds"] * rows["runs"] * rows["samples"] / 1e6
    without, saved = (seconds[rows["side"] == side].median() for side in rows["side"].unique())
    interval = float(rows["side"].iloc[1].split()[-2])
    share = (saved - without) / without
    default = "the default" if interval == 120 else f"so {share * interval / 120:.2%} at the default of every 120 s"
    return f"Checkpoints of {rows['runs'].iloc[0]} runs every {interval:g} s cost {share:.1%} of the time: {default}."
