"""Records of finished studies, small and without paths; they make the table of claims and the forest plot."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Finding = Mapping[str, Any]
# Entries of `config.json` that a record keeps unchanged.
_KEPT = (
    *("question", "method", "claim", "abstract", "verdict", "reason", "gains", "evidence"),
    *("num_runs", "versions", "devices"),
)
# Prefix of the project's own claims.
OWN = "This project's own: "
_COLUMNS = ("claim", "test", "gain", "gain, fading rule", "best simple rival", "runs", "verdict")


def of_study(config: Mapping[str, Any], summary: str, name: str) -> dict[str, Any]:
    """Returns the record of a finished study, from its `config.json` and `summary.md`.

    Args:
      config: The content of `config.json`.
      summary: The text of `summary.md`.
      name: The study's folder below the folder of all studies: `deep_mlp`, or `mnist/deep_mlp`.
    """
    flags = {flag: without_folder(value) for flag, value in config["flags"].items() if value is not None}
    return {
        "name": name,
        "experiment": config["experiment"],
        **{key: config[key] for key in _KEPT if key in config},
        "parts": [_part(part) for part in config.get("parts", ())],
        "dataset": {**config["dataset"], "name": without_folder(config["dataset"]["name"])},
        "flags": flags,
        "tables": tables_of(summary),
    }


def _part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a part of a claim after checking its fields; raises an error if one is missing."""
    numbers = {name: float(part[name]) for name in ("mean", "low", "high", "p")}
    return {name: str(part[name]) for name in ("part", "gain", "says", "unit")} | numbers


def without_folder(value: Any) -> Any:
    """Returns `idx:emnist47` for `idx:FOLDER/emnist47`, so that a record does not depend on the data's folder."""
    if isinstance(value, str) and re.match(r"(idx|npz):", value):
        kind, _, path = value.partition(":")
        return f"{kind}:{Path(path).name}"
    return value


def tables_of(summary: str) -> list[str]:
    """Returns the tables of a summary in Markdown."""
    return [table.strip() for table in re.findall(r"(?:^\|.*\n)+", summary, re.MULTILINE)]


def claims(findings: Sequence[Finding], variants: Mapping[str, str] = types.MappingProxyType({})) -> str:
    """Returns the table of claims in Markdown: one row per claim that was tested, the paper's first.

    The gain is the constant rule's, or the range over the claim's parts. The confirmation has a separate table.
    `variants` has words, by name, for studies that ran again in another way.
    """
    judged = [finding for finding in findings if finding.get("parts") and not is_confirmation(finding)]
    ordered = sorted(judged, key=lambda finding: finding["claim"].startswith(OWN))
    return markdown.table(_COLUMNS, [_cells(finding, variants.get(finding["name"])) for finding in ordered])


def is_confirmation(finding: Finding) -> bool:
    """Returns whether a record is of the confirmation, headline comparisons on other seeds (:mod:`experiments.confirm`)."""
    return finding["experiment"].endswith(".confirm")


def _cells(finding: Finding, variant: str | None) -> list[str]:
    gains, parts = finding.get("gains") or {}, finding.get("parts") or []
    quoted = finding.get("abstract")
    claim = f"“{quoted}”" if quoted else "this project's own" if finding["claim"].startswith(OWN) else ""
    rivals = [f"{name}: {words}" for name, words in gains.items() if name not in ("constant", "fading", "rival")]
    seeds = f"{finding['flags']['seeds']} seeds"
    return [
        claim,
        f"`{finding['name']}`{f' ({variant})' if variant else ''}: {finding['claim'].removeprefix(OWN)}",
        gains.get("constant") or _range(parts),
        gains.get("fading", ""),
        gains.get("rival") or "; ".join(rivals),
        f"{seeds}, {finding['num_runs']:,} runs, {finding['dataset']['name']}",
        f"**{finding['verdict']}**" + (f", as {finding['reason']}" if finding.get("reason") else ""),
    ]


def _range(parts: Sequence[Mapping[str, Any]]) -> str:
    """Returns the gain of a claim's only part, or the range of the gains of several parts, if they have one unit."""
    if len(parts) < 2:
        return parts[0]["gain"] if parts else ""
    holding = sum(part["says"] == "holds" for part in parts)
    units = {part["unit"] for part in parts}
    if len(units) > 1:
        return f"{len(parts)} parts in different units; {_holding(holding)}"
    means = [part["mean"] for part in parts if part["gain"]]
    if not means:
        return _holding(holding)
    unit = f" {units.pop()}".rstrip()
    return f"{min(means):+.3f} to {max(means):+.3f}{unit} in {len(parts)} parts; {_holding(holding)}"


def _holding(number: int) -> str:
    return f"{number} {'holds' if number == 1 else 'hold'}"


def forest(findings: Sequence[Finding]) -> Figure:
    """Draws the gain of every part of every claim with its 95 % interval, losses included.

    Gains with a unit are left out, as the axis is in accuracy.
    """
    from experiments.common import figures

    labels: list[str] = []
    parts: dict[int, Mapping[str, Any]] = {}
    for finding in findings:
        if shares := [part for part in finding.get("parts", ()) if not part["unit"]]:
            labels.append(finding["name"])  # A heading, a row without a gain.
            for part in shares:
                parts[len(labels)] = part
                labels.append(textwrap.fill(part["part"], 72))
    height = 0.14 * max(len(labels), 1) + 0.6
    figure, panels = figures.make_panels(1, 1, width=figures.WIDTH, height=height)
    axes = panels[0][0]
    for row, part in parts.items():
        colour = _COLOURS.get(part["says"].partition(":")[0], "0.55")
        if math.isfinite(part["low"]):
            axes.plot([part["low"], part["high"]], [row, row], color=colour, linewidth=1.2)
        axes.plot([part["mean"]], [row], color=colour, marker="o", markersize=3, linestyle="none")
    axes.set_yticks(range(len(labels)), labels, fontsize=5, linespacing=0.95)
    for row, label in enumerate(axes.get_yticklabels()):
        label.set_fontweight("normal" if row in parts else "bold")
    axes.set_ylim(max(len(labels), 1) - 0.5, -0.5)
    axes.axvline(0, color="0.5", linewidth=0.6, zorder=0)
    axes.set_xlabel("gain in accuracy, paired by seed, with its 95 % interval\ngreen: holds; red: reversed; grey: neither")
    return figure


def by_set(findings: Mapping[str, Finding]) -> Figure:
    """Draws the gain of each comparison on several sets of seeds, which name the findings, with 95 % intervals.

    A filled marker is a gain that holds.
    """
    from experiments.common import figures

    names = list(dict.fromkeys(part["part"] for finding in findings.values() for part in finding["parts"]))
    figure, panels = figures.make_panels(1, 1, width=4.8, height=0.24 * len(names) + 0.6)
    axes = panels[0][0]
    for place, ((label, finding), colour, marker) in enumerate(
        zip(findings.items(), itertools.cycle(_SETS), itertools.cycle("os"), strict=False)
    ):
        for part in finding["parts"]:
            row = names.index(part["part"]) + 0.8 * ((place + 0.5) / len(findings) - 0.5)
            face = colour if part["says"] == "holds" else "white"
            axes.plot([part["low"], part["high"]], [row, row], color=colour, linewidth=0.8)
            axes.plot([part["mean"]], [row], color=colour, marker=marker, markersize=2.5, mfc=face, linestyle="none")
        axes.plot([], [], color=colour, marker=marker, markersize=3, linestyle="none", label=label)
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 60) for name in names], fontsize=5.5, linespacing=0.95)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.axvline(0, color="0.5", linewidth=0.6, zorder=0)
    axes.set_xlabel("gain in accuracy")
    figures.legend(figure, axes, columns=2)
    return figure


# Pairs of a dark and a light colour, as a set of data has two sets of seeds.
_SETS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#80C9A0")
_COLOURS = {"holds": "#009E73", "reversed": "#D55E00"}
