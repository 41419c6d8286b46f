"""A work directory is a store of runs: a command trains the missing runs, and its tables hold its own grid."""

import contextlib
import errno
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import ojax
from experiments.common import grid, identity, stopping, tracking
from experiments.common.errors import UserError
from experiments.deep_mlp import QUESTION
from ojax.online import Interrupted
from tests.experiments.conducting import conduct, parse

# Two settings: with four seeds they make one block of eight runs, with eight seeds two.
RUNS = ("--widths=8", "--learning_rate=1e-2", "--oja_rate=0,1e-3", "--num_train=300", "--num_test=50", "--evals=2")
STORED = (*RUNS, "--block_size=8", "--save_weights", "--checkpoint_every=50")
ONE_RUN = (
    "--widths=8",
    "--learning_rate=1e-2",
    "--oja_rate=0",
    "--seeds=1",
    "--num_train=60",
    "--num_test=50",
    "--evals=1",
)


def contents(folder, num_runs=16):
    """Returns the bytes of the tables, and the weights of every run."""
    found = {name: (folder / name).read_bytes() for name in ("results.csv", "runs.csv")}
    for run in range(num_runs):
        trained = ojax.load_weights(folder, run)
        found[run] = trained.setting, {path: array.tobytes() for path, array in trained.params.items()}
    return found


def written(folder):
    """Returns the modification time of each file of the runs."""
    return {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    conduct(QUESTION, *STORED, "--seeds=8", f"--workdir={folder}")
    return contents(folder)


@contextlib.contextmanager
def stopped(monkeypatch, calls):
    """Makes the study stop at the given call of `stop`."""
    counter = itertools.count(1)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(stopping, "asked", lambda: next(counter) >= calls)
        yield


def test_more_seeds_train_only_themselves_and_give_the_same_bytes(whole, tmp_path):
    conduct(QUESTION, *STORED, "--seeds=4", f"--workdir={tmp_path}")
    few, first = contents(tmp_path, 8), written(tmp_path)
    assert "8 of 16 runs are done already" in conduct(QUESTION, *STORED, "--seeds=8", f"--workdir={tmp_path}")
    assert contents(tmp_path) == whole
    assert written(tmp_path).items() > first.items()
    # The first grid again: its tables are written, and no run is trained.
    before = written(tmp_path)
    conduct(QUESTION, *STORED, "--seeds=4", f"--workdir={tmp_path}")
    assert contents(tmp_path, 8) == few and written(tmp_path) == before


def test_extended_stopped_and_resumed_it_has_the_same_bytes(whole, tmp_path, monkeypatch):
    conduct(QUESTION, *STORED, "--seeds=4", f"--workdir={tmp_path}")
    with stopped(monkeypatch, 2):
        conduct(QUESTION, *STORED, "--seeds=8", f"--workdir={tmp_path}")
    assert "resumes from sample" in conduct(QUESTION, *STORED, "--seeds=8", f"--workdir={tmp_path}")
    assert contents(tmp_path) == whole


def test_started_with_other_blocks_it_has_the_same_bytes(whole, tmp_path, monkeypatch):
    """Stopped in its second block of six; a command with blocks of eight resumes this block."""
    with stopped(monkeypatch, 9):
        conduct(QUESTION, *STORED, "--block_size=6", "--seeds=8", f"--workdir={tmp_path}")
    assert len(list((tmp_path / "runs").glob("*.json"))) == 1
    printed = conduct(QUESTION, *STORED, "--seeds=8", f"--workdir={tmp_path}")
    assert "6 of 16 runs are done already" in printed and "resumes from sample" in printed
    assert contents(tmp_path) == whole and not (tmp_path / "checkpoints").exists()


def test_a_block_that_smaller_ones_replace_leaves_no_state(tmp_path, monkeypatch):
    with stopped(monkeypatch, 2):
        conduct(QUESTION, *STORED, "--seeds=4", f"--workdir={tmp_path}")
    assert len(list((tmp_path / "checkpoints").glob("*.json"))) == 1
    conduct(QUESTION, *STORED, "--block_size=4", "--seeds=4", f"--workdir={tmp_path}")
    assert len(list((tmp_path / "runs").glob("*.json"))) == 2 and not (tmp_path / "checkpoints").exists()


def test_blocks_of_what_is_missing():
    settings = parse(QUESTION, "--widths=8", "--learning_rate=1e-2,1e-1", "--oja_rate=0", "--seeds=5")
    learner = QUESTION._replace(learner=lambda setting, data: None)
    dataset = ojax.datasets.load()
    runs = grid.make(learner, settings, dataset)
    keys = runs.parts[0].keys

    def blocks(*args):
        return [(block.rows, block.slots) for block in runs.blocks(4, *args)]

    assert blocks() == [([0, 1, 2, 3], 4), ([4, 5, 6, 7], 4), ([8, 9], 4)]
    assert blocks(keys[:4]) == [([4, 5, 6], 3), ([7, 8, 9], 3)]
    assert blocks(keys[:4], [keys[4:8], keys[2:4]]) == [([4, 5, 6, 7], 4), ([8, 9], 2)]
    assert blocks(keys) == []
    # More rates, seeds and depths do not change the other runs' keys; another list of names is another program.
    more = ("--learning_rate=1e-2,1e-1,1", "--oja_rate=0,1e-3", "--seeds=9", "--feedback=backprop,random")
    wider = grid.make(learner, settings.changed(**{n: parse(QUESTION, *more)[n] for n in _names(more)}), dataset)
    assert set(keys) < {key for part in wider.parts for key in part.keys}
    named = grid.make(learner, settings.changed(init=("glorot_uniform", "he_normal")), dataset)
    assert set(keys).isdisjoint(key for part in named.parts for key in part.keys)


def _names(flags):
    return [flag.lstrip("-").partition("=")[0] for flag in flags]


def test_a_learner_knows_nothing_of_the_grid_but_its_program():
    """So that a run does not depend on the other runs."""
    known = []
    question = QUESTION._replace(learner=lambda setting, data: known.append(dict(setting)))
    settings = parse(question, "--depth=2", "--init=he_normal,orthogonal", "--oja_half_life=inf", "--seeds=3")
    grid.make(question, settings, ojax.datasets.load())
    (setting,) = known
    assert setting["depth"] == 2 and setting["init"] == ("he_normal", "orthogonal")
    assert setting["oja_half_life"] == (np.inf,) and setting["learning_rate"] is None
    assert not {"seeds", "seed", "workdir", "block_size"} & set(setting)


@pytest.mark.compiled_quickly
def test_data_are_known_by_their_content(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 120)
    x = rng.normal(size=(120, 6)) + y[:, None]
    (tmp_path / "elsewhere").mkdir()
    files = [tmp_path / "mine.npz", tmp_path / "elsewhere" / "staged.npz"]
    for path in files:
        np.savez(path, x=x[:100], y=y[:100], x_test=x[100:], y_test=y[100:])
    study = tmp_path / "study"
    conduct(QUESTION, *ONE_RUN, f"--dataset=npz:{files[0]}", f"--workdir={study}")
    before = written(study)
    conduct(QUESTION, *ONE_RUN, f"--dataset=npz:{files[1]}", f"--workdir={study}")
    assert written(study) == before
    np.savez(files[1], x=x[:100] + 1, y=y[:100], x_test=x[100:], y_test=y[100:])
    with pytest.raises(UserError, match="holds runs of other data"):
        conduct(QUESTION, *ONE_RUN, f"--dataset=npz:{files[1]}", f"--workdir={study}")


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "study"
    conduct(QUESTION, *ONE_RUN, f"--workdir={folder}")
    return folder


@pytest.fixture
def study(one_run, tmp_path):
    return Path(shutil.copytree(one_run, tmp_path / "study"))


@pytest.mark.compiled_quickly
def test_another_version_is_named_and_its_runs_are_told_apart(study, monkeypatch):
    now = identity.source()
    changed = now | {"ojax/changes.py": "another", "ojax/rules.py": "new"}
    monkeypatch.setattr(identity, "source", lambda: changed)
    monkeypatch.setattr(identity, "device", lambda: "H100")
    both = (*ONE_RUN, "--seeds=2", f"--workdir={study}")
    with pytest.raises(UserError) as refused:
        conduct(QUESTION, *both)
    for words in ("another version (ojax/changes.py, ojax/rules.py, device ", "H100 now", "--accept_changes"):
        assert words in str(refused.value)
    conduct(QUESTION, *both, "--accept_changes")
    assert pd.read_csv(study / "runs.csv")["version"].tolist() == [1, 2]
    assert [v["device"] for v in json.loads((study / "identity.json").read_text())["versions"]][1] == "H100"
    assert json.loads((study / "config.json").read_text())["runs_by_version"] == {"1": 1, "2": 1}
    assert "of 2 versions" in (study / "summary.md").read_text()
    assert "version" not in pd.read_csv(study / "results.csv")


def test_what_counts_as_a_change_of_a_file(tmp_path):
    path, digests = tmp_path / "module.py", []
    text = '"""A docstring."""\nRATE = "a"\n\n\ndef f(x, y):\n    """Another."""\n    return x @ y  # A comment.\n'
    for old, new in (("", ""), ("A comment", "Other words"), ("Another", "Else"), ("x @ y", "(x @\n    y)"),
                     ("A docstring", "Words"), ("x @ y", "y @ x"), ('"a"', '"b"')):  # fmt: skip
        path.write_text(text.replace(old, new) if old else text)
        digests.append(identity._of_file(path))
    assert len(set(digests[:5])) == 1 and len(set(digests)) == 3


def test_an_editors_files_do_not_count_and_what_is_no_module_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "_EXPERIMENTS", tmp_path)
    files = identity.source.__wrapped__()
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / ".#networks.py").symlink_to("somebody@host.123")
    (tmp_path / "tasks" / "._networks.py").write_bytes(b"\0")
    assert identity.source.__wrapped__() == files
    for content in ("def f(:", "\0"):
        (tmp_path / "tasks" / "networks.py").write_text(content)
        with pytest.raises(UserError, match=r"networks\.py is no module of Python"):
            identity.source.__wrapped__()


def test_every_module_that_is_loaded_and_does_not_only_report_has_a_digest():
    names = {f"experiments/common/{name}.py" for name in identity.REPORTERS}
    assert all(Path(identity.__file__).parents[2].joinpath(name).is_file() for name in names)
    assert names.isdisjoint(identity.source())
    assert {"ojax/trees.py", "ojax/online/run.py", "experiments/tasks/networks.py"} <= identity.source().keys()


def test_folders_of_earlier_versions_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"experiment": QUESTION.module, "flags": {}}))
    with pytest.raises(UserError, match="holds runs of an earlier ojax: name another folder"):
        conduct(QUESTION, *ONE_RUN, f"--workdir={tmp_path}")


@pytest.mark.compiled_quickly
def test_files_of_others_do_not_stop_a_study(tmp_path):
    (tmp_path / "lost+found").mkdir()
    for name in ("slurm-17.out", ".DS_Store", "lost+found/.tmp-theirs"):
        (tmp_path / name).write_text("theirs")
    conduct(QUESTION, *ONE_RUN, f"--workdir={tmp_path}")
    assert (tmp_path / "results.csv").exists()
    assert (tmp_path / "slurm-17.out").read_text() == (tmp_path / "lost+found" / ".tmp-theirs").read_text() == "theirs"


@contextlib.contextmanager
def read_only(folder):
    """Makes a folder that nobody can write, not even root."""
    is_root = os.geteuid() == 0
    if is_root and not all(parent.stat().st_mode & 0o001 for parent in Path(__file__).parents):
        pytest.skip("root alone can read this clone, and root can write everywhere")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.mark.compiled_quickly
def test_a_finished_study_that_cannot_be_written_is_shown(one_run):
    tracking.check()  # Nobody may not be able to import it.
    with tempfile.TemporaryDirectory() as root:  # Only the owner may read below tmp_path.
        os.chmod(root, 0o755)
        folder = Path(shutil.copytree(one_run, Path(root) / "study"))
        before = written(folder)
        with read_only(folder):
            for more in ([], ["--tensorboard"]):
                assert "Verdict" in conduct(QUESTION, *ONE_RUN, *more, f"--workdir={folder}")
            with pytest.raises(UserError, match="cannot be written"):
                conduct(QUESTION, *ONE_RUN, "--seeds=2", f"--workdir={folder}")
        assert written(folder) == before


@pytest.mark.compiled_quickly
@pytest.mark.parametrize("name", ["results.csv", "config.json", "runs.csv", "summary.md"])
def test_tables_that_are_damaged_or_gone_are_written_again(study, name):
    before = (study / "results.csv").read_bytes()
    (study / name).write_text("x")
    conduct(QUESTION, *ONE_RUN, f"--workdir={study}")
    assert (study / "results.csv").read_bytes() == before
    if name != "summary.md":  # Users may edit it.
        assert (study / name).stat().st_size > 10
    (study / name).unlink()
    conduct(QUESTION, *ONE_RUN, f"--workdir={study}")
    assert (study / "results.csv").read_bytes() == before and (study / name).exists()


@pytest.mark.compiled_quickly
@pytest.mark.parametrize("name", ["identity.json", "config.json", "results.csv", "runs", "*/*.json", "*/*.results.csv"])
def test_what_cannot_be_read_is_not_damaged(study, name, monkeypatch):
    """So on a cluster, when a file server is away: nothing is renamed, trained again or written again."""
    (missed,) = study.glob(name)

    def times():
        return {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file() and path.name != ".lock"}

    def failing(real):
        def called(path, *args, **kwargs):
            if path == missed:
                raise OSError(errno.ESTALE, "Stale file handle")
            return real(path, *args, **kwargs)

        return called

    before = times()
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be read: Stale file handle; try again"):
        for method in ("open", "iterdir"):
            patch.setattr(Path, method, failing(getattr(Path, method)))
        conduct(QUESTION, *ONE_RUN, f"--workdir={study}")
    assert times() == before
