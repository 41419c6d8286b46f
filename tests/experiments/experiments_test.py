"""A small study of each question: it runs, draws its figures and gives a verdict; one page collects all."""

import base64
import html
import importlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from flax import nnx

import ojax
from experiments import data_scarcity, engineering_tricks, feedback_alignment, report, weight_init
from experiments.common import figures, findings, grid, verdicts
from experiments.common.errors import UserError
from experiments.common.results import Results
from experiments.common.tables import with_method
from experiments.tasks import networks
from tests.experiments.conducting import conduct, parse

pytestmark = [pytest.mark.compiled_quickly, pytest.mark.figures]

REPOSITORY = Path(__file__).parents[2]
NAMES = (
    "deep_mlp",
    "critical_period",
    "controls",
    "weight_init",
    "engineering_tricks",
    "feedback_alignment",
    "data_scarcity",
    "mechanism",
    "convolution",
)
TINY = ("--learning_rate=1e-3,1e-2", "--seeds=2", "--num_train=128", "--num_test=50", "--evals=2")
SMALL = (*TINY, "--widths=8", "--oja_rate=0,1e-3")

THREE_LAYERS = ("--widths=8,6",)


def experiment(name):
    return importlib.import_module(f"experiments.{name}").QUESTION


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    own = {
        "deep_mlp": ("--init=glorot_uniform,he_normal", "--oja_half_life=inf,50"),
        "critical_period": ("--feedback=backprop", "--oja_half_life=50,inf", "--init=glorot_uniform"),
        "data_scarcity": ("--evals=30,60,120",),
        "engineering_tricks": ("--batch_size=1,8", "--optimizer=sgd,adam", "--learning_rate=1e-3"),
        "feedback_alignment": (*THREE_LAYERS, "--learning_rate=1e-3"),
        "convolution": (
            "--channels=3,2",
            "--strides=4,2",
            "--feedback=direct",
            "--init=glorot_uniform",
            "--init_gain=1",
            "--rule=oja",
            "--measures",
        ),
    }
    other = {  # Networks that have no --widths.
        "controls": ("--depth=5", "--init_gain=0.3", "--rival=backprop,oja", "--strength=1"),
        "convolution": ("--oja_rate=0,1e-3",),
    }
    for name in NAMES:
        flags = (*TINY, *other[name]) if name in other else SMALL
        conduct(experiment(name), *flags, *own.get(name, ()), f"--workdir={folder / name}")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_draws_its_figures_and_gives_a_verdict(studies, name):
    held = json.loads((studies / name / "config.json").read_text())
    assert set(held["figures"]) >= set(experiment(name).figures) | set(experiment(name).measure_figures) and held["figures"]
    for figure, caption in held["figures"].items():
        assert (studies / name / "figures" / f"{figure}.png").stat().st_size > 5_000
        assert len(caption.split()) > 4 and caption.endswith(".") and not caption.startswith("Draws"), figure
    assert held["verdict"] in (verdicts.REPRODUCED, verdicts.PARTLY, verdicts.NOT_REPRODUCED, verdicts.UNDECIDED)
    assert held["evidence"] and held["claim"] == experiment(name).claim
    assert all("nan" not in sentence for sentence in held["evidence"])


@pytest.mark.parametrize("name", NAMES)
def test_its_flagfile_parses_alone_and_with_another_data_set(name):
    assert experiment(name).module == f"experiments.{name}"
    flagfiles = REPOSITORY / "experiments" / "flagfiles"
    own = f"--flagfile={flagfiles / name}.flags"
    for more, dataset in ((), "embedded"), (("mnist",), "mnist"), (("paper",), "emnist/balanced"):
        settings = parse(experiment(name), own, *(f"--flagfile={flagfiles / other}.flags" for other in more))
        assert settings["dataset"] == dataset
        assert grid.runs_of(experiment(name), settings)


def test_measures_have_a_row_a_run_evaluation_and_layer(studies):
    results, measures = (pd.read_csv(studies / "feedback_alignment" / f"{name}.csv") for name in ("results", "measures"))
    assert len(measures) == 3 * len(results)
    assert not (studies / "deep_mlp" / "measures.csv").exists()
    random = measures[measures["feedback"] == "random"]
    assert random.loc[random["layer"] > 1, "feedback_alignment"].between(-1, 1).all()
    assert random.loc[random["layer"] == 1, "feedback_alignment"].isna().all()
    # The read-out's error is the true one for any feedback; below it only backprop's is.
    assert (measures.loc[measures["layer"] == 3, "gradient_angle"] < 0.1).all()
    assert (measures.loc[measures["feedback"] == "backprop", "gradient_angle"] < 0.1).all()
    assert random.loc[random["layer"] < 3, "gradient_angle"].between(20, 160).all()
    shares = measures[["leading_share", "dead_units"]]
    assert (shares.min() >= 0).all() and (shares.max() < 1.001).all() and measures["effective_rank"].between(1, 9).all()
    assert measures["sample_correlation"].between(0, 1.001).all() and (measures["explained_energy"] < 1).all()
    assert (measures["centred_gain"] < measures["activity_gain"]).any() and (measures["centred_gain"] > 0).all()
    # The measured weight norms are those of the results.
    first = measures[measures["layer"] == 1]["weight_norm"].to_numpy()
    np.testing.assert_allclose(first, results["weight_norm_1"], rtol=1e-5)


def test_measures_of_a_convolutional_network(studies):
    results, measures = (pd.read_csv(studies / "convolution" / f"{name}.csv") for name in ("results", "measures"))
    assert len(measures) == 3 * len(results)
    hidden = measures["layer"] < 3
    assert measures.loc[hidden, "feedback_alignment"].between(-1, 1).all()
    assert measures.loc[~hidden, "feedback_alignment"].isna().all()
    assert (measures.loc[~hidden, "gradient_angle"] < 0.1).all()
    assert measures.loc[hidden, "gradient_angle"].between(20, 160).all()
    for layer in (1, 2, 3):
        norms = measures.loc[measures["layer"] == layer, "weight_norm"].to_numpy()
        np.testing.assert_allclose(norms, results[f"weight_norm_{layer}"], rtol=1e-5)
    assert measures.loc[measures["layer"] == 2, "effective_dimension"].between(1, 2.001).all()  # It has two channels.
    assert measures.loc[measures["layer"] == 2, "effective_rank"].between(1, 2.001).all()
    assert (measures["explained_energy"] < 1).all() and measures["leading_share"].between(0, 1.001).all()


def test_the_layers_above_a_convolution_as_one_matrix():
    @jax.jit
    def both(x):
        model = ojax.CNN((5, 4, 2), [3, 2], 3, strides=[1, 2], rngs=nnx.Rngs(0))
        kernels = [layer.kernel[...] for layer in model.layers]
        layer_by_layer = (ojax.Patches.of(x, (3, 3), strides=2) @ kernels[1]).ravel() @ kernels[2]
        return x.ravel() @ networks._product(model, kernels, 1, x.shape), layer_by_layer

    np.testing.assert_allclose(*both(jax.random.normal(jax.random.key(0), (5, 4, 3))), atol=1e-5)


def test_seeds_are_paired_across_conditions(studies):
    """A seed's initial weights do not depend on the feedback, the normalization or the optimizer."""
    columns = (
        ("feedback_alignment", "feedback", "weight_norm_3"),
        ("engineering_tricks", "normalization", "weight_norm_2"),
    )
    for name, column, norm in columns:
        rows = pd.read_csv(studies / name / "results.csv")
        start = rows[(rows["examples_seen"] == 64) & (rows["oja_rate"] == 0) & (rows["learning_rate"] == 1e-3)]
        start = start[start["init_gain"] == 1]
        norms = start.groupby("seed")[norm]
        assert rows[column].nunique() == 3
        assert (norms.max() - norms.min() < 0.1).all() and norms.mean().nunique() == 2


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.links = [], []

    def handle_starttag(self, tag, attributes):
        assert tag not in ("script", "link", "iframe")
        attributes = dict(attributes)
        if tag == "img":
            self.images.append(attributes["src"])
        if tag == "a":
            self.links.append(attributes["href"])


def test_the_page_holds_every_study_and_needs_no_network(studies):
    command = [sys.executable, "-m", "experiments.report", f"--workdir={studies}"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0 and f"{len(NAMES)} studies" in run.stdout, run.stderr
    text = (studies / "index.html").read_text(encoding="utf-8")
    page = Links()
    page.feed(text)
    # And the plot of all gains.
    assert len(page.images) == 1 + sum(len(list((studies / name / "figures").glob("*.png"))) for name in NAMES)
    for image in page.images:
        assert base64.b64decode(image.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert {link for link in page.links if link.startswith("#")} == {f"#{name}" for name in NAMES}
    assert "url(" not in text and "@import" not in text
    for name in NAMES:
        held = json.loads((studies / name / "config.json").read_text())
        assert held["question"] in text.replace("&#x27;", "'")
        assert all(f"<figcaption>{html.escape(caption)}</figcaption>" in text for caption in held["figures"].values())
        assert f"python -m experiments.{name} " in text
    judged = [json.loads((studies / name / "config.json").read_text()) for name in NAMES]
    tables = sum(len(findings.tables_of((studies / name / "summary.md").read_text())) for name in NAMES)
    assert text.count("<div class='table'><table>") == text.count("<table>") == tables + 1  # Each scrolls in its own box.
    assert tables == len(NAMES) + sum(bool(held["parts"]) for held in judged)
    claims = text.partition("<table>")[2].partition("</table>")[0]
    assert claims.count("<tr>") == 1 + sum(bool(held["parts"]) for held in judged)  # What was not tested is no claim here.


def test_the_page_leaves_out_what_is_no_study_and_counts_none_twice(studies, tmp_path):
    """Other folders, a damaged study, an unfinished study, a link to a study, a study in a subfolder."""
    for name in ("theirs", "damaged", "begun", "sub"):
        (tmp_path / name).mkdir()
    (tmp_path / "theirs" / "notes.txt").touch()
    (tmp_path / "damaged" / "summary.md").touch()
    (tmp_path / "damaged" / "config.json").write_text("{}")
    (tmp_path / "begun" / "identity.json").touch()
    (tmp_path / "sub" / "deep_mlp").symlink_to(studies / "deep_mlp")
    (tmp_path / "again").symlink_to(tmp_path / "sub" / "deep_mlp")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found, skipped = report.found(tmp_path)
    assert [study.section.partition("'>")[0] for study in found] == ["<section id='again"]
    assert {path.name: words[:10] for path, words in skipped.items()} == {
        "theirs": "it holds n", "damaged": "it is dama", "begun": "it holds n"}  # fmt: skip


def test_a_page_of_nothing_is_refused(tmp_path):
    command = [sys.executable, "-m", "experiments.report", f"--workdir={tmp_path / 'none'}"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 2 and re.fullmatch(r"error: .*none.*\n", run.stderr), run.stderr


@pytest.mark.parametrize("page", ["report", "results"])
def test_a_folder_without_its_flag_is_refused(page, tmp_path):
    """Else another folder, the default, would be read."""
    command = [sys.executable, "-m", f"experiments.{page}", str(tmp_path)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 2 and re.fullmatch(r"error: .* is not a flag: write --name=value.*\n", run.stderr), run.stderr


def test_one_trick_at_a_time():
    settings = parse(experiment("engineering_tricks"))
    names = {
        engineering_tricks.name_of(*(program[name] for name in engineering_tricks.TRICK))
        for program, _ in grid.runs_of(experiment("engineering_tricks"), settings)
        if program["depth"] == 5
    }
    single = {"no trick", "batch 8", "batch 32", "batch 128", "layer norm", "batch norm", "momentum", "RMSProp", "Adam"}
    assert names == single | {f"batch norm, batch {size}" for size in (8, 32, 128)}


def test_where_backprop_catches_up_is_printed():
    """Backprop is behind at 50 samples, level at 2,000, ahead at 50,000."""
    gains = {50: 0.2, 2000: 0.0, 50000: -0.1}
    rows = []
    for seen, gain in gains.items():
        for seed, noise in enumerate(4 * (-0.01, 0.01)):
            for theta in (0.0, 1e-3):
                accuracy = 0.5 + (gain + noise) * (theta > 0)
                rows.append((5, "g", 1.0, "backprop", "none", "sgd", 1, 1e-3, theta, seed, seen, accuracy, accuracy, False))
    names = "depth init init_gain feedback normalization optimizer batch_size learning_rate oja_rate seed examples_seen"
    columns = [*names.split(), "train_accuracy", "test_accuracy", "diverged"]
    verdict = data_scarcity.verdict(
        Results(with_method(pd.DataFrame(rows, columns=columns)), None, data_scarcity.QUESTION.schema)
    )
    assert verdict.outcome == verdicts.REPRODUCED  # It is about few samples.
    assert (
        "clearly better at 50 samples; not clearly at 2,000; backprop is first clearly ahead at 50,000"
        in (verdict.evidence[0])
    )


def test_of_few_seeds_nothing_is_claimed(tmp_path):
    # As many runs as in the studies above, so that programs are shared.
    few = (*SMALL, "--evals=2", "--seeds=1", "--learning_rate=1e-3,3e-3,1e-2,3e-2")
    for name in ("engineering_tricks", "deep_mlp"):
        more = ("--batch_size=1,8", "--optimizer=sgd", "--normalization=none") if name == "engineering_tricks" else ()
        conduct(experiment(name), *few, *more, f"--workdir={tmp_path / name}")
        held = json.loads((tmp_path / name / "config.json").read_text())
        assert held["verdict"] == verdicts.UNDECIDED
        assert all("clearly" not in sentence for sentence in held["evidence"])


def weights_of(classes, scores):
    """Returns made-up results of initial weights, by gain, with this test accuracy."""
    rows = [
        (5, "glorot_uniform", gain, 0.01, theta, seed, 1, 60, 60 / classes, score + 0.01 * seed, score, False)
        for gain, score in scores.items()
        for theta in (0.0, 1e-3)
        for seed in range(2)
    ]
    names = "depth init init_gain learning_rate oja_rate seed batch_size examples_seen examples_per_class test_accuracy"
    table = with_method(pd.DataFrame(rows, columns=[*names.split(), "train_accuracy", "diverged"]))
    return Results(table, None, weight_init.QUESTION.schema)


@pytest.mark.parametrize(("classes", "scores", "level"), [(2, {1: 0.495, 2: 0.695}, 0.6), (10, {1: 0.095, 2: 0.595}, 0.4)])
def test_the_accuracy_that_counts_as_learned_is_above_a_guess(classes, scores, level):
    found = weights_of(classes, scores)
    ((*_, threshold),) = weight_init.by_depth(found)
    assert threshold == pytest.approx(level)
    for part, words in ((found, "decades without Oja"), (weights_of(classes, {1: 0.1, 2: 0.1}), "too little was learned")):
        axes = figures.in_style(weight_init.accuracy_by_initial_weights, part).axes[0]
        assert words in axes.get_title() and ("learns over" in axes.get_title()) == (part is found)


def with_measures(depths, feedback, seeds):
    """Returns made-up results of feedback alignment, at one learning rate."""
    rows = [
        (depth, feedback, 0.01, theta, seed, 1, 64, 6.4, 0.5 + 0.1 * seed, 0.5, False)
        for depth in depths
        for theta in (0.0, 1e-3)
        for seed in range(seeds)
    ]
    names = "depth feedback learning_rate oja_rate seed batch_size examples_seen examples_per_class test_accuracy"
    table = with_method(pd.DataFrame(rows, columns=[*names.split(), "train_accuracy", "diverged"]))
    layers = pd.concat(
        table[table["depth"] >= layer].assign(layer=layer, gradient_angle=12.0, feedback_alignment=0.1, weight_norm=2.0)
        for layer in range(1, max(depths) + 1)
    )
    return Results(table, layers, feedback_alignment.QUESTION.schema)


@pytest.mark.parametrize(
    ("depths", "feedback", "panels"),
    [((2,), "backprop", 1), ((1,), "random", 1), ((1, 2), "random", 3), ((2, 3), "random", 6)],
)
def test_feedback_is_drawn_of_the_hidden_layers_that_there_are(depths, feedback, panels):
    """Where none was left, after the training, a traceback came: of backprop alone, or of a network of one layer."""
    found = with_measures(depths, feedback, 2)
    for draw in feedback_alignment.QUESTION.measure_figures.values():
        figure = figures.in_style(draw, found)
        assert len(figure.axes) == panels
        nothing = "no hidden layer learned by random feedback"
        assert (nothing in [text.get_text() for text in figure.axes[0].texts]) == (panels == 1)
    told = feedback_alignment.verdict(found).evidence
    assert sum("hidden layers' mean angle" in sentence for sentence in told) == (panels // 3)
    assert "nan" not in " ".join(feedback_alignment.verdict(with_measures(depths, feedback, 1)).evidence)


def test_growth_is_relative_to_the_first_evaluation(studies):
    measures = pd.read_csv(studies / "feedback_alignment" / "measures.csv")
    schema = feedback_alignment.QUESTION.schema
    grown = feedback_alignment.with_growth(Results(measures, None, schema)).table
    assert (grown.loc[grown["examples_seen"] == 64, "growth"] == 1).all()
    later = grown[grown["examples_seen"] == 128]
    first = grown[grown["examples_seen"] == 64]
    np.testing.assert_allclose(
        later["growth"].to_numpy() * first["weight_norm"].to_numpy(), later["weight_norm"], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "flags", "word"),
    [
        ("weight_init", ["--oja_rate=0"], "with and without"),
        ("data_scarcity", ["--oja_rate=1e-4"], "with and without"),
        ("weight_init", ["--init=orthogonal"], "needs glorot_uniform"),
        ("engineering_tricks", ["--optimizer=adam"], "needs sgd"),
        ("engineering_tricks", ["--batch_size=8"], "needs 1"),
        ("engineering_tricks", ["--weight_levels=1"], "weights of one level cannot learn"),
        ("critical_period", ["--optimizer=adam", "--rule=hebb"], "--optimizer=adam --rule=hebb has no effect here"),
        ("controls", ["--batch_size=8"], "leave --batch_size at 1"),
        ("convolution", ["--depth=1,4"], "a hidden layer and a read-out"),
        ("convolution", ["--channels=4,4", "--depth=4"], "leave --depth out"),
        ("convolution", ["--kernel_size=3,5"], "one for each of 3 layers"),
    ],
)
def test_a_grid_that_cannot_answer_the_question_is_refused_at_once(name, flags, word, tmp_path):
    with pytest.raises(UserError, match=word):
        conduct(experiment(name), *flags, f"--workdir={tmp_path / 'none'}")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("feedback_alignment", [*THREE_LAYERS, "--nomeasures", "--feedback=random"]),
        ("mechanism", ["--oja_rate=0", "--learning_rate=1e-2", "--seeds=8"]),
        ("weight_init", ["--init=glorot_uniform", "--init_gain=1"]),
        ("feedback_alignment", [*THREE_LAYERS, "--feedback=random", "--learning_rate=1e8", "--seeds=4"]),
    ],
    ids=["without measures", "one rule", "one gain", "all diverge"],
)
def test_a_narrower_grid_than_the_default_ends_well(name, flags, tmp_path):
    assert "Verdict" in conduct(experiment(name), *SMALL, "--evals=2", *flags, f"--workdir={tmp_path}")
