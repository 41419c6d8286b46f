"""Writes the page of results and the README's numbers: `make results`.

The records of finished studies below --workdir go to `docs/findings/`, which is committed; without any, the records there
are used as they are. From them alone come `docs/how/results.md`, its figures, and the table in README.md.
"""

import importlib
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments import answers
from experiments.common import figures, findings, markdown, parsers, verdicts
from experiments.common.app import check_flags_alone, parse_flags
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
    "critical_period": ("accuracy_by_half_life", "accuracy_by_timing"),
    "convolution": ("accuracy_by_condition",),
    "meta_learning": ("by_pool",),
    "transfer": ("accuracy",),
    "feedback_rivals": ("rivals", "stress"),
    "networks/feedback_rivals": ("stress",),
    "anatomy": ("arms", "prediction", "by_layer"),
    "weight_init": ("accuracy_by_initial_weights",),
    "engineering_tricks": ("tricks",),
    "feedback_alignment": ("accuracy_by_feedback",),
    "data_scarcity": ("accuracy_by_samples",),
    "short_term_memory": ("capacity",),
    "blank_rows": ("accuracy_by_delay",),
    "copy_task": ("accuracy_by_delay",),
    **{f"{name}continual": ("accuracy_by_task",) for name in ("", "wide/", "upgd_mnist/", "upgd_emnist/")},
}
# Each label of a method in a sentence, with its own parameter. "Hidden" is every layer but the read-out.
METHODS: Mapping[str, str] = json.loads(Path(__file__).with_name("methods.json").read_text(encoding="utf-8"))


def main(arguments: Sequence[str]) -> None:
    """Writes records, page, figure and README; errors of the user's go to standard error as one line, with exit code 2."""
    try:
        check_flags_alone(arguments)
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

    records: list[Finding] = [study.record for study in report.noted(folder)]
    for record in records:
        text = json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)
        write_text(RECORDS / f"{_stem(record)}.json", text + "\n")
        for figure in _FIGURES.get(record["name"], ()):
            source = folder / record["name"] / "figures" / f"{figure}.png"
            if not source.is_file():
                raise UserError(f"{source} is missing: run this study by its own flagfile.")
            with replacing(RECORDS / f"{_stem(record)}-{figure}.png") as path:
                shutil.copyfile(source, path)
    return records


def _stem(record: Finding) -> str:
    return record["name"].replace("/", "-")


def _question(record: Finding) -> Any:
    return importlib.import_module(record["experiment"]).QUESTION


def read() -> list[Finding]:
    """Returns the committed records, in the order of the table of studies, first those on the embedded data."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RECORDS.glob("*.json"))]
    places = {name: place for place, name in enumerate(_studies())}

    def place(record: Finding) -> tuple[Any, ...]:
        number = places.get(_study(record), len(places))
        return "/" in record["name"], number, record["dataset"]["name"] != "embedded", record["name"]

    return sorted(records, key=place)


def _studies() -> list[str]:
    """Returns the names of all studies, in the order of their table in the documentation."""
    return re.findall(r"^\| `(\w+)`", STUDIES.read_text(encoding="utf-8"), re.MULTILINE)


def _study(record: Finding) -> str:
    return record["experiment"].rpartition(".")[2]


def command(record: Finding) -> str:
    """Returns the command that makes a record: the flagfile from which fewest of its flags differ, and these flags."""
    name, question = _study(record), _question(record)
    own, folder = f"{name}.flags", ROOT / "experiments" / "flagfiles"
    if _differing(question, folder / own, record["flags"]) == {}:
        return "make confirm" if findings.is_confirmation(record) else f"make sweep EXPERIMENTS={name}"
    more = {path.name: _differing(question, path, record["flags"]) for path in sorted(folder.glob("*.flags"))}
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
        "Scores are means over seeds after the last sample; in streams that change, of the online accuracy in the last "
        "half of the tasks. On new seeds settings are fixed. Elsewhere each seed is scored at the setting that is best on "
        "the other seeds, so a mean may be over several settings; tables name the one that is best on average over all "
        "seeds. Square brackets are 95 % intervals by Student's t. Gains are paired by seed and taken at equal search, so "
        "a gain may differ from the difference of two accuracies, even in sign. *At the edge* is a best value that is "
        "the first or last one tried, with none within 0.01 of its score between them; the end at which a rule vanishes "
        "does not count. The words of a verdict, equal search, networks, rates, stresses and measures are explained in "
        "[how results are measured](rule.md#how-results-are-measured), methods [below](#methods). `embedded` is the "
        "12,000 images of Fashion-MNIST that come with ojax, `idx:emnist47` a part of EMNIST by-merge with 47 classes. "
        "The paper's rule has a constant rate; one that fades is this project's.",
        "",
        "A comparison is *confirmed* in a column of [new seeds](#on-new-seeds) if its cell says **holds**: there settings "
        "and seeds were fixed in advance. Numbers outside of that "
        "section and of *In short* are *exploratory*: grids and claims were made after similar numbers had been seen.",
        "",
        *_missing(records),
        *_in_short(records),
        "## Claim by claim",
        "",
        "What stands in quotation marks is from the abstracts of the paper's versions on arXiv. Each claim is judged by "
        "its study alone, on its data and at equal search; [on new seeds](#on-new-seeds) settings were fixed before, and "
        "other data were tried too.",
        "",
        findings.claims(records, answers.VARIANTS),
        "",
        *_image("forest", "All gains in accuracy that a claim rests on, losses included."),
        "## On new seeds",
        "",
        *_on_new_seeds(records),
    ]
    for record in records:
        if not findings.is_confirmation(record):
            lines += [*_section(record), ""]
    lines += ["## Methods", "", _methods(records), ""]
    lines += ["## What could not be shown", "", *_not_shown(records), "", END, ""]
    return "\n".join(lines)


def _confirmations(records: Sequence[Finding]) -> list[Finding]:
    """Returns the records on new seeds, those on the data of the studies first, then by data and seeds."""

    def place(record: Finding) -> tuple[bool, str, int]:
        data = record["dataset"]["name"]
        return data != "embedded", data, int(record["flags"]["seed"])

    return sorted(filter(findings.is_confirmation, records), key=place)


def _missing(records: Sequence[Finding]) -> list[str]:
    """Returns a sentence that names the studies without a record; empty if each study has one."""
    names = [f"`{name}`" for name in _studies() if name not in {_study(record) for record in records}]
    return [f"Not run with this version: {', '.join(names)}.", ""] if names else []


def _on_new_seeds(records: Sequence[Finding]) -> list[str]:
    found = _confirmations(records)
    if not found:
        return ["Nothing yet: `make confirm` has not been run on these results.", ""]
    names = dict.fromkeys(part["part"] for record in found for part in record["parts"])
    lines = [answers.FROZEN, "", _overview(found, list(names)), "", _counted(found, list(names)), ""]
    lines += _image(
        "new_seeds", "All gains on new seeds, with 95 % intervals; a filled marker holds after Holm's correction."
    )
    for record in found:
        data = record["dataset"]["name"]  # The settings were chosen on the embedded images.
        images = "seeds" if data == "embedded" else "seeds and images"
        lines += [f"### Seeds {_of_confirmation(record)}", ""]
        told = f"{record['evidence'][0]}{answers.DATA.get(data, '')} The command: `{command(record)}`."
        lines += [f"Other {images}, {_samples(record)}. {told}"]
        lines += ["", record["tables"][-1], ""]
    return lines


def _overview(found: Sequence[Finding], names: Sequence[str]) -> str:
    """Returns a table with the gains of comparisons on each set of new seeds, and whether they hold."""
    rows = []
    outcomes = [{part["part"]: part for part in record["parts"]} for record in found]
    for name in names:
        parts = [outcome.get(name) for outcome in outcomes]
        cells = [f"{part['gain']} {_held(part['says'])}" if part else "" for part in parts]
        rows += [[name, *cells]] if any(parts) else []
    columns = ["comparison, first over second", *(f"seeds {_of_confirmation(record)}" for record in found)]
    return markdown.table(columns, rows)


def _counted(found: Sequence[Finding], names: Sequence[str]) -> str:
    """Returns in how many columns of the table each comparison holds, as a list, those that hold in all first."""
    by_count: dict[str, list[str]] = {}
    for name in names:
        if count := _count(found, name):
            by_count.setdefault(count, []).append(name)

    def share(count: str) -> tuple[float, int]:
        held, _, tried = count.partition(" of ")
        return -int(held) / int(tried), -int(tried)

    return "\n".join(f"- Holds in **{count}**: {'; '.join(by_count[count])}." for count in sorted(by_count, key=share))


def _count(found: Sequence[Finding], name: str) -> str:
    """Returns in how many columns a comparison holds, `2 of 6`; empty if it is in none."""
    says = [part["says"] for record in found for part in record["parts"] if part["part"] == name]
    return f"{says.count('holds')} of {len(says)}" if says else ""


def _held(says: str) -> str:
    return f"**{says}**" if says == "holds" else says


def _in_short(records: Sequence[Finding]) -> list[str]:
    """Returns the questions of `answers.IN_SHORT`, each with a table of its comparisons; empty without any."""
    found = _confirmations(records)
    if not found:
        return []
    lines = [
        "## In short",
        "",
        "Gains on seeds that no study had used, or on other images. The settings had been chosen before, on `embedded`. "
        "All are under [new seeds](#on-new-seeds). The list below a table says in how many of its columns each comparison "
        "holds.",
        "",
    ]
    for (question, names), (answer, counts) in zip(answers.IN_SHORT.items(), answers.ANSWERS, strict=True):
        if counted := _counted(found, names):
            holds = tuple(_count(found, name) for name in names) == counts
            lines += [f"**{question}** {answer if holds else ''}".rstrip(), "", _overview(found, names), "", counted, ""]
    return lines


def _of_confirmation(record: Finding) -> str:
    """Returns seeds and data of a confirmation in words."""
    first, number = int(record["flags"]["seed"]), int(record["flags"]["seeds"])
    return f"{first} to {first + number - 1}, `{record['dataset']['name']}`"


def _section(record: Finding) -> list[str]:
    data, verdict = record["dataset"]["name"], record.get("verdict")
    folder = record["name"].rpartition("/")[0]
    variant = answers.VARIANTS.get(record["name"], folder)
    lines = [
        f"## {record['question']}{f' ({variant})' if variant else ''}",
        "",
        f"Data: `{data}`, {_samples(record)}.{answers.DATA.get(data, '')}{_varied(record)}",
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
        name = f"{_stem(record)}-{figure}"
        if (RECORDS / f"{name}.png").is_file():
            lines += _image(name, figures.caption(drawings[figure]))
    return [*lines, f"The command: `{command(record)}`."]


def _image(name: str, caption: str) -> list[str]:
    """Returns a figure of `docs/findings` with its caption."""
    words = name.rpartition("-")[2].replace("_", " ")
    return [f"```{{image}} ../findings/{name}.png", f":alt: {words}", "```", "", f"*{caption}*", ""]


def _samples(record: Finding) -> str:
    count = f"{int(record['flags']['num_train']):,} {_question(record).task.score.samples}"
    if (epochs := int(record["flags"].get("epochs", 1))) > 1:
        count += f", each {epochs} times"
    half_life = record["flags"].get("half_life")  # Of studies where it is not tuned.
    return count + (f"; a fading rate halves every {half_life:,.0f} samples" if half_life else "")


def _varied(record: Finding) -> str:
    """Returns a sentence on the values of axes that a variant of a study has and the study itself has not, if any."""
    question, name = _question(record), _study(record)
    own = _flags_of(question, ROOT / "experiments" / "flagfiles" / f"{name}.flags") if "/" in record["name"] else None
    if own is None:
        return ""
    axes = [axis.name for axis in question.schema.axes if not axis.tuned and axis.name != question.methods]
    more = [axis for axis in axes if set(record["flags"][axis].split(",")) - set(own[axis].split(","))]
    told = [f"`--{axis}={record['flags'][axis]}`" for axis in more]
    return f" Here {', '.join(told)}." if told else ""


def _methods(records: Sequence[Finding]) -> str:
    """Returns a table with a sentence on each method that the tables of studies name."""
    tables = "\n".join(table for record in records for table in record["tables"])
    named = [(label, words) for label, words in METHODS.items() if f"| {label} |" in tables]
    return markdown.table(["method", "what it is"], named)


def _not_shown(records: Sequence[Finding]) -> list[str]:
    """Returns what remains open: claims that are undecided, parts that do not hold, and comparisons on new seeds."""
    lines = []
    for record in records:
        verdict = record.get("verdict")
        if verdict in (None, verdicts.REPRODUCED, verdicts.NOT_TESTED) or findings.is_confirmation(record):
            continue
        if verdict in (verdicts.PARTLY, verdicts.MIXED):
            by_outcome: dict[str, list[str]] = {}
            for part in record["parts"]:
                by_outcome.setdefault(part["says"].partition(":")[0], []).append(part["part"])
            told = [
                f"{outcome.capitalize()}: {'; '.join(names)}" for outcome, names in by_outcome.items() if outcome != "holds"
            ]
            lines.append(f"- `{record['name']}` is {verdict}. {'. '.join(told)}.")
        else:
            reason = f", as {record['reason']}" if record.get("reason") else ""
            claim = record["claim"].removeprefix(findings.OWN).rstrip(".")
            lines.append(f"- `{record['name']}`: the claim “{claim}” is {verdict}{reason}.")
    confirmed = [record["parts"] for record in _confirmations(records)]
    held = {part["part"] for parts in confirmed for part in parts if part["says"] == "holds"}
    never = dict.fromkeys(part["part"] for parts in confirmed for part in parts if part["part"] not in held)
    if never:
        lines.append(f"- These hold in no column of the table on new seeds: {'; '.join(never)}.")
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
    found = _confirmations(records)
    names = [first for first, *_ in answers.IN_SHORT.values()]
    lines = [answers.HEADLINES, _overview(found, names)] if found else []
    return "\n\n".join([text[: start + len(BEGIN)], *lines, text[end:]])


def _draw(records: Sequence[Finding]) -> None:
    sets = {f"seeds {_of_confirmation(record).replace('`', '')}": record for record in _confirmations(records)}
    others = [record for record in records if not findings.is_confirmation(record)]
    for name, draw in {"forest": lambda: findings.forest(others), "new_seeds": lambda: findings.by_set(sets)}.items():
        drawn = figures.in_style(draw)
        with replacing(RECORDS / f"{name}.png") as temporary:
            drawn.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


if __name__ == "__main__":
    flags.DEFINE(parsers.FilePath(), "workdir", "results", "Folder below which finished studies are.")
    app.run(main, flags_parser=parse_flags)
