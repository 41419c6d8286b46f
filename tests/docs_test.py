"""README and documentation: every link, anchor, name, command, flag and extra in them exists. No network is used.

`make docs` executes their code; here nothing is executed.
"""

import importlib
import importlib.util
import itertools
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.experiments.conducting import parse
from tests.experiments.made_up import NAMES as QUESTIONS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("[!_]*/*.md"))]
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]

# Files that a page tells the reader to write, and words that stand for a name.
_WRITTEN = {"experiments/my_question.py", "experiments/flagfiles/NAME.flags"}
# Flags that every program of absl has.
_FOREIGN = {"--help", "--flagfile"}


def named(page):
    """The page's path, for error messages."""
    return str(page.relative_to(ROOT))


def text_of(page):
    return page.read_text(encoding="utf-8")


def inline(page):
    """The page's inline tokens, and whether each is a heading."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text_of(page))
    return [
        (before.type == "heading_open", token) for before, token in itertools.pairwise(tokens) if token.type == "inline"
    ]


def anchors(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = ["".join(part.content for part in token.children) for is_heading, token in inline(page) if is_heading]
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def targets(page):
    """What the page's links and images point to."""
    parts = [part for _, token in inline(page) for part in token.children]
    found = [part.attrs.get("href", part.attrs.get("src")) for part in parts if part.type in ("link_open", "image")]
    return found + re.findall(r"(?m)^```\{(?:image|figure)\} (\S+)", text_of(page))


def broken(page, target):
    """Why a link or an image of the page leads nowhere, or None."""
    if re.match(r"[a-z]+:", target):
        return None if target.startswith(("https://", "mailto:")) else "is not https"
    path, _, anchor = target.partition("#")
    found = (page.parent / path) if path else page
    if not found.exists():
        return "is not there"
    if anchor and (found.suffix != ".md" or anchor not in anchors(found)):
        return "has no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_and_anchor_is_there(page):
    assert [(target, why) for target in targets(page) if (why := broken(page, target))] == []


def test_broken_links_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One `two` three\n\n[a](#one-two-three) [b](#four) [c](none.md)\n\n| x |\n|---|\n| [d](http://x.org) |\n"
    )
    assert [broken(page, target) for target in targets(page)] == [
        None,
        "has no such heading",
        "is not there",
        "is not https",
    ]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_path_is_there(page):
    paths = re.findall(r"\b(?:ojax|experiments|tests|docs)/[\w/.]+\.(?:py|flags|json|md|txtpb)\b", text_of(page))
    assert [path for path in set(paths) - _WRITTEN if not (ROOT / path).exists() and page.name != "CHANGELOG.md"] == []


def resolved(name):
    """The object of a dotted name; raises AttributeError or ImportError if there is none."""
    parts = name.split(".")
    for split in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:split]))
        except ModuleNotFoundError:
            continue
        for part in parts[split:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


@pytest.mark.parametrize("page", DOCS, ids=named)
def test_every_name_of_the_library_is_there(page):
    """Names in roles, and those in code spans and calls that begin with `ojax.`"""
    prose = re.sub(r"(?ms)^```.*?^```", "", text_of(page))
    roles = re.findall(r"\{(?:func|class|mod|meth|data|exc|attr)\}`~?([\w.]+)`", prose)
    spans = re.findall(r"`((?:ojax|online|experiments)\.[\w.]*\w)", re.sub(r"\{\w+\}`", "", prose))
    files = {name for name in spans if name.endswith((".py", ".json", ".flags", ".md"))} | {"experiments.my_question"}
    for name in {*roles, *spans} - files:
        assert resolved(f"ojax.{name}" if name.startswith("online.") else name) is not None, name


def commands(start):
    """All commands of the pages that begin like that, each with its page: in text, in indented lines and in fences."""
    found = set()
    for page in PAGES:
        text = re.sub(r"\s*\\\n\s*", " ", text_of(page))
        fence = re.compile(r"(?ms)^```[^\n]*\n(.*?)^```")
        fences, prose = fence.findall(text), fence.sub("", text)
        lines = [line for block in fences for line in block.splitlines()] + re.findall(r"(?m)^    (.*)", prose)
        lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
        found |= {
            (line[match.start() :].partition(" # ")[0].strip(), named(page))
            for line in lines
            if (match := re.search(start, line))
        }
    return sorted(found)


def studies():
    """The arguments of every study that a page runs: also those of a container's `command` and `args`."""
    for command, page in commands(r"python -m experiments\."):
        yield shlex.split(command.rstrip('"'))[2:], page  # The quote of a command within a command.
    for page in DOCS:
        for block in re.findall(r"(?ms)^```yaml\n(.*?)^```", text_of(page)):
            for document in yaml.safe_load_all(block):
                containers = document["spec"].get("template", {}).get("spec", {}).get("containers", [])
                for container in containers:
                    yield container["command"][2:] + container["args"], named(page)


def check_study(module, *flags):
    """Parses a study's flags, with its flagfile."""
    names = QUESTIONS if module == "experiments.NAME" else [module.removeprefix("experiments.")]
    for name in names:
        question = importlib.import_module(f"experiments.{name}").QUESTION
        given = [flag.replace("NAME", name).replace("=experiments/", f"={ROOT}/experiments/") for flag in flags]
        given = [flag.replace("$(JOB_COMPLETION_INDEX)", "0") for flag in given]
        assert parse(question, *given)["workdir"]


def test_the_studies_have_their_flags():
    found = list(studies())
    assert len(found) >= 10 and any("--process_id=$(JOB_COMPLETION_INDEX)" in arguments for arguments, _ in found)
    for (module, *flags), page in found:
        if module in ("experiments.report", "experiments.results", "experiments.benchmark"):
            path = ROOT / module.replace(".", "/")
            source = text_of(path / "__main__.py" if path.is_dir() else path.with_suffix(".py"))
            assert all(f'"{flag[2:].partition("=")[0]}"' in source for flag in flags), (page, flags)
        elif module != "experiments.my_question":
            check_study(module, *flags)
    with pytest.raises(Exception, match="no_such_flag"):
        check_study("experiments.deep_mlp", "--no_such_flag=1")


def test_modules_that_are_run_are_there():
    for command, page in commands(r"python -m (?!experiments\.)\w"):
        module = shlex.split(command)[2]
        assert importlib.util.find_spec(module) is not None, (page, module)


def test_every_flag_that_is_mentioned_is_one_of_a_study():
    known = {f"--{name}" for asked in [*QUESTIONS, "confirm"] for name in of_question(asked)}
    for page in [README, *DOCS]:
        prose = re.sub(r"(?ms)^```.*?^```", "", text_of(page))
        for span in re.findall(r"`(--[^`]+)`", prose):
            for flag in re.findall(r"(?:^| )(--\w[\w-]*)", " ".join(span.split())):
                assert flag in known | _FOREIGN, (named(page), flag)


def of_question(name):
    """The names of a question's flags."""
    return parse(importlib.import_module(f"experiments.{name}").QUESTION)


def test_the_makefile_has_the_commands_that_are_told():
    told = commands("^make ")
    assert {"make sweep", "make sweep EXPERIMENTS=all", "make docs", "make test", "make setup"} <= {
        name for name, _ in told
    }
    for command in {name for name, _ in told}:
        done = subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stderr)


def test_extras_that_are_installed_are_there():
    found = [(command, page) for command, page in commands(r"pip install ") if "[" in command]
    assert len(found) >= 5
    for command, page in found:
        for names in re.findall(r"\.\[([\w,]+)\]", command):
            assert set(names.split(",")) <= set(EXTRAS), (page, command)


def test_every_question_is_listed():
    table = text_of(ROOT / "docs" / "how" / "studies.md").partition("| module in `experiments` |")[2].partition("\n\n")[0]
    listed = itertools.chain(*(re.findall(r"`(\w+)`", row.split("|")[1]) for row in table.splitlines()[2:]))
    assert set(listed) == set(QUESTIONS)


def test_code_that_is_not_executed_is_python():
    for page in DOCS:
        for block in re.findall(r"(?ms)^```python\n(.*?)^```", text_of(page)):
            compile(block, named(page), "exec")


def test_the_accuracies_of_start_are_those_of_the_records():
    (section,) = re.findall(r"(?ms)^## Which rates\n(.*?)^## ", text_of(ROOT / "docs" / "start.md"))
    told = set(re.findall(r"\b0\.\d{3}\b", section))
    assert len(told) >= 15
    assert told <= set(re.findall(r"\b0\.\d{3}\b", text_of(ROOT / "docs" / "findings" / "confirm.json")))


def test_the_numbers_in_prose_are_those_of_the_records():
    """Accuracies and gains of three decimals, in sentences on what was found."""
    records = "".join(path.read_text() for path in (ROOT / "docs" / "findings").glob("*.json"))
    (readme,) = re.findall(r"(?ms)^## What was found\n(.*?)^<!--", text_of(ROOT / "README.md"))
    (fading,) = re.findall(r"(?ms)^## A rule that fades\n(.*?)^## ", text_of(ROOT / "docs" / "how" / "rule.md"))
    told = re.findall(r"[+-]?\b0\.\d{3}\b", readme + fading)
    assert len(told) > 15 and [number for number in told if number not in records] == []
