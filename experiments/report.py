"""One page of all studies below a folder: `python -m experiments.report --workdir=results` writes its `index.html`.

The page holds its figures and needs no network. `make sweep` ends with it.
"""

import base64
import errno
import html
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from markdown_it import MarkdownIt

from experiments.common import findings
from experiments.common.app import check_flags_alone, parse_flags
from experiments.common.errors import UserError, complain
from experiments.common.files import write_text
from experiments.common.parsers import FilePath
from ojax.trees import first_line

_STYLE = """
:root { color-scheme: light; overflow-wrap: break-word; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; }
h2 { border-top: 2px solid #ddd; padding-top: 1.5rem; margin-top: 2.5rem; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { color: #666; font-size: .85rem; text-align: center; }
.table { overflow-x: auto; margin: 1.5rem 0; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
pre { background: #f5f5f5; padding: .75rem; font-size: .8rem; white-space: pre-wrap; }
.verdict { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; font-weight: 600; background: #eee; }
.reproduced { background: #cfe8d5; } .partly-reproduced, .mixed { background: #fdebc8; }
.not-reproduced { background: #f6d2cc; }
.facts { color: #666; font-size: .85rem; }
@media (max-width: 40rem) {
  figure { overflow-x: auto; } figure img { max-width: none; width: 44rem; } table { width: max-content; max-width: 60rem; }
}
@media print { body { max-width: none; font-size: 10pt; } figure, tr { break-inside: avoid; } h2 { break-before: page; } }
"""


def main(arguments: Sequence[str]) -> None:
    """Writes the page; a user's error goes to standard error as one line, with exit code 2."""
    try:
        check_flags_alone(arguments)
        folder = Path(flags.FLAGS.workdir)
        studies = noted(folder)
        if not studies:
            raise UserError(
                f"--workdir={folder} has no finished study below it: run `make sweep`, or an experiment, first."
            )
        write_text(folder / "index.html", page(studies))
        print(f"{len(studies)} studies in {folder / 'index.html'}")
    except UserError as error:
        sys.exit(complain(error))


class Study(NamedTuple):
    """A finished study: when it first finished, its name, section in HTML, and record."""

    finished: str
    name: str
    section: str
    record: dict[str, Any]


def noted(folder: Path) -> list[Study]:
    """Returns the finished studies below a folder as :func:`found` does, and prints which folders are left out."""
    studies, skipped = found(folder)
    for path, reason in skipped.items():
        print(f"note: {path} is left out: {reason}.", file=sys.stderr)
    return studies


def found(folder: Path) -> tuple[list[Study], dict[Path, str]]:
    """Returns the finished studies below a folder, the first to finish first, and the folders left out with reasons.

    It searches subfolders, but not a study's own, and follows links. No folder counts twice.

    Raises:
      UserError: If the folder cannot be read.
    """
    studies: dict[Path, Study] = {}
    skipped: dict[Path, str] = {}
    seen = set()

    def note(error: OSError) -> None:
        skipped[Path(error.filename)] = f"it cannot be read ({error.strerror})"

    for current, below, _ in os.walk(folder, onerror=note, followlinks=True):
        path = Path(current)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if path.resolve() in seen or any((path / name).exists() for name in ("summary.md", "config.json", "identity.json")):
            below.clear()
        if path.resolve() not in seen and path != folder and not below:
            try:
                studies[path] = _read(path, path.relative_to(folder).as_posix())
            except OSError as error:
                skipped[path] = f"it holds no finished study ({error.strerror})"
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                skipped[path] = f"it is damaged or of another version ({first_line(error)})"
        seen.add(path.resolve())
    if folder in skipped:
        raise UserError(f"--workdir={folder}: {skipped[folder]}.")
    return sorted(studies.values(), key=lambda study: (study.finished, study.name)), skipped


def page(studies: Sequence[Study]) -> str:
    """Returns the HTML of the studies."""
    claims = _markdown(findings.claims([study.record for study in studies]))
    contents = "".join(
        f"<li><a href='#{_anchor(study.name)}'>{html.escape(study.record['question'])}</a> "
        f"({html.escape(str(study.record['dataset']['name']))}) {_badge(study.record)}</li>"
        for study in studies
    )
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>ojax: what was found</title><style>{_STYLE}</style></head><body>\n"
        "<h1>Oja's plasticity rule and backprop: what was found</h1>\n"
        "<p>Claims are by Shervani-Tabar, Mirhoseini and Rosenbaum, "
        "<a href='https://arxiv.org/abs/2408.08408'>arXiv 2408.08408</a>, or marked as this project's own. Intervals are "
        "95 % intervals by Student's t over seeds. Gains are paired by seed.</p>\n"
        "<p>Each part of a claim is a gain. “Reproduced”: every part is clearly above zero and large enough to matter. "
        "“Partly reproduced”: some parts are, after correction for their number, and none is reversed, a clear loss that "
        "is large enough to matter. “Mixed”: some parts are, and some are reversed. “Not reproduced”: no gain is large "
        "enough to matter, or after correction no part holds and some are reversed. “Undecided”: these runs cannot "
        "tell.</p>\n"
        f"<h2>Claim by claim</h2>\n{claims}{_forest(studies)}"
        f"<h2>The studies</h2>\n<ul>{contents}</ul>\n" + "".join(study.section for study in studies) + "</body></html>\n"
    )


def _read(folder: Path, name: str) -> Study:
    """Returns the study in a folder; raises OSError if a file is missing, and other errors if one is damaged."""
    texts = []
    for file in ("summary.md", "config.json"):
        if not (folder / file).is_file():  # Reading a pipe might never end.
            raise FileNotFoundError(errno.ENOENT, f"no {file}")
        texts.append((folder / file).read_text(encoding="utf-8"))
    study = json.loads(texts[1]) | {"summary": texts[0], "folder": str(folder), "name": name}
    record = findings.of_study(study, texts[0], name)
    findings.claims([record])  # Raises an error for a damaged record.
    return Study(str(study["finished"]), name, _section(study), record)


def _section(study: dict[str, Any]) -> str:
    method = " ".join(study["method"].split())
    evidence = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in study.get("evidence", ()))
    reason = f" as {html.escape(study['reason'])}" if study.get("reason") else ""
    claim = f"<p><b>The claim.</b> {html.escape(study['claim'])}</p>\n" if study["claim"] else ""
    claim += f"<p><b>Verdict:</b> {_badge(study)}{reason}</p>\n<ul>{evidence}</ul>\n" if study.get("verdict") else ""
    tables = "\n\n".join(findings.tables_of(study["summary"]))
    pictures = "".join(_figure(study, name, caption) for name, caption in study["figures"].items())
    data = study["dataset"]
    facts = (
        f"{study['num_runs']} runs, {study['seconds']:.0f} s; {data['name']} with {data['train']:,} training and "
        f"{data['test']:,} test images (SHA-256 {data['sha256'][:12]}…); {', '.join(study['devices'])}; "
        f"{', '.join(f'{name} {version}' for name, version in study['versions'].items())}; "
        f"revision {study['git_revision']}{' and others, see runs.csv' if len(study['runs_by_version']) > 1 else ''}."
    )
    return (
        f"<section id='{_anchor(study['name'])}'><h2>{html.escape(study['question'])}</h2>\n"
        f"<p><b>Data:</b> {html.escape(str(data['name']))}.</p>\n<p>{html.escape(method)}</p>\n"
        f"{claim}{pictures}\n"
        f"{_markdown(tables)}"
        f"<p>Tables and figures: <code>{html.escape(study['folder'])}</code>. To repeat it:</p>\n"
        f"<pre>{html.escape(study['command'])}</pre>\n<p class='facts'>{html.escape(facts)}</p></section>\n"
    )


def _forest(studies: Sequence[Study]) -> str:
    """Returns the figure of all gains; empty if no claim has parts."""
    records = [study.record for study in studies]
    if not any(record.get("parts") for record in records):
        return ""
    from experiments.common import figures  # Imported late: Matplotlib takes a second.

    figures.in_style(lambda: findings.forest(records)).savefig(png := io.BytesIO(), format="png", dpi=150)
    caption = "All gains in accuracy that a claim rests on, losses included."
    return _picture(png.getvalue(), caption)


def _figure(study: dict[str, Any], name: str, caption: str) -> str:
    return _picture(Path(study["folder"], "figures", f"{name}.png").read_bytes(), caption or name.replace("_", " "))


def _picture(png: bytes, words: str) -> str:
    data, caption = base64.b64encode(png).decode("ascii"), html.escape(words)
    return f"<figure><img alt='{caption}' src='data:image/png;base64,{data}'><figcaption>{caption}</figcaption></figure>\n"


def _badge(study: dict[str, Any]) -> str:
    verdict = study.get("verdict") or "no verdict"
    return f"<span class='verdict {verdict.replace(' ', '-')}'>{html.escape(verdict)}</span>"


def _anchor(name: str) -> str:
    return html.escape(name.replace(" ", "-"))


def _markdown(text: str) -> str:
    """Returns the HTML of a text in Markdown, in which each table scrolls sideways in its own box."""
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    return rendered.replace("<table>", "<div class='table'><table>").replace("</table>", "</table></div>")


if __name__ == "__main__":
    flags.DEFINE(FilePath(), "workdir", "results", "Folder below which the studies' folders are; it receives index.html.")
    app.run(main, flags_parser=parse_flags)
