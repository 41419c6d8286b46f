"""A study in one call, its identity, and its weights."""

import importlib
import linecache
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import experiments
import ojax
from experiments import anatomy
from experiments.common import flags, grid, statistics, study, tables
from experiments.common.errors import UserError
from experiments.common.parsers import Numbers
from experiments.common.results import Results
from experiments.deep_mlp import QUESTION
from experiments.tasks import networks, registry
from tests.experiments.conducting import conduct, parse

pytestmark = pytest.mark.compiled_quickly

SMALL = {"widths": [8, 6], "learning_rate": [1e-3, 1e-2], "oja_rate": [0, 1e-3], "seeds": 2, "num_train": 128, "evals": 2}
FLAGS = [f"--{name}={','.join(map(str, value)) if isinstance(value, list) else value}" for name, value in SMALL.items()]


@pytest.mark.figures
def test_a_study_in_a_notebook_twice(tmp_path):
    """Grid, data frame, figure, weights of one run; twice in one process, with the command's results."""
    first = experiments.study("deep_mlp", **SMALL, num_test=50)
    again = experiments.study(QUESTION, **SMALL, num_test=50, workdir=tmp_path / "study", save_weights=True)
    pd.testing.assert_frame_equal(first.results.table, again.results.table)
    assert len(first.results.table) == 2 * 2 * 2 * 2 and set(first.results.table["method"]) == {"backprop", "hybrid"}
    assert first.verdict.outcome == "undecided" and first.results.measures is None
    assert first.folder is None and "--workdir" not in first.summary and "--workdir" in again.summary
    assert set(first.figures) == {*QUESTION.figures, "search_budget"} and "Verdict" in first.summary
    first.figures["learning_curves"].savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    conduct(QUESTION, *FLAGS, "--num_test=50", f"--workdir={tmp_path / 'command'}")
    command = pd.read_csv(tmp_path / "command" / "results.csv", dtype={"diverged_at": "Int64", "diverged_layer": "Int64"})
    pd.testing.assert_frame_equal(first.results.table, command)
    # A finished study is read, not run again.
    before = (tmp_path / "study" / "results.csv").stat().st_mtime_ns
    finished = experiments.study("deep_mlp", **SMALL, num_test=50, workdir=tmp_path / "study", save_weights=True)
    pd.testing.assert_frame_equal(finished.results.table, first.results.table)
    assert finished.verdict == first.verdict and (tmp_path / "study" / "results.csv").stat().st_mtime_ns == before

    run = ojax.load_weights(tmp_path / "study", run={"learning_rate": 1e-2, "oja_rate": 1e-3, "seed": 1})
    kernel = run.params["layers/0/kernel"]
    assert kernel.shape == (784, 8) and run.setting["depth"] == 3
    rows = first.results.table.query("learning_rate == 1e-2 and oja_rate == 1e-3 and seed == 1 and examples_seen == 128")
    np.testing.assert_allclose(np.linalg.norm(kernel), rows["weight_norm_1"], rtol=1e-5)
    test = ojax.datasets.load().test
    accuracy = np.mean(np.argmax(run.network(test.inputs[:50]), axis=-1) == test.targets[:50])
    np.testing.assert_allclose(accuracy, rows["test_accuracy"], atol=1e-6)


def test_a_summary_without_a_folder_links_to_none():
    """Also without figures."""
    question = QUESTION._replace(figures={})
    found = experiments.study(question, **SMALL | {"learning_rate": 1e-2}, num_test=50)
    assert "Figures" not in found.summary and "results.csv" not in found.summary and "--workdir" not in found.summary
    assert not found.figures and "Settings are chosen" in found.summary


@pytest.mark.figures
def test_two_questions_in_one_notebook():
    """Scores and axes of equal names, `init` and `rule`, stay separate for any order of questions and imports."""
    first = experiments.study("deep_mlp", **SMALL, num_test=50)
    stream = {"units": 8, "delays": 4, "num_train": 200, "num_test": 200, "evals": 1, "learning": "readout", "seeds": 2}
    grid = {"learning_rate": 1e-2, "oja_rate": [0, 1e-3], "init": "normal", "init_gain": 1, "rule": "stacked"}
    second = experiments.study("short_term_memory", **stream, **grid, input_scale=0.5)

    def told(study):
        final, schema = statistics.final_rows(study.results), study.results.schema
        found = {name: statistics.compare(part) for name, part in statistics.networks(final)}
        return [(name, comparison.hybrid.scores.tolist(), schema.named({"init": final.table["init"].iloc[0]}))
                for name, comparison in found.items()]  # fmt: skip

    ((network, accuracies, init),), ((other, recalled, other_init),) = told(first), told(second)
    assert (network, init) == ("3 layers", "Glorot-uniform weights") and (other, other_init) == (
        "read-out alone",
        "normal weights",
    )
    assert set(accuracies) <= set(first.results.table["test_accuracy"])
    assert set(recalled) <= set(second.results.table["test_recall"])
    importlib.import_module("experiments.copy_task").QUESTION.declared()
    assert told(first) == [(network, accuracies, init)] and told(second) == [(other, recalled, other_init)]
    assert first.figures["learning_curves"].axes[0].get_ylabel() == "test accuracy"


def test_a_rule_that_fades(tmp_path):
    """Without the rule its half-life adds no run; a constant rate learns as in a separate study."""
    grid = {
        "widths": 8,
        "learning_rate": 1e-2,
        "oja_rate": [0, 1e-3],
        "seeds": 2,
        "num_train": 128,
        "evals": 2,
        "num_test": 50,
    }
    both = experiments.study("deep_mlp", **grid, oja_half_life=["inf", 20], workdir=tmp_path).results.table
    assert both.groupby("method").size().to_dict() == {"backprop": 4, "fading": 4, "hybrid": 4}
    assert set(pd.read_csv(tmp_path / "results.csv")["oja_half_life"]) == {20, np.inf}
    constant = experiments.study("deep_mlp", **grid).results.table
    same = both[np.isinf(both["oja_half_life"])].reset_index(drop=True)
    np.testing.assert_allclose(same["test_loss"], constant["test_loss"], rtol=1e-5)
    losses = both[both["examples_seen"] == 128].groupby("method")["test_loss"].mean()
    assert losses.nunique() == 3


def test_a_half_life_counts_samples_and_not_updates():
    setting = parse(QUESTION, "--widths=8", "--oja_half_life=8", "--batch_size=4")
    ((program, _),) = grid.runs_of(QUESTION, setting)
    learner = networks.learner({**setting, **program}, [6, 5, 3])
    tx = learner.optimizer({"learning_rate": 0.0, "oja_rate": 1e-2, "oja_half_life": 8.0})
    params = {"kernel": jnp.zeros((3, 2))}
    activity = {"kernel": ojax.Activity(jnp.ones(3), jnp.ones(2))}  # With zero weights the change is the rate itself.
    state, changes = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update({"kernel": jnp.zeros((3, 2))}, state, params, activity=activity)
        changes.append(float(updates["kernel"][0, 0]))
    assert changes == pytest.approx([1e-2, 1e-2 * 2**-0.5, 0.5e-2])  # Two batches of four samples halve it.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depht": 5}, ["no setting 'depht'", "depth"]),
        ({"depth": "five"}, ["depth", "whole number"]),
        ({"rule": ["oja", "hebbian"]}, ["hebbian", "sanger"]),
        ({"oja_rate": [1e-4]}, ["--oja_rate=0.0001", "with and without"]),
        ({"save_weights": True}, ["needs a workdir"]),
        ({"num_processes": 2, "process_id": 1}, ["num_processes is for commands"]),
        ({"compile_for": "h100"}, ["compile_for is for commands"]),
        ({"depth": [2.7]}, ["depth", "whole number"]),
        ({"num_train": None}, ["num_train"]),
        ({"widths": [3], "depth": 5}, ["--widths", "--depth=5"]),
        ({"epochs": 10_000, "evals": 2}, ["--evals", "every 16,777,216 samples"]),
        ({"epochs": 10_000, "evals": [1000, 20_000_000]}, ["--evals", "every 16,777,216 samples"]),
    ],
)
def test_settings_that_will_not_do(settings, words):
    with pytest.raises(UserError) as refused:
        experiments.study("weight_init" if "oja_rate" in settings else "deep_mlp", **settings)
    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize(
    ("name", "flag"), [("continual", "half_life"), ("meta_learning", "start"), ("meta_learning", "clip")]
)
def test_what_is_not_a_number_is_refused_at_once(name, flag):
    question = study._named(name)
    with pytest.raises(UserError, match=f"^--{flag}=nan is not a number.$"):
        question.parsed(f"--{flag}=NaN")
    assert question.parsed(f"--{flag}=inf")[flag] == np.inf


def test_settings_of_a_notebook():
    declared, defaults = QUESTION.declared(), QUESTION.all_defaults()
    given = {"learning_rate": np.array([1e-3, 1e-2]), "oja_rate": pd.Series([0.0, 1e-3]), "num_train": np.int64(64)}
    given |= {"widths": None, "depth": (count for count in (2, 3)), "data_dir": Path("somewhere"), "checkpoint_every": 5}
    settings = flags.from_values(declared, defaults, given)
    assert settings["learning_rate"] == (1e-3, 1e-2) and settings["oja_rate"] == (0, 1e-3) and settings["num_train"] == 64
    assert settings["depth"] == (2, 3) and settings["data_dir"] == "somewhere" and settings["checkpoint_every"].samples == 5


@pytest.mark.parametrize(
    ("flags", "evals"),
    [((), (500, 3000)), (("--num_train=2000",), (500, 2000)), (("--num_train=500",), (1,)), (("--evals=500",), (500,))],
    ids=str,
)
def test_evaluations_of_a_default_list_are_no_number_of_evaluations(flags, evals):
    """The default of `anatomy` is 500,3000, and the end of a run is always evaluated."""
    assert anatomy.QUESTION.parsed(*flags)["evals"] == evals


@pytest.mark.parametrize("name", ["layer", "method", "test_accuracy", "depth", "seeds", "diverged_at"])
def test_a_custom_axis_needs_a_unique_name(name):
    with pytest.raises(UserError, match=f"{name}.*taken"):
        QUESTION._replace(axes=[flags.Axis(name, "1,2", "Mine.", Numbers(float, 0))]).declared()


def test_axes_that_a_verdict_cannot_tell_apart():
    for question, setting in (("feedback_alignment", {"rule": ["oja", "hebb"]}), ("weight_init", {"batch_size": [1, 2]})):
        with pytest.raises(UserError, match="this question compares runs of one"):
            experiments.study(question, **setting)


def test_networks_that_are_mixed_are_refused():
    rows = pd.DataFrame({"learning_rate": 0.1, "oja_rate": [0.0, 0.0, 0.1, 0.1], "seed": 0, "train_accuracy": 0.5})
    rows = tables.with_method(rows.assign(test_accuracy=0.5, diverged=False))
    with pytest.raises(ValueError, match=r"take them apart by statistics\.networks"):
        statistics.compare(Results(rows, None, QUESTION.schema))


def test_there_is_no_such_question():
    with pytest.raises(UserError, match=r"no question experiments\.deep_mpl"):
        experiments.study("deep_mpl")


def test_every_name_that_a_flag_takes_is_known():
    registries = {name: value for name, value in vars(registry).items() if name.isupper() and isinstance(value, dict)}
    dotted = [
        name
        for registered in registries.values()
        for entry in registered.values()
        for name in ((entry.rule, entry.network) if isinstance(entry, registry.Rival) else (entry,))
        if isinstance(name, str)
    ]
    assert len(dotted) > 60 and all(callable(registry.resolve(name)) for name in dotted)
    assert [registry.resolve(name) for name in registry.POOL.values()] == list(ojax.plasticity.POOL.values())
    assert {rival.init for rival in registry.RIVALS.values()} <= {None, *registry.INITIALIZERS}


def test_rule_and_activation_are_axes(tmp_path):
    flags = ["--widths=8", "--learning_rate=1e-2,3e-2", "--oja_rate=0,1e-3", "--seeds=1", "--num_train=60", "--evals=1"]
    conduct(QUESTION, *flags, "--rule=oja,sanger", "--activation=tanh,softplus", "--num_test=50", f"--workdir={tmp_path}")
    results = pd.read_csv(tmp_path / "results.csv")
    assert len(results) == 2 * 2 * 2 * 2
    hybrid = results[results["method"] == "hybrid"].set_index(["learning_rate", "activation", "rule"])["test_loss"]
    assert hybrid.nunique() == 8  # Each rule and each non-linearity makes a difference,
    backprop = results[results["method"] == "backprop"]
    assert backprop.groupby(["learning_rate", "activation"])["test_accuracy"].nunique().max() == 1  # but no rule at rate 0.
    summary = (tmp_path / "summary.md").read_text()
    assert "| tanh, sanger rule | 2 |" in summary and "| softplus, oja rule | 2 |" in summary


OWN = '''
    """Does a rule that fades help a tanh network?

    The Oja rate halves every so many samples.
    """

    import jax.numpy as jnp

    import ojax
    from experiments.common import app, figures, statistics, verdicts
    from experiments.common.flags import Axis, Flag
    from experiments.common.parsers import Numbers
    from experiments.tasks import classification

    SLOPE = 1.0


    def network(widths, *, rngs, **options):
        return ojax.MLP(widths, rngs=rngs, **options | {"activation": lambda z: jnp.tanh(SLOPE * z)})


    def fading(hyper):
        return ojax.oja_sgd(
            hyper["learning_rate"], lambda count: hyper["oja_rate"] * 2.0 ** (-count / hyper["half_life"])
        )


    def learner(setting, data):
        return classification.learner(setting, data, network=network, rule=fading)


    def verdict(results):
        final = statistics.final_rows(results)
        found = {name: statistics.compare(rows) for name, rows in statistics.networks(final)}
        return verdicts.verdict_of(
            [verdicts.part_of_comparison(*item) for item in found.items()],
            [verdicts.sentence(*item) for item in found.items()],
        )


    QUESTION = app.Question(
        module="fading_question",
        question=__doc__,
        task=classification.TASK,
        claim="A fading rule helps.",
        verdict=verdict,
        figures={"learning_curves": figures.learning_curves},
        axes=[
            Axis("half_life", "100,1000", "Samples after which the rate is halved.", Numbers(float, 0, exclusive=True),
                 traced=True, tuned=True, words="half-life {:g}"),
        ],
        flags=[Flag("note", "none", "A flag of its own.")],
        learner=learner,
        defaults={"widths": "8", "learning_rate": "1e-2,3e-2", "oja_rate": "0,1e-2", "seeds": 2, "num_train": 64,
                  "evals": "1", "num_test": 50},
    )
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the question's file with changes, and imports it again."""
    monkeypatch.syspath_prepend(tmp_path)
    # Python would not notice a change of equal length within one second.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(**changes):
        text = textwrap.dedent(OWN)
        for old, new in changes.values():
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "fading_question.py").write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop("fading_question", None)
        linecache.clearcache()
        return importlib.import_module("fading_question").QUESTION

    return write


def test_a_question_with_a_custom_axis_network_and_rule(own, tmp_path):
    found = experiments.study(own())
    results = found.results.table
    assert len(results) == 2 * 2 * 2 * 2 and set(results["half_life"]) == {100, 1000}
    hybrid = results[results["method"] == "hybrid"]
    assert hybrid.groupby(["learning_rate", "seed"])["test_loss"].nunique().min() == 2  # The half-life matters,
    backprop = results[results["method"] == "backprop"]
    assert backprop.groupby(["learning_rate", "seed"])["test_loss"].nunique().max() == 1  # but not without the rule.
    assert "half-life" in found.summary
    plain = experiments.study("deep_mlp", widths=8, learning_rate=[1e-2, 3e-2], oja_rate=0, seeds=2, num_train=64, evals=1,
                              num_test=50)  # fmt: skip
    assert set(plain.results.table["test_loss"]).isdisjoint(backprop["test_loss"])  # The networks differ.


@pytest.mark.figures
def test_what_belongs_to_the_identity_of_a_study(own, tmp_path):
    folder = tmp_path / "study"
    experiments.study(own(), workdir=folder)
    results = (folder / "results.csv").stat().st_mtime_ns

    with pytest.raises(UserError, match="--note=none there, other now"):
        experiments.study(own(), workdir=folder, note="other")
    for change in (("SLOPE = 1.0", "SLOPE = 2.0"), ("2.0 **", "3.0 **"), ("network=network, ", "")):
        with pytest.raises(UserError, match=r"another version \(learner of fading_question"):
            experiments.study(own(change=change), workdir=folder)

    # A verdict and a figure are made again from the tables.
    drawn = ('"learning_curves": figures.learning_curves', '"plane": figures.accuracy_plane')
    changed = own(claim=("A fading rule helps.", "It does not."), drawn=drawn)
    found = experiments.study(changed, workdir=folder)
    assert "It does not." in found.summary and (folder / "figures" / "plane.png").exists()
    assert (folder / "results.csv").stat().st_mtime_ns == results
    assert set(found.figures) == {"plane", "search_budget"}


def test_own_arrays_in_a_study(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = rng.normal(size=(120, 2, 3)) + y[:, None, None]
    np.savez(tmp_path / "mine.npz", x=x[:100], y=y[:100], x_test=x[100:], y_test=y[100:])
    settings = {"dataset": f"npz:{tmp_path / 'mine.npz'}", "widths": 8, "learning_rate": [3e-2, 1e-1], "oja_rate": 0}
    found = experiments.study("deep_mlp", **settings, seeds=2, num_train=100, evals=1)
    assert found.results.table["test_accuracy"].max() > 0.5
    np.savez(tmp_path / "floats.npz", x=x[:100], y=x[:100, 0, 0], x_test=x[100:], y_test=x[100:, 0, 0])
    with pytest.raises(UserError, match="whole-number labels"):
        experiments.study("deep_mlp", **settings | {"dataset": f"npz:{tmp_path / 'floats.npz'}"})


def test_a_part_names_what_is_unusual():
    settings = parse(QUESTION, "--depth=2,3", "--feedback=backprop,random")
    names = [grid._name_of(program, settings.axes) for program, _ in grid.runs_of(QUESTION, settings)]
    assert names == ["depth 2", "depth 2, feedback random", "depth 3", "depth 3, feedback random"]
