"""Writes the page of results and the README's numbers: `make results`.

The records of finished studies below --workdir go to `docs/findings/`, which is committed; without any, the records there
are used as they are. From them alone come `docs/how/results.md`, its figures, and the table in README.md.
"""

import collections
import importlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments import confirm
from experiments.common import figures, findings, parsers
from experiments.common.app import parse_flags
from experiments.common.errors import UserError, complain
from experiments.common.files import replacing, write_text
from experiments.common.findings import Finding

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "findings"
PAGE, README, STUDIES = ROOT / "docs" / "how" / "results.md", ROOT / "README.md", ROOT / "docs" / "how" / "studies.md"
BEGIN, END = "<!-- The lines from here on are written by `make results`. -->", "<!-- Here they end. -->"
# Figures that README and pages show, by the name of the record.
_FIGURES = {
    "deep_mlp": ("accuracy_by_depth",),
    "controls": ("rivals",),
    "feedback_rivals": ("rivals", "stress"),
    "networks/feedback_rivals": ("stress",),
    "anatomy": ("arms", "prediction", "by_layer"),
    "continual": ("accuracy_by_task",),
    "upgd_mnist/continual": ("accuracy_by_task",),
}
# The questions that the page answers first, and the confirmed comparisons that answer them.
_IN_SHORT = {
    "Does the paper's claim hold for ten layers, learning online with backprop?": (
        "10 layers, Glorot: constant Oja over no rule",
        "10 layers, Glorot: fading Oja over no rule",
    ),
    "What does the rule cost in five layers?": (
        "5 layers, Glorot: no rule over constant Oja",
        "5 layers, Glorot: no rule over fading Oja",
    ),
    "With backprop in deep networks, does the rule do anything that a simpler method does not?": (
        "15 layers, Glorot: gain homeostasis over constant Oja in hidden layers",
        "20 layers: He without a rule over Glorot with fading Oja",
    ),
    "And under random feedback?": (
        "10 layers, Glorot, random feedback: constant Oja in hidden layers over gain homeostasis",
        "10 layers, Glorot, random feedback: constant Oja in hidden layers over layer norm",
        "10 layers, Glorot, random feedback: constant Oja over layer norm",
        "5 layers, Glorot, random feedback: layer norm over constant Oja",
    ),
}
# Data that are not what their name says.
_DATA = {
    "idx:emnist47": " `idx:emnist47` is a balanced subset of EMNIST by-merge with its 47 classes, 480 training and 100 "
    "test images each; the official balanced split (`--dataset=emnist/balanced`) was not run."
}


def main(arguments: Sequence[str]) -> None:
    """Writes records, page, figure and README; errors of the user's go to standard error as one line, with exit code 2."""
    try:
        folder = Path(flags.FLAGS.workdir)
        taken = take(folder) if folder.is_dir() else []
        records = read()
        if not records:
            raise UserError(f"--workdir={folder} has no finished study below it: run `make sweep` first.")
        write_text(PAGE, page(records))
        write_text(README, readme(README.read_text(encoding="utf-8"), records))
        _draw(records)
        print(f"{len(taken)} studies taken from {folder}; {len(records)} in {PAGE.relative_to(ROOT)} and README.md")
    except UserError as error:
        sys.exit(complain(error))


def take(folder: Path) -> list[Finding]:
    """Writes the record of each finished study below a folder, and returns them."""
    from experiments import report

    studies, _ = report.found(folder)
    records: list[Finding] = [study.record for study in studies]
    for record in records:
        text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
        write_text(RECORDS / f"{_stem(record)}.json", text + "\n")
        for figure in _FIGURES.get(record["name"], ()):
            shutil.copyfile(
                folder / record["name"] / "figures" / f"{figure}.png", RECORDS / f"{_stem(record)}-{figure}.png"
            )
    return records


def _stem(record: Finding) -> str:
    return record["name"].replace("/", "-")


def _question(record: Finding) -> Any:
    return importlib.import_module(record["experiment"]).QUESTION


def read() -> list[Finding]:
    """Returns the committed records, in the order of the table of studies, first those on the embedded data."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))]
    order = re.findall(r"^\| `(\w+)`", STUDIES.read_text(encoding="utf-8"), re.MULTILINE)
    places = {name: place for place, name in enumerate(order)}
    return sorted(records, key=lambda r: ("/" in r["name"], places.get(r["experiment"].rpartition(".")[2], 99), r["name"]))


def command(record: Finding) -> str:
    """Returns the command that makes a record: the flagfile from which fewest of its flags differ, and these flags."""
    name, question = record["experiment"].rpartition(".")[2], _question(record)
    own, folder = f"{name}.flags", ROOT / "experiments" / "flagfiles"
    more = {path.name: _differing(question, path, record["flags"]) for path in sorted(folder.glob("*.flags"))}
    if more.get(own) == {}:
        return "make confirm" if findings.is_confirmation(record) else f"make sweep EXPERIMENTS={name}"
    fitting = {file: differing for file, differing in more.items() if differing is not None}
    file = min(fitting, key=lambda file: (len(fitting[file]), file != own))
    start = f"python -m experiments.{name} --flagfile=experiments/flagfiles/{file}"
    return " ".join([start, *(f"--{flag}={value}" for flag, value in fitting[file].items())])


def _differing(question: Any, flagfile: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the flags of a record that differ from a flagfile; None if the flagfile is of another question."""
    known = _flags_of(question, flagfile)
    return None if known is None else {name: value for name, value in wanted.items() if known.get(name) != value}


def _flags_of(question: Any, flagfile: Path) -> dict[str, Any] | None:
    """Returns a question's flags with a flagfile; None if the flagfile is of another question."""
    try:
        parsed = question.parsed(f"--flagfile={flagfile}").deciding()
    except (UserError, flags.Error):
        return None
    return {name: findings.without_folder(value) for name, value in parsed.items()}


def page(records: Sequence[Finding]) -> str:
    """Returns the page of results: tables and figures, with a sentence each."""
    lines = [
        "# What was found",
        "",
        BEGIN,
        "",
        "Every number on this page is written by `make results` from the records that studies leave in `docs/findings/`. "
        "Scores are means over seeds after the last sample. Each seed is scored at the setting that is best on the other "
        "seeds; tables name the setting that is best on average over all seeds. Brackets are 95 % intervals by "
        "Student's t. Gains are paired by seed and taken at equal search, so a gain may differ from the difference of two "
        "accuracies, even in sign. The words of a verdict, equal search, networks, rates and stresses are explained in "
        "[how results are measured](rule.md#how-results-are-measured), measures of layers in {mod}`ojax.measures`. "
        "`embedded` is the 10,000 images of Fashion-MNIST that come with ojax. The paper's rule has a constant rate; one "
        "that fades is this project's. Under "
        "[Confirmed](#confirmed) settings and seeds were fixed in advance. All other numbers are *exploratory*: grids and "
        "claims were made after similar numbers had been seen. The paper's other claims were studied with "
        "[version 0.1.0](results_0_1.md) only.",
        "",
        *_in_short(records),
        "## Claim by claim",
        "",
        findings.claims(records),
        "",
        "```{image} ../findings/forest.png",
        ":alt: The gain of each part of each claim, with its interval",
        "```",
        "",
        "*All gains in accuracy that a claim rests on, losses included.*",
        "",
        "## Confirmed",
        "",
        *_confirmed(records),
    ]
    for record in records:
        if not findings.is_confirmation(record):
            lines += [*_section(record), ""]
    lines += ["## What could not be shown", "", *_not_shown(records), "", END, ""]
    return "\n".join(lines)


def _confirmed(records: Sequence[Finding]) -> list[str]:
    found = [record for record in records if findings.is_confirmation(record)]
    if not found:
        return ["Nothing yet: `make confirm` has not been run on these results.", ""]
    lines = [_in_all(found), ""] if len(found) > 1 else []
    for record in found:
        images = "seeds" if record["dataset"]["name"] == "embedded" else "seeds and images"
        lines += [f"### Seeds {_of_confirmation(record)}", ""]
        lines += [
            f"Confirmed over {images}, after {_samples(record)}. {record['evidence'][0]} The command: `{command(record)}`."
        ]
        lines += ["", record["tables"][-1], ""]
    return lines


def _in_all(found: Sequence[Finding]) -> str:
    """Returns a sentence that counts the comparisons that hold in every confirmation."""
    says = [{part["part"]: part["says"] for part in record["parts"]} for record in found]
    shared = [name for name in says[0] if all(name in one for one in says)]
    held = collections.Counter(sum(one[name] == "holds" for one in says) for name in shared)
    counts = [f"{held[count]} in {count}" for count in range(len(found), -1, -1) if held[count]]
    total = f"Of {len(shared)} comparisons that ran on {len(found)} sets of seeds"
    return f"{total}, by the number of sets in which they hold after Holm's correction: {', '.join(counts)}. {_FROZEN}"


_FROZEN = (
    "A comparison that is shown for the later seeds alone was frozen before they ran. The "
    'rule is in all layers unless its name has "in hidden layers". Settings differ where comparisons come from different '
    "studies."
)


def _in_short(records: Sequence[Finding]) -> list[str]:
    """Returns the questions of `_IN_SHORT` with the gains of their comparisons, one per set of seeds; empty without any."""
    found = [record for record in records if findings.is_confirmation(record)]
    lines = []
    for question, names in _IN_SHORT.items():
        told = []
        for name in names:
            gains = [
                f"{part['gain']}, {part['says']} (seeds {_of_confirmation(record)})"
                for record in found
                for part in record["parts"]
                if part["part"] == name
            ]
            told += [f"- {name}: {'; '.join(gains)}"] if gains else []
        lines += [f"**{question}**", "", *told, ""] if told else []
    head = [
        "## In short",
        "",
        "Gains on new seeds, at settings frozen before; all of them are under [Confirmed](#confirmed).",
        "",
    ]
    return [*head, *lines] if lines else []


def _of_confirmation(record: Finding) -> str:
    """Returns seeds and data of a confirmation in words."""
    first, number = int(record["flags"]["seed"]), int(record["flags"]["seeds"])
    return f"{first} to {first + number - 1}, `{record['dataset']['name']}`"


def _section(record: Finding) -> list[str]:
    data, verdict = record["dataset"]["name"], record.get("verdict")
    variant = record["name"].rpartition("/")[0].replace("_", " ")
    lines = [
        f"## {record['question']}{f' ({variant})' if variant else ''}",
        "",
        f"Data: `{data}`, {_samples(record)}.{_DATA.get(data, '')}{_varied(record)}",
        "",
    ]
    if verdict:
        reason = f", as {record['reason']}" if record.get("reason") else ""
        lines += [f"*{record['claim']}* Verdict: **{verdict}**{reason}.", ""]
    for table in record["tables"]:
        lines += [table, ""]
    question = _question(record)
    drawings = {**question.figures, **question.measure_figures}
    for figure in _FIGURES.get(record["name"], ()):
        file = f"{_stem(record)}-{figure}.png"
        if (RECORDS / file).is_file():
            caption = figures.caption(drawings[figure])
            lines += [
                f"```{{image}} ../findings/{file}",
                f":alt: {figure.replace('_', ' ')}",
                "```",
                "",
                f"*{caption}*",
                "",
            ]
    return [*lines, f"The command: `{command(record)}`."]


def _samples(record: Finding) -> str:
    return f"{int(record['flags']['num_train']):,} samples"


def _varied(record: Finding) -> str:
    """Returns a sentence on the values of axes that a variant of a study has and the study itself has not, if any."""
    question, name = _question(record), record["experiment"].rpartition(".")[2]
    own = _flags_of(question, ROOT / "experiments" / "flagfiles" / f"{name}.flags") if "/" in record["name"] else None
    if own is None:
        return ""
    axes = [axis.name for axis in question.schema.axes if not axis.tuned and axis.name != question.methods]
    more = [axis for axis in axes if set(record["flags"][axis].split(",")) - set(own[axis].split(","))]
    told = [f"`--{axis}={record['flags'][axis]}`" for axis in more]
    return f" Here {', '.join(told)}." if told else ""


def _not_shown(records: Sequence[Finding]) -> list[str]:
    """What remains open: the studies that are undecided, and the parts of others that are."""
    lines = [
        f"- `{record['name']}`: {record['claim'].removeprefix(findings.OWN)} It is {record['verdict']}"
        + (f", as {record['reason']}." if record.get("reason") else ".")
        for record in records
        if record.get("verdict") and record["verdict"] != "reproduced" and not findings.is_confirmation(record)
    ]
    lines += [
        f"- Not confirmed: {part['part']}, {part['gain']}: {part['says']} (seeds {_of_confirmation(record)})."
        for record in records
        if findings.is_confirmation(record)
        for part in record["parts"]
        if part["says"] != "holds"
    ]
    if not any(record["dataset"]["name"] == "emnist/balanced" for record in records):
        lines.append(
            "- The paper's own data, the official balanced split of EMNIST (`--dataset=emnist/balanced`), were not run."
        )
    return lines


def readme(text: str, records: Sequence[Finding]) -> str:
    """Returns the README with a new table of confirmed comparisons between the two comments."""
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 or end < start:
        raise UserError(
            "README.md has no place for its table: put back the two comments that `make results` writes between."
        )
    lines = []
    for record in records:
        if record["name"] == "confirm":
            frozen = record["evidence"][0].partition(";")[0].lower()
            seeds = record["flags"]["seeds"]
            lines.append(
                f"Headline comparisons on {seeds} seeds that no study used, at settings {frozen} (`make confirm`):"
            )
            lines.append(_headlines(record["tables"][-1]))
    return "\n\n".join([text[: start + len(BEGIN)], *lines, text[end:]])


def _headlines(table: str) -> str:
    """Returns the rows of the table that the README shows, the scores of both sides without their intervals."""
    lines = []
    for line in table.splitlines():
        name, first, second, *others = line.strip("|").split("|")
        if name.strip() in {"comparison", "---", *confirm.HEADLINES}:
            scores = [re.sub(r" \[.*?\]| \(.*?\)", "", score) for score in (first, second)]
            lines.append(f"|{'|'.join([name, *scores, *others])}|")
    return "\n".join(lines)


def _draw(records: Sequence[Finding]) -> None:
    drawn = figures.in_style(lambda: findings.forest(records))
    with replacing(RECORDS / "forest.png") as temporary:
        drawn.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


if __name__ == "__main__":
    flags.DEFINE(parsers.FilePath(), "workdir", "results", "Folder below which finished studies are.")
    app.run(main, flags_parser=parse_flags)
