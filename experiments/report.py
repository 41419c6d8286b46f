"""One page of all studies below a folder: `python -m experiments.report --workdir=results` writes its `index.html`.

The page holds its figures and needs no network. `make sweep` ends with it.
"""

import base64
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags
from markdown_it import MarkdownIt

from experiments.common import workdir
from experiments.common.app import parse_flags
from experiments.common.errors import UserError, complain
from experiments.common.parsers import FilePath

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; }
h2 { border-top: 2px solid #ddd; padding-top: 1.5rem; margin-top: 2.5rem; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { color: #666; font-size: .85rem; text-align: center; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
pre { background: #f5f5f5; padding: .75rem; font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.verdict { display: inline-block; padding: .1rem .6rem; border-radius: 1rem; font-weight: 600; background: #eee; }
.reproduced { background: #cfe8d5; } .partly-reproduced { background: #fdebc8; } .not-reproduced { background: #f6d2cc; }
.facts { color: #666; font-size: .85rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  figure { overflow-x: auto; } figure img { max-width: none; width: 44rem; } .table table { width: 44rem; }
  .studies table, .studies tbody, .studies tr, .studies td { display: block; width: auto; }
  .studies th { display: none; } .studies td { border: 0; } .studies tr { border-bottom: 1px solid #ddd; padding: .5rem 0; }
}
@media print { body { max-width: none; font-size: 10pt; } figure, tr { break-inside: avoid; } h2 { break-before: page; } }
"""


def main(arguments: Sequence[str]) -> None:
    """Writes the page; errors of the user's go to standard error as one line, with exit code 2."""
    try:
        folder = Path(flags.FLAGS.workdir)
        studies = [study for study in (_read(path) for path in _folders(folder)) if study is not None]
        if not studies:
            raise UserError(
                f"--workdir={folder} has no finished study below it: run `make sweep`, or an experiment, first."
            )
        studies.sort(key=lambda study: study["began"])
        with workdir.replacing(folder / "index.html") as path:
            path.write_text(page(studies), encoding="utf-8")
        print(f"{len(studies)} studies in {folder / 'index.html'}")
    except UserError as error:
        sys.exit(complain(error))


def page(studies: Sequence[dict[str, Any]]) -> str:
    """The HTML of studies as :func:`_read` gives them."""
    parts = [_checked(study) for study in studies]
    rows = "".join(row for row, _ in parts)
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>ojax: what was found</title><style>{_STYLE}</style></head><body>\n"
        "<h1>Oja's plasticity rule beside backprop: what was found</h1>\n"
        "<p>Where nothing else is said, the claims are those of Shervani-Tabar, Mirhoseini and Rosenbaum, "
        "<a href='https://arxiv.org/abs/2408.08408'>arXiv 2408.08408</a>. Intervals are 95 % bootstrap intervals over "
        "seeds; gains are paired by seed. “Reproduced” means that every gain the verdict rests on is clearly above zero "
        "here and large enough to matter, “partly” that some are, “undecided” that these seeds cannot tell.</p>\n"
        "<div class='table studies'><table><tr><th>question</th><th>data</th><th>verdict</th><th>first of all</th></tr>"
        f"{rows}</table></div>\n" + "".join(section for _, section in parts) + "</body></html>\n"
    )


def _checked(study: dict[str, Any]) -> tuple[str, str]:
    """A study's row of the list and its section."""
    try:
        link = f"<a href='#{_anchor(study)}'>{html.escape(study['question'])}</a>"
        data = html.escape(str(study["dataset"]["name"]))
        first = html.escape(next(iter(study.get("evidence", ())), ""))
        return f"<tr><td>{link}</td><td>{data}</td><td>{_badge(study)}</td><td>{first}</td></tr>", _section(study)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(Path(study["folder"]), error) from None


def _section(study: dict[str, Any]) -> str:
    text = MarkdownIt("commonmark").enable("table").render
    method = " ".join(study["method"].split())
    evidence = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in study.get("evidence", ()))
    claim = f"<p><b>The claim.</b> {html.escape(study['claim'])}</p>\n" if study["claim"] else ""
    claim += f"<p><b>Verdict:</b> {_badge(study)}</p>\n<ul>{evidence}</ul>\n" if study.get("verdict") else ""
    table = "\n".join(line for line in study["summary"].splitlines() if line.startswith("|"))
    pictures = "".join(_figure(study, name) for name in study["figures"])
    data = study["dataset"]
    facts = (
        f"{study['num_runs']} runs, {study['seconds']:.0f} s; {data['name']} with {data['train']:,} training and "
        f"{data['test']:,} test images (SHA-256 {data['sha256'][:12]}…); {', '.join(study['devices'])}; "
        f"{', '.join(f'{name} {version}' for name, version in study['versions'].items())}; "
        f"revision {study['git_revision']}."
    )
    return (
        f"<section id='{_anchor(study)}'><h2>{html.escape(study['question'])}</h2>\n"
        f"<p><b>Data:</b> {html.escape(str(data['name']))}.</p>\n<p>{html.escape(method)}</p>\n"
        f"{claim}{pictures}\n"
        f"<div class='table'>{text(table)}</div>\n"
        f"<p>Tables and figures: <code>{html.escape(study['folder'])}</code>. To repeat it:</p>\n"
        f"<pre>{html.escape(study['command'])}</pre>\n<p class='facts'>{html.escape(facts)}</p></section>\n"
    )


def _figure(study: dict[str, Any], name: str) -> str:
    path = Path(study["folder"], "figures", f"{name}.png")
    try:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): remove its study's folder and run it again.") from None
    caption = html.escape(name.replace("_", " "))
    return f"<figure><img alt='{caption}' src='data:image/png;base64,{data}'><figcaption>{caption}</figcaption></figure>\n"


def _badge(study: dict[str, Any]) -> str:
    verdict = study.get("verdict") or "no verdict"
    return f"<span class='verdict {verdict.replace(' ', '-')}'>{html.escape(verdict)}</span>"


def _anchor(study: dict[str, Any]) -> str:
    return html.escape(Path(study["folder"]).name.replace(" ", "-"))


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise UserError(f"--workdir={folder} cannot be read: {error.strerror}.") from None


def _read(folder: Path) -> dict[str, Any] | None:
    """A finished study's configuration and summary; None where there is none."""
    if not (folder / "summary.md").exists():
        return None
    try:
        study = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        study |= {"summary": (folder / "summary.md").read_text(encoding="utf-8"), "folder": str(folder)}
        study["began"] = str(study["began"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, error) from None
    return study


def _damaged(folder: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())
    return UserError(f"{folder / 'config.json'} is damaged or older ({reason}): remove the folder and run it again.")


if __name__ == "__main__":
    flags.DEFINE(FilePath(), "workdir", "results", "Folder below which the studies' folders are; it receives index.html.")
    app.run(main, flags_parser=parse_flags)
