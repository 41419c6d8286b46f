"""Nonsense in every flag and file that is read causes no hang, no traceback, no wrong result and no file elsewhere."""

import errno
import importlib
import io
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds
from absl import flags as absl_flags
from hypothesis import given
from hypothesis import strategies as st

import experiments
from experiments import report as page
from experiments.common import flags as study_flags
from experiments.common import grid, needs, output, workdir
from experiments.common.errors import UserError
from experiments.common.store import Held, Store
from experiments.deep_mlp import QUESTION
from ojax import datasets
from ojax.datasets import DatasetError
from ojax.online import Checkpoints
from tests import compiling
from tests.experiments import commands
from tests.experiments.conducting import parse
from tests.ojax.datasets_test import prepare

FLAGS = absl_flags.FlagValues()
study_flags.define(QUESTION.declared(), {}, FLAGS)
NAMES = sorted(name for name in FLAGS if name not in ("measures", "nomeasures", "save_weights", "nosave_weights"))
ONE_LINE = (UserError, absl_flags.Error)

nonsense = st.one_of(
    st.text(max_size=20),
    st.lists(st.one_of(st.integers(), st.floats()), max_size=4).map(lambda numbers: ",".join(map(str, numbers))),
    st.sampled_from(
        ["1e400", "-0", "0x10", "1_000", "٣", "1,", ",", "NaN", "inf", "9" * 5000, "1s", "-5s", "s", "1e-50", "2,2"]
    ),
    st.sampled_from(
        ["~", "~/x", "~nobody/x", "$HOME/x", "$NONE/x", "gs://bucket/x", "s3:/x", '"/x"', "'x'", "x  # y", " x", ""]
    ),
    st.sampled_from(["x.npz", "~/x.npz", "npz:$HOME/x", "npz:'x'", "idx:~", "idx:gs://x", "./x", "mnist:3.*.*", "/x.npy"]),
    st.sampled_from(["none", "embedded", "sgd", "idx:", "idx:/dev/null", "mnist/../..", "../x", "True", "\x00", "é" * 300]),
)


@given(st.dictionaries(st.sampled_from(NAMES), nonsense, min_size=1, max_size=3))
def test_any_flag_gives_a_configuration_or_one_line(given_flags):
    try:
        parsed = parse(QUESTION, *(f"--{name}={value}" for name, value in given_flags.items()))
        if parsed["seeds"] * math.prod(len(parsed[axis.name]) for axis in parsed.axes) < 10_000:
            grid.runs_of(QUESTION, parsed)
    except ONE_LINE as error:
        assert str(error)
        return
    # The settings' own flags give equal settings.
    again = parse(QUESTION, *parsed.flags())
    assert again.deciding() == parsed.deciding()
    assert {name: again[name] for name in parsed.deciding()} == {name: parsed[name] for name in parsed.deciding()}


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def idx_files():
    rng, files = np.random.default_rng(0), {}
    for split, count in (("train", 12), ("t10k", 5)):
        files[f"{split}-images-idx3-ubyte"] = idx_bytes(rng.integers(0, 256, (count, 4, 3), np.uint8))
        files[f"{split}-labels-idx1-ubyte"] = idx_bytes(rng.integers(0, 3, count, np.uint8))
    return files


@given(data=st.data())
def test_any_idx_folder_gives_a_data_set_or_one_line(data, idx_files, tmp_path):
    folder = tmp_path / "idx"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    damaged = data.draw(st.sampled_from(sorted(idx_files)))
    for name, content in idx_files.items():
        if name == damaged:
            name, content = damage(data, name, content)
        (folder / name).write_bytes(content)
    assert_sound_or_one_line(f"idx:{folder}")


def assert_sound_or_one_line(*arguments, **options):
    """Asserts that loading returns a usable data set, or raises an error of one line."""
    try:
        found = datasets.load(*arguments, **options)
    except DatasetError as error:
        assert "\n" not in str(error)
        return
    assert found.train.inputs.shape[1] == found.test.inputs.shape[1] and len(found.class_names) >= 2
    assert np.isfinite(found.train.inputs).all() and found.train.inputs.min() >= 0 and found.train.inputs.max() <= 1
    assert found.train.targets.min() >= 0 and found.train.targets.max() < len(found.class_names)


def damage(data, name, content):
    """Returns content that is cut, overwritten, extended, replaced, or given a false gzip header."""
    kind = data.draw(st.sampled_from(["cut", "overwrite", "prolong", "replace", "gzip"]))
    place = data.draw(st.integers(0, len(content)))
    other = data.draw(st.binary(max_size=24))
    return {
        "cut": (name, content[:place]),
        "overwrite": (name, content[:place] + other + content[place + len(other) :]),
        "prolong": (name, content + other),
        "replace": (name, other),
        "gzip": (name + ".gz", b"\x1f\x8b\x08" + other),
    }[kind]


def damaged_copy(data, source, folder):
    """Copies the folder with one of its files damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    name, content = damage(data, path.name, path.read_bytes())
    path.unlink()
    path.with_name(name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    prepare(tfds.image_classification.MNIST, folder)
    return folder


@given(data=st.data())
def test_any_tfds_folder_gives_a_data_set_or_one_line(data, tfds_folder, tmp_path):
    folder = damaged_copy(data, tfds_folder, tmp_path / "tfds")
    assert_sound_or_one_line("mnist", data_dir=folder, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("kind", ["pipe", "loop", "folder", "device"])
def test_idx_files_that_are_no_files(kind, idx_files, tmp_path):
    for name, content in idx_files.items():
        (tmp_path / name).write_bytes(content)
    path = tmp_path / "train-images-idx3-ubyte"
    path.unlink()
    make = {
        "pipe": os.mkfifo,
        "loop": lambda p: p.symlink_to(p),
        "folder": os.mkdir,
        "device": lambda p: p.symlink_to("/dev/zero"),
    }
    make[kind](path)
    with pytest.raises(DatasetError, match="train-images"):
        datasets.load(f"idx:{tmp_path}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PAGE = {
    **{"question": "?", "method": "so", "claim": "that", "verdict": "reproduced", "evidence": ["1"], "figures": {}},
    **{"finished": "2026", "command": "x", "versions": {"jax": "1"}, "devices": ["cpu"], "git_revision": None},
    **{"num_runs": 1, "seconds": 1.0, "runs_by_version": {"1": 1}},
}
config_names = st.sampled_from(["experiment", "flags", "report", "dataset", *PAGE])
identity_names = st.sampled_from(["question", "settings", "data", "versions"])
VERSION = {"source": {"a.py": "0"}, "packages": {"python": "3.11.0", "jax": "1"}, "device": "cpu"}


def identity_of(config):
    return {"question": QUESTION.module, "settings": config.fixed(), "data": "0", "version": VERSION}


def write_identity(folder, config):
    held = {**identity_of(config), "versions": [VERSION]}
    del held["version"]
    (folder / "identity.json").write_text(json.dumps(held))
    return held


def damaged_json(data, mine, names):
    """Returns damaged JSON: with other values for some names, cut, or something else."""
    text = json.dumps(mine | data.draw(st.dictionaries(names, json_values, max_size=2))).encode()
    return data.draw(
        st.sampled_from([text, text[: data.draw(st.integers(0, len(text)))], data.draw(st.binary(max_size=30))])
    )


@given(data=st.data())
def test_any_identity_and_config_are_taken_or_refused_in_one_line(data, tmp_path):
    folder = tmp_path / "study"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = parse(QUESTION, f"--workdir={folder}", *data.draw(st.sampled_from([[], ["--accept_changes"]])))
    content = damaged_json(data, write_identity(folder, config), identity_names)
    (folder / "identity.json").write_bytes(content)
    dataset = {"name": "embedded", "train": 10, "test": 10, "sha256": "0"}
    mine = {"experiment": QUESTION.module, "flags": config.deciding(), "dataset": dataset, "report": {}} | PAGE
    (folder / "config.json").write_bytes(damaged_json(data, mine, config_names))
    (folder / "summary.md").write_text("# A summary\n")
    held = workdir.Workdir(config, QUESTION.module)
    try:
        assert 1 <= held.take(identity_of(config)) <= len(held.versions()) + 1
        assert isinstance(held.facts(), dict) and held.store.held() == {}
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        held.release()
    assert (folder / "identity.json").read_bytes() == content
    found, skipped = page.found(tmp_path)
    assert len(found) == 1 or folder in skipped


@pytest.mark.parametrize("name", ["identity.json", "config.json", ".lock", "summary.md", "runs", "checkpoints"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "folder", "outside"])
def test_a_workdir_with_something_else_in_its_place(name, kind, tmp_path):
    folder, outside = tmp_path / "study", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("mine")
    make = {
        "pipe": os.mkfifo,
        "loop": lambda p: p.symlink_to(p),
        "folder": os.mkdir,
        "outside": lambda p: p.symlink_to(outside),
    }
    config = parse(QUESTION, f"--workdir={folder}")
    if name != "identity.json":
        write_identity(folder, config)
    make[kind](folder / name)
    held = workdir.Workdir(config, QUESTION.module)
    try:
        held.take(identity_of(config))
        held.finished, held.facts(), held.store.held(), held.store.unfinished(1, ())
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        held.release()
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("folder", ["/proc/none", "/dev/null/x", "a" * 300, "new\nline/ünïcode \U0001f9e0"])
def test_names_of_workdirs(folder, tmp_path):
    target = folder if folder.startswith("/") else str(tmp_path / folder)
    config = parse(QUESTION, f"--workdir={target}")
    held = workdir.Workdir(config, QUESTION.module)
    try:
        held.take(identity_of(config))
        assert "ünïcode" in folder
    except UserError as error:
        assert "--workdir" in str(error)
    finally:
        held.release()
    nothing = workdir.Workdir(parse(QUESTION).changed(workdir="nul\0"), QUESTION.module)
    with pytest.raises(UserError, match="not the name of a folder"):
        nothing.take(identity_of(config))


ROWS = {"results": pd.DataFrame({"run": [0, 1], "test_accuracy": [0.1, 0.2]}), "measures": None}


@pytest.mark.parametrize("name", ["block.json", "block.results.csv"])
@given(data=st.data())
def test_any_block_is_as_it_was_written_or_is_run_again(name, data, tmp_path):
    store = Store(tmp_path)
    store.write("block", ["a", "b"], 1, 2.0, ROWS)
    assert store.held() == {"a": Held("block", 0, 1, 1.0), "b": Held("block", 1, 1, 1.0)}
    path = tmp_path / "runs" / name
    before = path.read_bytes()
    _, content = damage(data, name, before)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = store.held()
    if found:  # Blanks around the marker's words do not matter.
        assert content == before or (name.endswith("json") and json.loads(content) == json.loads(before))


def test_a_block_without_its_measures_is_run_again(tmp_path):
    store = Store(tmp_path)
    store.write("block", ["a", "b"], 1, 2.0, ROWS | {"measures": pd.DataFrame({"run": [0, 1]})})
    assert len(store.held()) == 2
    (tmp_path / "runs" / "block.measures.csv").unlink()
    with pytest.warns(UserWarning, match="the runs are trained again"):
        assert store.held() == {}


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(workdir.fcntl, "flock", no_locks)
    config = parse(QUESTION, f"--workdir={tmp_path}")
    held = workdir.Workdir(config, QUESTION.module)
    with pytest.warns(UserWarning, match="no file locks"):
        held.take(identity_of(config))
    held.release()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    rng = np.random.default_rng(0)
    state = {"kernel": rng.normal(size=(3, 40, 20)).astype(np.float32), "seen": np.arange(3, dtype=np.int32)}
    state = jax.device_put(state, sharding)
    with Checkpoints(folder, every_samples=1) as kept:
        kept.update(7, state)
    return folder, state


@given(data=st.data())
def test_any_checkpoint_gives_the_state_that_was_saved_or_none(data, checkpoint, tmp_path):
    source, state = checkpoint
    folder = damaged_copy(data, source, tmp_path / "copy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Checkpoints(folder) as kept:
            found = kept.restore(state, 3)
    if found is not None:
        assert found[0] == 7
        jax.tree.map(np.testing.assert_array_equal, found[1], state)


def test_nothing_is_written_outside_of_the_workdir_and_the_cache(tmp_path):
    """With a separate home folder and current folder."""
    for name in ("home", "here", "temporary"):
        (tmp_path / name).mkdir()
    places = {"HOME": tmp_path / "home", "TMPDIR": tmp_path / "temporary", "PYTHONPATH": commands.REPOSITORY}
    own = ("XDG_", "JAX_COMPILATION_CACHE_DIR")  # So that it compiles, and stores its programs in the default folder.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment |= {name: str(value) for name, value in places.items()} | {"PYTHONDONTWRITEBYTECODE": "1"}
    environment["XLA_FLAGS"] = compiling.XLA_FLAGS
    small = ("--widths=8", "--seeds=1", "--num_train=60", "--evals=1", "--checkpoint_every=20")
    process = commands.start(*small, "--workdir=study", cwd=tmp_path / "here", env=environment)
    code, _, stderr = commands.finish(process)
    assert code == 0, stderr
    written = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    outside = {
        path for path in written if path.parts[:2] not in (("here", "study"), ("home", ".cache"), ("home", ".config"))
    }
    assert not outside
    programs = {path.parts[:4] for path in written if path.suffix == ".program"}
    assert programs == {("home", ".cache", "ojax", "programs")}


def test_arrays_that_would_be_unpickled_are_not(tmp_path):
    """An .npz, the cache's format, with a pickle that would create a file."""

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    content = io.BytesIO()
    np.savez(content, train_images=np.array([Trap()], dtype=object), allow_pickle=True)
    content.seek(0)
    with pytest.raises(ValueError, match="pickle"):
        datasets.loading._read_arrays(content)
    assert not (tmp_path / "sprung").exists()


QUESTIONS = [path.stem for path in sorted((commands.REPOSITORY / "experiments").glob("*.py"))]
UNREAD = {"a variable": "$NONE/x", "quotes": '"/x y"', "a comment": "/x  # y", "a bucket": "gs://bucket/x", "nothing": ""}


@pytest.mark.parametrize("kind", UNREAD)
def test_every_flag_that_is_a_path_is_read(kind):
    """For every question, a flag whose help names a folder or file refuses text that a shell would have expanded."""
    found = set()
    for name in QUESTIONS:
        question = getattr(importlib.import_module(f"experiments.{name}"), "QUESTION", None)
        if question is None:
            continue
        values = absl_flags.FlagValues()
        study_flags.define(question.declared(), {}, values)
        for flag in question.declared():
            prefixes = [prefix for prefix in ("npz:", "idx:") if f"{prefix}F" in flag.help]
            if not prefixes and not re.search(r"\b(Folder|Data set:|other data set|a file that)\b", flag.help):
                continue
            found.add(flag.name)
            for prefix in prefixes or [""]:
                if flag.name == "data_dir" and kind == "a bucket":
                    continue  # TFDS reads it.
                with pytest.raises(absl_flags.Error):
                    values[flag.name].parse(prefix + UNREAD[kind])
    assert {"workdir", "data_dir", "compilation_cache", "compile_for", "dataset", "found", "other"} <= found


TINY = (
    "--widths=8",
    "--num_train=60",
    "--num_test=50",
    "--seeds=1",
    "--learning_rate=1e-2",
    "--oja_rate=0,1e-4",
    "--evals=1",
)


def shell(script, *flags, folder, **environment):
    """Returns exit code and standard error of a bash script, in which COMMAND is a tiny study."""
    command = " ".join(shlex.quote(str(word)) for word in (sys.executable, "-m", "experiments.deep_mlp", *flags))
    script = script.replace("COMMAND", f"{command} --workdir={shlex.quote(str(folder))}")
    environment = os.environ | {"XLA_FLAGS": compiling.XLA_FLAGS} | environment
    options = {"cwd": commands.REPOSITORY, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    run = subprocess.run(["bash", "-c", script], **options, check=False)
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize(
    ("script", "notes", "backend"),
    [
        ("set -o pipefail; COMMAND | head -1", 1, "module://matplotlib_inline.no_such_backend"),
        ("(COMMAND; echo $? > {code}) 2>&1 | true", 0, "Qt4Agg"),
        ("COMMAND > /dev/full", 1, "agg"),
        ("COMMAND >&- 2>&-", 0, "agg"),
    ],
    ids=["head", "dead tee", "full disk", "closed"],
)
def test_a_study_outlives_its_output_and_needs_no_backend(script, notes, backend, tmp_path):
    code = tmp_path / "code"
    found, _, stderr = shell(script.replace("{code}", str(code)), *TINY, folder=tmp_path / "study", MPLBACKEND=backend)
    assert found == 0 and (not code.exists() or code.read_text() == "0\n"), stderr
    assert "Traceback" not in stderr and stderr.count("note: standard output is lost") == notes
    assert len(pd.read_csv(tmp_path / "study" / "results.csv")) == 2
    assert (tmp_path / "study" / "summary.md").exists() and list((tmp_path / "study" / "figures").glob("*.png"))


class Full(io.StringIO):
    """A stream that fails: a closed terminal, or a log on a full disk."""

    def write(self, text):
        raise OSError(errno.EIO, "Input/output error")


def test_streams_that_cannot_be_written(capsys):
    full = output.Outlived(Full())
    for _ in range(3):
        print("lost", file=full, flush=True)
    closed = io.StringIO()
    closed.close()
    print("lost", file=output.Outlived(closed, "the log"))
    notes = capsys.readouterr().err.splitlines()
    assert [note.partition(";")[0] for note in notes] == [
        "note: standard output is lost (Input/output error)",
        "note: the log is lost (I/O operation on closed file)",
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "koi8-r", "no-such"])
def test_letters_that_an_encoding_lacks(encoding):
    text = "η = 0.1 ± 0.2 … “θ²” ❤ \udce9"
    if encoding == "no-such":
        assert output.encodable(text, encoding) == text
        return
    found = output.encodable(text, encoding)
    assert found.encode(encoding) and ("η" in found or "eta = 0.1" in found)
    assert output.encodable("η", encoding) in ("η", "eta")


def test_a_summary_in_any_encoding(tmp_path):
    """A finished study, whose table has Greek letters."""
    code, _, stderr = shell("COMMAND", *TINY, folder=tmp_path)
    assert code == 0, stderr
    posix = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # ASCII.
    for environment in ({"PYTHONIOENCODING": "latin-1"}, posix):
        code, stdout, stderr = shell("COMMAND", *TINY, folder=tmp_path, **environment)
        assert (code, stderr) == (0, "") and "eta" in stdout and "Tables and figures are in" in stdout


@pytest.mark.parametrize(
    "variable", ["JAX_PLATFORMS=cuda", "JAX_PLATFORMS=cdua", "JAX_PLATFORM_NAME=gpu", "JAX_ENABLE_X64=maybe"]
)
def test_platforms_that_are_not_here(variable, tmp_path):
    if "cuda" in variable and any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is one")
    code, stdout, stderr = shell("COMMAND", *TINY, folder=tmp_path / "study", **dict([variable.split("=")]))
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith("error: ") and variable in stderr and "unset it" in stderr
    assert not (tmp_path / "study" / "results.csv").exists()


@pytest.mark.parametrize("package", ["matplotlib", "pandas"])
def test_what_a_study_needs_is_missed_before_it_trains(package, tmp_path, monkeypatch):
    found = needs.importlib.util.find_spec
    monkeypatch.setattr(needs.importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(UserError, match=f"{package} is not installed: pip install --editable"):
        experiments.study("deep_mlp", workdir=tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("--depth=two\n".encode("utf-8-sig"), "'two' is not a whole number"),
        ("# a comment\r\n--depth=two\r\n".encode("utf-8-sig"), "'two' is not a whole number"),
        ("--depth=two\n".encode("utf-16"), "UTF-8"),
        (b"--workdir=/x # a note\n", "comment"),
        (b'--dataset="npz:/x.npz"\n', "quotes"),
    ],
    ids=["mark", "mark before a comment", "UTF-16", "comment", "quotes"],
)
def test_flag_files_as_editors_leave_them(content, words, tmp_path):
    (tmp_path / "study.flags").write_bytes(content)
    code, stdout, stderr = shell("COMMAND", f"--flagfile={tmp_path / 'study.flags'}", folder=tmp_path / "study")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1) and words in stderr


def test_a_notebook_in_the_words_of_the_library(tmp_path, monkeypatch):
    """A home folder, a file without `npz:`, and seeds in the form of `ojax.online.train`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (80, 4), np.uint8), np.arange(80)[:, None] % 3
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    small = {"widths": 8, "num_train": 40, "learning_rate": 1e-2, "oja_rate": [0, 1e-4], "evals": 1}
    found = experiments.study("deep_mlp", **small, dataset=Path("~/x.npz"), workdir="~/study", seeds=range(3, 5))
    assert found.folder == tmp_path / "study" and set(found.results.table["seed"]) == {3, 4}
    assert {path.name for path in tmp_path.iterdir()} <= {"x.npz", "study", ".cache", ".config"}
    facts = json.loads((tmp_path / "study" / "config.json").read_text())["dataset"]
    assert (facts["shape"], facts["range"], facts["classes"], facts["samples_per_class"]) == ([4], [0, 1], 3, [26, 27])
    for seeds in ([0, 2], [], ["a"], range(2)):
        with pytest.raises(UserError, match="seeds=range"):
            experiments.study("deep_mlp", **small, seeds=seeds, **({"seed": 1} if seeds == range(2) else {}))


def test_a_notebook_uses_all_cores_and_outlives_its_output(tmp_path):
    """A script in its own process, whose first use of JAX is a study."""
    settings = ", ".join(f"{name}={value}" for name, value in (word.removeprefix("--").split("=") for word in TINY[:-2]))
    script = f"import experiments\nexperiments.study('deep_mlp', {settings}, oja_rate=[0, 1e-4], evals=1, workdir='study')"
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"XLA_FLAGS": compiling.XLA_FLAGS, "PYTHONPATH": str(commands.REPOSITORY)}
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -W error script.py | true"
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 120}
    run = subprocess.run(["bash", "-c", command], **options, check=False)
    assert run.returncode == 0 and run.stderr.count("\n") == 1, run.stderr
    assert (tmp_path / "study" / "summary.md").exists()
