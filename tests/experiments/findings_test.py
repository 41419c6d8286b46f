"""Records, the table of claims, the forest plot and the page of results are written from what studies left, and no more."""

import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import anatomy, answers, confirm, report
from experiments import results as command
from experiments.common import figures, findings, grid, statistics, verdicts
from experiments.common.errors import UserError
from experiments.tasks import registry
from ojax import datasets, online
from tests.experiments import made_up
from tests.experiments.conducting import parse

pytestmark = pytest.mark.compiled_quickly


def config(name, **changes):
    """The `config.json` of a study on made-up results."""
    asked = made_up.question(name)
    settings = asked.parsed(f"--flagfile=experiments/flagfiles/{name}.flags", "--seeds=8")
    verdict = asked.verdict(made_up.results(name, np.random.default_rng(0), 0.1))
    facts = {"question": asked.title, "method": asked.method, "claim": asked.claim, "abstract": asked.abstract}
    facts |= {"verdict": verdict.outcome, "reason": verdict.reason, "parts": list(verdict.parts), "gains": verdict.gains}
    facts |= {"evidence": list(verdict.evidence), "num_runs": 160, "versions": {"jax": "1"}, "devices": ["cpu:cpu"]}
    return facts | {
        "experiment": asked.module,
        "flags": settings.deciding(),
        "dataset": {"name": "embedded", "sha256": "0"},
        "workdir": "/home/somebody/results",
        "data_dir": "/home/somebody/data",
        "command": "python -m x --workdir=/home/somebody/results",
        **changes,
    }


SUMMARY = "# Why?\n\n| part |\n|---|\n| one |\n\nWords.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n    a command\n"


def test_a_record_names_no_place():
    flags = config("deep_mlp")["flags"] | {"dataset": "idx:/home/somebody/emnist47"}
    data = {"name": "idx:/home/somebody/emnist47", "sha256": "0"}
    record = findings.of_study(config("deep_mlp", flags=flags, dataset=data), SUMMARY, "emnist47/deep_mlp")
    assert "somebody" not in json.dumps(record) and record["dataset"]["name"] == "idx:emnist47"
    assert record["tables"] == ["| part |\n|---|\n| one |", "| a | b |\n|---|---|\n| 1 | 2 |"]
    assert findings.of_study(config("deep_mlp"), SUMMARY, "deep_mlp")["flags"]["dataset"] == "embedded"


def test_the_table_of_claims():
    records = [findings.of_study(config(name), SUMMARY, name) for name in ("controls", "deep_mlp", "blank_rows")]
    _, _, *rows = findings.claims(records).splitlines()
    assert [row.split("`")[1] for row in rows] == ["deep_mlp", "blank_rows", "controls"]  # The paper's claims come first.
    assert "substantially improve" in rows[0] and "He's weights in place of the rule" in rows[0]
    (part,) = records[1]["parts"]
    assert f"| {part['gain']} |" in rows[0] and "| 8 seeds, 160 runs, embedded |" in rows[0]
    means = [part["mean"] for part in records[2]["parts"]]
    assert f"| {min(means):+.3f} to {max(means):+.3f} in 9 parts; 9 hold |" in rows[1]
    assert "| this project's own | `controls`: where Oja's rule in all layers helps most, nothing simpler" in rows[2]
    decades = [{**part, "unit": "decades"} for part in records[2]["parts"]]
    assert " decades in 9 parts; " in findings.claims([{**records[2], "parts": decades}])
    mixed = [records[2]["parts"][0], *decades[1:]]
    assert "| 9 parts in different units; 9 hold |" in findings.claims([{**records[2], "parts": mixed}])
    undecided = findings.claims([{**records[1], "verdict": "undecided", "reason": "too few"}])
    assert "**undecided**, as too few" in undecided


def test_the_forest_plot_shows_losses_too():
    record = findings.of_study(config("blank_rows"), SUMMARY, "blank_rows")
    loss = {
        "part": "a loss",
        "mean": -0.2,
        "low": -0.3,
        "high": -0.1,
        "gain": "",
        "p": 1.0,
        "unit": "",
        "says": "reversed",
    }
    decades = {**loss, "part": "a range of gains", "unit": "decades"}
    alone = {**loss, "part": "one seed", "low": float("nan"), "high": float("nan"), "says": "not clear"}
    figure = figures.in_style(lambda: findings.forest([record, {**record, "parts": [loss, decades, alone]}]))
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == (1 + 9) + (1 + 2) and labels[-3:] == ["blank_rows", "a loss", "one seed"]
    assert any(line.get_xdata()[0] == -0.3 for line in axes.lines)
    assert figures.in_style(lambda: findings.forest([])).axes


def test_the_plot_of_new_seeds_has_one_row_a_comparison_and_fills_what_holds():
    def part(name, mean, says):
        return {"part": name, "mean": mean, "low": mean - 0.1, "high": mean + 0.1, "says": says}

    sets = {
        "first": {"parts": [part("a", 0.3, "holds"), part("b", -0.3, "reversed")]},
        "second": {"parts": [part("b", 0.4, "holds")]},
    }
    (axes,) = figures.in_style(lambda: findings.by_set(sets)).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    markers = [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_marker() in "os"]
    drawn = [(line.get_xdata()[0], round(line.get_ydata()[0]), line.get_markerfacecolor() != "white") for line in markers]
    assert drawn == [(0.3, 0, True), (-0.3, 1, False), (0.4, 1, True)]
    assert axes.get_legend_handles_labels()[1] == ["first", "second"]
    assert figures.in_style(lambda: findings.by_set({})).axes


def test_the_command_of_a_record():
    plain = findings.of_study(config("blank_rows"), SUMMARY, "blank_rows")
    assert command.command(plain) == "make sweep EXPERIMENTS=blank_rows"
    other = {**plain, "flags": plain["flags"] | {"seeds": 16, "delay": "0"}}
    told = command.command(other)
    assert told == "python -m experiments.blank_rows --flagfile=experiments/flagfiles/blank_rows.flags --delay=0 --seeds=16"
    longer = json.loads((command.RECORDS / "longer-feedback_rivals.json").read_text())
    told = command.command(longer)
    assert told.startswith("python -m experiments.feedback_rivals --flagfile=experiments/flagfiles/feedback_longer.flags")
    assert "--label_changes" not in told and "--num_train" not in told


def test_the_page_has_every_study_and_what_could_not_be_shown():
    records = [findings.of_study(config(name), SUMMARY, name) for name in ("deep_mlp", "blank_rows")]
    records[0] |= {"verdict": "undecided", "reason": "there is a single depth, 5"}
    page = command.page(records)
    for record in records:
        assert f"## {record['question']}" in page and record["tables"][1] in page
    shown, _, not_shown = page.partition("## What could not be shown")
    assert (
        "there is a single depth, 5" in not_shown and "`blank_rows`" not in not_shown and "`emnist/balanced`" not in shown
    )
    assert re.search(r"^Not run with this version: (?!.*`deep_mlp`).*`controls`", shown, re.MULTILINE)
    assert "Nothing yet: `make confirm`" in shown and page.endswith(f"{command.END}\n")


def test_the_page_says_what_each_method_is():
    registries = (registry.RIVALS, registry.CONTINUAL, registry.ANATOMY, registry.FEEDBACK)
    assert {rival.label for entries in registries for rival in entries.values()} == set(command.METHODS)
    table = "| method | accuracy |\n|---|---|\n| L2 | 0.5 |"
    record = findings.of_study(config("blank_rows"), f"# Why?\n\n{table}\n", "blank_rows")
    *_, last = command.page([record]).partition("## Methods")[2].partition("## What")[0].strip().splitlines()
    assert last == f"| L2 | {command.METHODS['L2']} |" and "UPGD" not in command.page([record])


def confirmation(seed, says):
    """A record of the confirmation, with an outcome for each of the first comparisons that the page names."""
    names = next(iter(answers.IN_SHORT.values()))
    numbers = {"mean": 0.2, "low": 0.1, "high": 0.3, "p": 0.1, "unit": "", "gain": "+0.200"}
    parts = [{"part": name, "says": one, **numbers} for name, one in zip(names, says, strict=False)]
    flags = confirm.QUESTION.parsed(f"--seed={seed}").deciding()
    told = {
        "evidence": ["Comparisons and settings were fixed on a day; some hold."],
        "experiment": "experiments.confirm",
        "parts": parts,
    }
    return findings.of_study(config("confirm"), SUMMARY, f"{seed}/confirm") | told | {"flags": flags}


def test_the_page_has_the_gains_on_each_set_of_new_seeds():
    names = next(iter(answers.IN_SHORT.values()))
    page = command.page([confirmation(300, ["holds"]), confirmation(400, ["not clear", "not clear"])])
    head = "| comparison, first over second | seeds 300 to 315, `embedded` | seeds 400 to 415, `embedded` |"
    rows = [f"| {names[0]} | +0.200 **holds** | +0.200 not clear |", f"| {names[1]} |  | +0.200 not clear |"]
    assert page.count("\n".join([head, "|---|---|---|", *rows])) == 2  # In short, and all of them.
    assert not any(answer in page for answer, _ in answers.ANSWERS)  # They rest on other counts.
    assert f"- These hold in no column of the table on new seeds: {names[1]}." in page


def test_the_page_shows_the_figures_that_were_taken(monkeypatch, tmp_path, capsys):
    record = findings.of_study(config("blank_rows"), SUMMARY, "other/blank_rows")
    skipped = {tmp_path / "begun": "it holds no finished study"}
    monkeypatch.setattr(report, "found", lambda folder: ([SimpleNamespace(record=record)], skipped))
    (drawn := tmp_path / "results" / "other" / "blank_rows" / "figures").mkdir(parents=True)
    (drawn / "accuracy_by_delay.png").write_bytes(b"drawn")
    (records := tmp_path / "findings").mkdir()
    monkeypatch.setattr(command, "RECORDS", records)
    monkeypatch.setattr(command, "_FIGURES", {"other/blank_rows": ("accuracy_by_delay",)})
    assert command.take(tmp_path / "results") == [record]
    assert capsys.readouterr().err == f"note: {tmp_path / 'begun'} is left out: it holds no finished study.\n"
    assert (records / "other-blank_rows-accuracy_by_delay.png").read_bytes() == b"drawn"
    page = command.page([record])
    assert "../findings/other-blank_rows-accuracy_by_delay.png" in page and f"## {record['question']} (other)" in page
    assert "*Test accuracy against the delay" in page
    (records / "other-blank_rows-accuracy_by_delay.png").unlink()
    assert "accuracy_by_delay.png" not in command.page([record])


def test_the_readme_keeps_all_but_its_table():
    records, (shown, other, *_) = [confirmation(300, ["holds", "holds"])], next(iter(answers.IN_SHORT.values()))
    text = f"# ojax\n\n{command.BEGIN}\n\nold\n\n{command.END}\n\nThe rest.\n"
    new = command.readme(text, records)
    assert "\n\nold\n" not in new and "settings fixed before" in new and new.startswith("# ojax\n")
    assert f"| {shown} | +0.200 **holds** |" in new and other not in new
    assert new.endswith("\n\nThe rest.\n")
    assert command.readme(new, records) == new
    with pytest.raises(UserError, match="has no place for its table"):
        command.readme("# ojax\n", records)


@pytest.mark.skipif(not command.read(), reason="no record is committed yet")
def test_page_and_readme_are_those_of_the_committed_records():
    records = command.read()
    page = command.page(records)
    assert command.PAGE.read_text(encoding="utf-8") == page, "run `make results`"
    readme = command.README.read_text(encoding="utf-8")
    assert readme == command.readme(readme, records), "run `make results`"
    assert all(answer in page for answer, _ in answers.ANSWERS)  # What each rests on is so.


def test_the_frozen_comparisons_are_runs_of_their_grid():
    settings = confirm.QUESTION.parsed("--flagfile=experiments/flagfiles/confirm.flags")
    assert settings["seed"] == 300 and settings["seeds"] == 16
    sides = [confirm.side(comparison[which]) for comparison in confirm.COMPARISONS for which in ("one", "other")]
    for values in sides:
        run = dict(zip(confirm.AXES, values, strict=True)) | confirm.OTHERS
        assert confirm.keep(run) and all(run[axis] in settings[axis] for axis in confirm.AXES)
        assert not any(
            confirm.keep(run | other) for other in ({"learning_rate": 99.0}, {"init_gain": 0.5}, {"batch_size": 8})
        )
        assert not run["oja_rate"] or run["learning_rate"] > 0


@pytest.mark.parametrize(("arm", "parameter"), [("rest", 3e-3), ("layer_norm", 1.0)])
def test_an_arm_of_the_anatomy_is_confirmed_as_it_was_studied(arm, parameter):
    flags = ("--widths=6,5", "--learning_rate=1e-2", "--num_train=20", "--seeds=1")
    updated = []
    confirming = (f"--arm={arm}", f"--oja_rate={parameter}", "--update_noise=0", "--input_scale=1")
    for asked, own in ((confirm.QUESTION, confirming), (anatomy.QUESTION, (f"--rival={arm}",))):
        open_to_all = asked._replace(keep=None, verdict=None)
        more = ("--depth=3", "--init=glorot_uniform", "--init_gain=1", "--feedback=random")
        more += ("--oja_half_life=inf",) if asked is confirm.QUESTION else ("--strength=1", "--nomeasures")
        settings = parse(open_to_all, *flags, *own, *more)
        data = asked.task.load(settings)
        (part,) = grid.make(open_to_all, settings, data).parts
        hyper = {name: jnp.float32(values[0]) for name, values in part.hyper.items()}
        sample = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), data.train)

        def once(hyper, sample, learner=part.learner):
            params, state = online.initial_params(learner, hyper, jnp.uint32(0))
            return online.step(learner, hyper, params, state, learner.optimizer(hyper).init(params), sample).params

        updated.append(jax.jit(once)(hyper, sample))
    for one, other in zip(*map(jax.tree.leaves, updated), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("first", [300, 400])
def test_a_confirmation_says_which_comparisons_hold(first):
    """A comparison that was made after results on some seeds had been seen is confirmed on later seeds only."""
    shown = [comparison for comparison in confirm.COMPARISONS if comparison.get("first_seed", 0) <= first]
    assert (len(shown) < len(confirm.COMPARISONS)) == (first < 400)
    rng = np.random.default_rng(0)
    rows = [
        dict(zip(confirm.AXES, confirm.side(comparison[which]), strict=True))
        | {"seed": seed, "test_accuracy": 0.5 + 0.1 * (which == "one") + rng.normal(0, 0.01), "train_accuracy": 0.5}
        for comparison in confirm.COMPARISONS
        for which in ("one", "other")
        for seed in range(first, first + 16)
    ]
    import pandas as pd

    from experiments.common.results import Results
    from experiments.common.tables import with_method

    table = pd.DataFrame(rows).drop_duplicates([*confirm.AXES, "seed"])
    more = {"batch_size": 1, "examples_seen": 100, "examples_per_class": 10, "diverged": False}
    found = Results(with_method(table.assign(**more)), None, confirm.QUESTION.schema)
    assert len(confirm.table(found).splitlines()) == 2 + len(shown)
    verdict = confirm.verdict(found)
    assert len(verdict.parts) == len(shown) and verdict.outcome != verdicts.NOT_TESTED
    assert figures.in_style(lambda: confirm.gains(found)).axes
    ten = [comparison for comparison in shown if {comparison[which]["depth"] for which in ("one", "other")} == {10}]
    assert 0 < len(ten) < len(shown)  # With --depth=10 the others have no runs.
    assert len(confirm.verdict(found.where(depth=10)).parts) == len(ten)
    half = found.where(**dict(zip(confirm.AXES, confirm.SIDES[0], strict=True)))
    assert confirm.verdict(half).evidence == ["No comparison has the runs of both of its sides here."]
    assert figures.in_style(lambda: confirm.gains(half)).axes


def test_every_study_shows_accuracy_against_search(tmp_path):
    for name in ("deep_mlp", "controls"):
        asked, found = made_up.question(name), made_up.results(name, np.random.default_rng(0))
        assert statistics.num_settings(found, asked.methods) > 1
        figure = figures.in_style(lambda asked=asked, found=found: figures.search_budget(found, asked.methods))
        lines = [line.get_xdata() for axes in figure.axes for line in axes.lines]
        assert all(line[0] == 1 for line in lines) and max(line[-1] for line in lines) == 15 + 5 * (name == "controls")
    one = made_up.results("deep_mlp", np.random.default_rng(0)).where(learning_rate=1e-3, oja_rate=0)
    assert statistics.num_settings(one) == 1


def test_no_embedded_image_confirms_on_the_whole_of_fashion_mnist(monkeypatch):
    embedded = datasets.load()
    rng = np.random.default_rng(0)
    new = np.round(rng.uniform(size=(30, 784)) * 255).astype(np.float32) / 255
    inputs = np.concatenate([np.asarray(embedded.test.inputs[:50]), new])
    test = datasets.Examples(inputs, np.zeros(80, np.int32))
    monkeypatch.setattr(confirm.classification, "load", lambda settings: embedded._replace(test=test))
    flags = ("--flagfile=experiments/flagfiles/confirm.flags", "--num_test=20")
    found = confirm.load(confirm.QUESTION.parsed(*flags, "--dataset=fashion_mnist"))
    np.testing.assert_array_equal(found.test.inputs, new[:20])
    assert confirm.load(confirm.QUESTION.parsed(*flags)).test is test
