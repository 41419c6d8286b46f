"""Studies that are killed, stopped, damaged, or spread over processes behave as the README's table states."""

import inspect
import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import ojax
from experiments.common.errors import UserError, complain
from experiments.deep_mlp import QUESTION
from tests.experiments import commands
from tests.experiments.commands import STUDY
from tests.experiments.conducting import conduct


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, _, stderr = commands.run(*STUDY, f"--workdir={folder}")
    assert code == 0, stderr
    return commands.tables(folder)


def assert_same_in_the_end(folder, undisturbed):
    code, stdout, stderr = commands.run(*STUDY, f"--workdir={folder}")
    assert code == 0, stderr
    assert commands.tables(folder) == undisturbed
    left = {path.name for path in folder.iterdir()}
    tables = {"results.csv", "runs.csv"}
    assert left == {".lock", "identity.json", "config.json", "summary.md", "runs", "weights", "figures", *tables}
    return stdout, stderr


def test_killed_as_it_compiles_trains_and_saves_it_ends_with_the_same_bits(undisturbed, tmp_path):
    folder, hit = tmp_path / "study", []
    for stage, flags in (("compile", ["--compilation_cache=none"]), ("train", []), ("save", [])):
        for _ in range(5):  # A save is short.
            hit.append(commands.kill_at(stage, folder, *flags))
            if hit[-1] == stage:
                break
    assert set(hit) >= {"compile", "train", "save"}, hit
    assert_same_in_the_end(folder, undisturbed)


def assert_ends_in_one_line(run, *words):
    code, _, stderr = run
    assert code == 2 and stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    for word in words:
        assert word in stderr


HUNG_UP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)  # Whatever the tests' own is.
from experiments.common import stopping
stopping.watch()
with stopping.deferred():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGHUP)
raise SystemExit(stopping.exit_code() if stopping.asked() else 0)
"""


def test_a_terminal_that_closes_asks_to_stop_once_unless_it_is_ignored():
    for how, code in (("", 129), ("nohup", 0)):
        assert subprocess.run([sys.executable, "-c", HUNG_UP, how]).returncode == code


def test_a_stop_is_not_printed_as_an_error(capsys):
    assert (complain("stopped.", 130), complain("a wrong flag.")) == (130, 2)
    assert capsys.readouterr().err == "stopped.\nerror: a wrong flag.\n"


def test_asked_to_stop_it_saves_and_says_where_and_the_folder_is_its_own(undisturbed, tmp_path):
    """It is stopped by SIGTERM, then by Ctrl-C; meanwhile no other command can use its folder."""
    for number, wanted in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = commands.saved(tmp_path)
        process = commands.start(*STUDY, f"--workdir={tmp_path}")
        commands.wait_for_work(process, tmp_path)
        if number == signal.SIGTERM:
            with pytest.raises(UserError, match=f"in use by process {process.pid} on "):
                conduct(QUESTION, *STUDY, f"--workdir={tmp_path}")
        commands.wait_for(lambda before=before: commands.saved(tmp_path) - before)
        process.send_signal(number)
        code, _, stderr = commands.finish(process)
        assert code == wanted and stderr.count("\n") == 1, stderr
        assert re.match("Stopped.* saved in ", stderr) and str(tmp_path) in stderr and "resumes from there" in stderr
    with pytest.raises(UserError, match="--num_train=6000 there, 60 now"):
        conduct(QUESTION, *STUDY, "--num_train=60", f"--workdir={tmp_path}")
    assert_same_in_the_end(tmp_path, undisturbed)


def test_a_changed_source_between_two_blocks_is_refused_and_named(tmp_path):
    """The same command after a change of Oja's rule is refused: its runs would be of two versions."""
    for name in ("ojax", "experiments"):
        shutil.copytree(commands.REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "study"
    small = ("--widths=8", "--learning_rate=1e-2", "--oja_rate=0,1e-3", "--seeds=1", "--num_train=10000", "--epochs=4")
    flags = (*small, "--block_size=1", "--num_test=50", "--evals=1", f"--workdir={folder}")
    process = commands.start(*flags, cwd=tmp_path)
    commands.wait_for(lambda: [*folder.glob("runs/*.json"), *folder.glob("blocks/*.json")])  # The latter in 0.1.0.
    process.kill()
    commands.finish(process)
    changed = tmp_path / Path(inspect.getfile(ojax.oja)).relative_to(commands.REPOSITORY)
    changed.write_text(changed.read_text() + "\nCHANGED = True\n")
    assert_ends_in_one_line(
        commands.run(*flags, cwd=tmp_path), f"another version ({changed.relative_to(tmp_path)})", "--accept_changes"
    )


def test_a_damaged_checkpoint_is_reported_and_the_one_before_taken(undisturbed, tmp_path):
    process = commands.start(*STUDY, f"--workdir={tmp_path}")
    commands.wait_for(lambda: len(commands.saved(tmp_path)) == 2)
    process.kill()
    commands.finish(process)
    newest = max(commands.saved(tmp_path), key=lambda path: int(path.name))
    for path in newest.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-10])
    _, stderr = assert_same_in_the_end(tmp_path, undisturbed)
    assert stderr.startswith("note: ") and f"{newest} is damaged" in stderr and stderr.count("\n") == 1, stderr


def test_a_job_stopped_through_one_process_saves_in_all_and_a_state_that_one_finds_damaged_is_set_aside(
    undisturbed, tmp_path
):
    """It then resumes as a Slurm job, and ends with equal bits."""
    job = commands.start_job(tmp_path, *STUDY)
    commands.wait_for(lambda: len(commands.saved(tmp_path)) == 2)
    job[1].send_signal(signal.SIGTERM)
    for process in job:
        code, _, stderr = commands.finish(process)
        assert code == 143 and "saved in" in stderr, stderr
    newest = max(commands.saved(tmp_path), key=lambda path: int(path.name))
    parts = [path for path in newest.glob("**/ocdbt.process_1/d/*") if path.is_file()]
    assert parts
    for path in parts:  # The other process's files are intact.
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcomes = [commands.finish(process) for process in commands.start_slurm_job(tmp_path, *STUDY)]
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert f"{newest} is damaged (another process cannot read it)" in outcomes[0][2], outcomes
    assert not outcomes[1][2]
    assert_is_of_two_processes(tmp_path, undisturbed)


def test_two_processes_find_what_one_does(undisturbed, tmp_path):
    for process in commands.start_job(tmp_path, *STUDY):
        code, _, stderr = commands.finish(process)
        assert (code, stderr) == (0, ""), stderr
    assert_is_of_two_processes(tmp_path, undisturbed)


def assert_is_of_two_processes(folder, undisturbed):
    assert commands.tables(folder) == undisturbed
    assert len(json.loads((folder / "config.json").read_text())["devices"]) == 2


def fill_disk(process):
    """Limits the file size in place of the disk's space: writing fails at the same point."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**15, 2**15))


def test_a_full_disk_ends_it_in_one_line_and_loses_nothing(undisturbed, tmp_path):
    process = commands.start(*STUDY, f"--workdir={tmp_path}")
    fill_disk(process)
    assert_ends_in_one_line(commands.finish(process), "cannot be written")
    assert_same_in_the_end(tmp_path, undisturbed)


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_disk_of_one_process_ends_all_of_the_job(tmp_path, full):
    job = commands.start_job(tmp_path, *STUDY)
    fill_disk(job[full])
    for process in job:
        code, _, stderr = commands.finish(process)
        assert code == 2 and "cannot be written" in stderr, stderr
    assert not commands.is_saved(tmp_path)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_dies_is_noticed_and_one_process_resumes(undisturbed, tmp_path, lost):
    job = commands.start_job(tmp_path, *STUDY)
    commands.wait_for(lambda: commands.is_saved(tmp_path))
    job[lost].kill()
    died = time.monotonic()
    code, _, stderr = commands.finish(job[1 - lost])
    commands.finish(job[lost])
    assert time.monotonic() - died < 30
    # With process 0 goes JAX's own service, and JAX may be the first to notice.
    by_jax = lost == 0 and code == -signal.SIGABRT and "another task died" in stderr
    assert by_jax or (code == 75 and "another process of this job is gone: start the job again" in stderr), stderr
    if lost == 1:
        assert_same_in_the_end(tmp_path, undisturbed)


def test_a_refusal_reaches_all_processes(tmp_path):
    (tmp_path / "results.csv").write_text("somebody's")
    outcomes = [commands.finish(process) for process in commands.start_job(tmp_path, *STUDY)]
    assert [code for code, _, _ in outcomes] == [2, 2]
    assert "holds results.csv, which no study has written" in outcomes[0][2]


@pytest.mark.parametrize("flag", ["--seed=7", "--tensorboard"])  # With the second one would wait for the other.
def test_processes_with_different_flags_do_not_begin(flag, tmp_path):
    job = commands.start_job(tmp_path, *STUDY, each=([flag], []))
    outcomes = [commands.finish(process) for process in job]
    assert [code for code, _, _ in outcomes] == [2, 2] and "not given the same flags" in outcomes[0][2], outcomes


def test_divergence_is_data(tmp_path):
    """Runs at an absurd rate report when and where they diverged; other runs are not affected."""
    small = ("--widths=12,8", "--oja_rate=0,1e-4", "--seeds=2", "--num_train=300", "--num_test=50", "--evals=3")
    conduct(QUESTION, *small, "--learning_rate=1e-3,3e-3,1e-2", f"--workdir={tmp_path / 'sane'}")
    conduct(QUESTION, *small, "--learning_rate=1e-3,1e30,1e-2", f"--workdir={tmp_path / 'absurd'}")
    sane, absurd = (pd.read_csv(tmp_path / name / "results.csv", dtype=str) for name in ("sane", "absurd"))
    is_absurd = absurd["learning_rate"].astype(float) == 1e30
    others = sane[sane["learning_rate"] != "0.003"]
    pd.testing.assert_frame_equal(others.reset_index(drop=True), absurd[~is_absurd].reset_index(drop=True))
    assert len(others) == 24 and sane["diverged_at"].isna().all() and sane["diverged_layer"].isna().all()
    lost = absurd[is_absurd]
    assert (lost["diverged"] == "True").all()
    assert lost["diverged_at"].astype(int).between(1, 99).all() and lost["diverged_layer"].astype(int).between(1, 3).all()


DROPPED = """
import gc, os, signal, time
from experiments.common import stopping

def interrupt(phase, info):
    if not stopping.asked():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

stopping.watch()
gc.callbacks.append(interrupt)
try:
    gc.collect()
    print("dropped", flush=True)
    time.sleep(30)
except stopping.Stopped:
    stopping.ignore()
    time.sleep(1.5)
    print(stopping.exit_code())
"""


def test_a_stop_that_python_drops_in_a_callback_is_raised_again():
    """After Ctrl-C in the garbage collector's callbacks a study ran to its end, with exit code 0."""
    done = subprocess.run(
        [sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=60, cwd=commands.REPOSITORY
    )
    assert done.stdout.split() == ["dropped", "130"] and "Exception ignored in" in done.stderr
