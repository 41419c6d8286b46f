"""A small study of transfer: found rules in other places."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from experiments import transfer
from experiments.common import grid
from experiments.common.errors import UserError
from experiments.common.results import Results
from experiments.tasks.registry import POOL, POOLS
from ojax import datasets
from tests.experiments.conducting import conduct, parse

pytestmark = pytest.mark.compiled_quickly

SMALL = (
    *("--side=7", "--widths=8", "--outputs=10", "--classes=3", "--images=4", "--queries=2", "--num_test=4"),
    *("--num_train=2", "--seeds=2"),
)
FOUND = {"pseudo_gradient": 0.25, "oja": 0.0625, "ehebb": -0.03125}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Writes results of meta-learning with two meta-seeds; with held-out classes coefficients are twice as large."""
    rows = []
    for pool, held_out, seed in itertools.product(("alone", "oja", "ehebb_oja"), (0, 4), (0, 1)):
        names = POOLS[pool]
        mean = {f"coefficient_{name}": FOUND.get(name, 0) * (name in names) for name in POOL}
        scaled = {name: value * (2 if held_out else 1) * (0.5 + seed) for name, value in mean.items()}
        setting = {"pool": pool, "feedback": "random", "l1": 0.0, "held_out": held_out, "seed": seed, "batch_size": 1}
        setting |= {"meta_rate": 1e-3, "train_accuracy": 0.5, "coefficients": "shared"}
        rows += [setting | {"examples_seen": seen} | scaled for seen in (5, 10)]
        rows += [setting | {"examples_seen": 10, "feedback": "direct"} | dict.fromkeys(scaled, 1.0)]
    folder = tmp_path_factory.mktemp("found")
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    settings = parse(transfer.QUESTION, *SMALL).fixed()
    (folder / "identity.json").write_text(json.dumps({"question": "experiments.meta_learning", "settings": settings}))
    return folder


@pytest.mark.figures
def test_what_was_found_learns_as_the_same_rates_set_by_hand(found, tmp_path):
    grid_of_rates = ("--hand_rate=0,0.25,0.5", "--hand_oja_rate=0,0.0625,0.125", "--feedback=random")
    where = (f"--found={found}", f"--workdir={tmp_path}", "--place=home,classes", "--rule=by_hand,alone,oja")
    printed = conduct(transfer.QUESTION, *SMALL, *grid_of_rates, *where)
    results = pd.read_csv(tmp_path / "results.csv").set_index(["place", "rule", "hand_rate", "hand_oja_rate"]).sort_index()
    assert len(results) == 2 * 2 * (2 + 2 * 2 + 2)  # Two places and seeds; alone, with Oja, and what was found.
    for place, rates in (("home", (0.25, 0.0625)), ("classes", (0.5, 0.125))):
        for rule, oja_rate in (("alone", 0.0), ("oja", rates[1])):
            taken, by_hand = results.loc[(place, rule, 0.0, 0.0)], results.loc[(place, "by_hand", rates[0], oja_rate)]
            for score in ("test_accuracy", "test_loss", "train_accuracy", "train_loss"):
                np.testing.assert_array_equal(taken[score], by_hand[score])
    assert (results.loc[("home", "oja")]["test_loss"].values != results.loc[("classes", "oja")]["test_loss"].values).all()
    assert (tmp_path / "figures" / "accuracy.png").stat().st_size > 5_000
    summary = (tmp_path / "summary.md").read_text()
    assert f"--found={found}" in summary  # So that the command repeats it.
    assert "found: with Oja" in summary and "| other classes |" in summary and "Verdict" in printed


def test_where_rules_are_tried(found):
    settings = parse(transfer.QUESTION, *SMALL, f"--found={found}", "--place=home,classes,data,samples", "--other=embedded")
    data = transfer.load(settings)
    assert data.test["held_out"].tolist() == [4] and data.test["own"].shape == data.test["other"].shape == (10, 200, 49)
    coefficients = data.test["coefficients"][:, list(transfer.RULES).index("ehebb_oja")]
    found_at_home = dict(zip(POOL, coefficients[0], strict=True))
    assert {name: value for name, value in found_at_home.items() if value} == FOUND
    np.testing.assert_array_equal(coefficients[1], 2 * coefficients[0])
    drawn = {place: transfer.drawn_at(settings, place, 4) for place in transfer.PLACES}
    assert list(range(10))[drawn["classes"].among] == [6, 7, 8, 9] and drawn["home"].among == slice(None)
    assert [drawn[place].num_train for place in ("home", "samples")] == [4, 150]


def test_data_do_not_depend_on_the_rules_and_places_asked_for(found):
    """So that a study can be extended by others."""
    asked = (("--rule=by_hand", "--place=home"), ("--rule=oja,alone", "--place=home"), ("--place=classes,samples",))
    loaded = [transfer.load(parse(transfer.QUESTION, *SMALL, f"--found={found}", *flags)) for flags in asked]
    assert len({grid.fingerprint(data)["sha256"] for data in loaded}) == 1


def test_other_data_are_added_to_a_finished_study(found, tmp_path):
    """The place was refused as "runs of other data"; the images there are known by their content."""
    flags = (*SMALL, f"--found={found}", "--rule=by_hand", "--feedback=random", "--hand_rate=0.25", "--hand_oja_rate=0")

    def study(name, place, other="first"):
        folder = (f"--other=npz:{tmp_path / other}.npz", f"--workdir={tmp_path / name}")
        printed = conduct(transfer.QUESTION, *flags, f"--place={place}", *folder)
        return "2 of 4 runs are done already" in printed, (tmp_path / name / "results.csv").read_bytes()

    own = datasets.load()
    for name, scale in (("first", 1), ("second", 0.5)):
        arrays = {
            "x": own.train.inputs * scale,
            "y": own.train.targets,
            "x_test": own.test.inputs,
            "y_test": own.test.targets,
        }
        np.savez(tmp_path / f"{name}.npz", **arrays)
    study("extended", "home")
    is_extended, extended = study("extended", "home,data")
    assert is_extended and extended == study("fresh", "home,data")[1]
    trained_on_others, others = study("extended", "home,data", "second")
    assert trained_on_others and others != extended


def found_rows(place, accuracies):
    """Returns final rows of eight seeds; rules set by hand have three settings, and training images choose the second."""
    kinds = {
        "oja": ("random", "oja", (0.0,), 0.0),
        "hand": ("random", "by_hand", (0.1, 0.2, 0.3), 0.01),
        "backprop": ("backprop", "by_hand", (0.1, 0.2, 0.3), 0.0),
        "alone": ("random", "by_hand", (0.1, 0.2, 0.3), 0.0),
    }
    rows = []
    for name, (feedback, rule, rates, oja_rate) in kinds.items():
        for rate, seed in itertools.product(rates, range(8)):
            chosen = rate == rates[len(rates) // 2]
            score = accuracies[name] + 0.001 * (-1) ** seed if chosen else 0.99  # Better, but not by training images.
            setting = {"place": place, "feedback": feedback, "rule": rule, "hand_rate": rate, "hand_oja_rate": oja_rate}
            scores = {"test_accuracy": score, "train_accuracy": float(chosen), "test_lost": 0.0, "diverged": False}
            rows.append(setting | {"seed": seed, "batch_size": 1, "examples_seen": 10} | scores)
    return rows


@pytest.mark.parametrize(
    ("away", "outcome"),
    [
        ({"oja": 0.6, "hand": 0.6, "backprop": 0.59, "alone": 0.3}, "reproduced"),
        ({"oja": 0.6, "hand": 0.62, "backprop": 0.59, "alone": 0.3}, "mixed"),
        ({"oja": 0.6, "hand": 0.6, "backprop": 0.65, "alone": 0.3}, "mixed"),
        ({"oja": 0.3, "hand": 0.6, "backprop": 0.6, "alone": 0.3}, "not reproduced"),
    ],
)
def test_the_verdict_is_that_of_the_places_away_from_home(away, outcome):
    home = {"oja": 0.2, "hand": 0.9, "backprop": 0.9, "alone": 0.9}
    rows = pd.DataFrame(found_rows("home", home) + found_rows("depth", away))
    results = Results(rows, None, transfer.QUESTION.schema)
    found = transfer.verdict(results)
    assert found.outcome == outcome
    assert found.evidence[1].startswith("More layers: the rule found with Oja 0.")
    # The settings are chosen by training images.
    assert f"| more layers | {away['oja']:.3f} [" in transfer.table(results)
    assert "0.990" not in transfer.table(results)


def test_its_flagfile_parses_and_the_rule_by_hand_has_more_settings():
    settings = parse(transfer.QUESTION, "--flagfile=experiments/flagfiles/transfer.flags")
    runs = pd.concat([rows.assign(**program) for program, rows in grid.runs_of(transfer.QUESTION, settings)])
    by_hand = runs[(runs["place"] == "depth") & (runs["rule"] == "by_hand") & (runs["seed"] == 0)]
    assert by_hand.groupby(["feedback", by_hand["hand_oja_rate"] > 0]).size().tolist() == [6, 6, 12]
    assert (runs.loc[runs["rule"] != "by_hand", ["hand_rate", "hand_oja_rate"]] == 0).all(axis=None)


def test_wrong_arguments_are_refused_with_the_reason(found, tmp_path):
    def refused(message, *flags):
        with pytest.raises(UserError, match=message):
            conduct(transfer.QUESTION, *SMALL, *flags, f"--workdir={tmp_path / 'transfer'}")

    refused(r"meta_learning: no results.csv of meta-learning; python -m experiments.meta_learning")
    (tmp_path / "meta_learning").mkdir()
    (tmp_path / "meta_learning" / "results.csv").write_text("seed,test_accuracy\n0,0.5\n")
    refused("its results.csv is not one of experiments.meta_learning")
    shutil.copy(found / "identity.json", tmp_path / "meta_learning")
    rows, path = pd.read_csv(found / "results.csv"), tmp_path / "meta_learning" / "results.csv"
    rows[rows["held_out"] == 0].to_csv(path, index=False)
    refused("no run of the pool alone with random feedback and classes held out", "--place=home,classes")
    rows.assign(coefficients="by_layer").to_csv(path, index=False)
    refused("no run of the pool alone with random feedback and no class held out")
    pd.concat([rows, rows[rows["held_out"] > 0].assign(held_out=3)]).to_csv(path, index=False)
    (tmp_path / "meta_learning" / "identity.json").write_text("[]")
    refused("its results.csv is not one of experiments.meta_learning")
    by_hand = parse(transfer.QUESTION, *SMALL, "--rule=by_hand", "--widths=9", f"--workdir={tmp_path / 'transfer'}")
    assert not transfer.found_in(by_hand)[0].any()  # What is there does not matter.
    shutil.copy(found / "identity.json", tmp_path / "meta_learning")
    refused("it held out 3, 4 classes; the place with other classes takes one number")
    refused("its rules were found with --widths=8: give that here too", f"--found={found}", "--widths=9")
    refused("its rules were found with --classes=3: give that here too", f"--found={found}", "--classes=5")
    refused("--place=samples: An episode takes 1002 images", f"--found={found}", "--place=samples", "--more_images=1000")
    rows.assign(held_out=rows["held_out"].clip(upper=2)).to_csv(path, index=False)
    refused("--place=classes: the study held out 2 classes, and an episode has 3", "--place=home,classes")
