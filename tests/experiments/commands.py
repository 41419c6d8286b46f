"""Experiments as commands in their own processes, to be stopped, killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import ojax

REPOSITORY = Path(__file__).parents[2]
# Two blocks with a second of work and five saved states each.
STUDY = (
    *("--widths=16", "--learning_rate=1e-3,1e-2", "--oja_rate=0,1e-4", "--seeds=4", "--block_size=8"),
    *("--num_train=6000", "--epochs=2", "--num_test=500", "--evals=5", "--checkpoint_every=2000", "--save_weights"),
)
NUM_RUNS = 16
TABLES = ("results.csv", "measures.csv", "summary.md")


def start(*flags, devices=2, environment=types.MappingProxyType({}), **options):
    """Starts a process with `devices` CPU devices, on any machine."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"} | environment
    command = [sys.executable, "-m", "experiments.deep_mlp", *map(str, flags)]
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY, "env": environment}
    return subprocess.Popen(command, **(defaults | options))


def finish(process, timeout=120):
    """Waits for a process; returns its exit code, standard output and standard error."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def run(*flags, **options):
    return finish(start(*flags, **options))


def start_job(folder, *flags, each=((), ()), **options):
    """Starts the processes of one job over loopback, one per item of `each`, which has a process's own flags."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = (*flags, f"--workdir={folder}", f"--coordinator_address=localhost:{port}", f"--num_processes={len(each)}")
    return [start(*shared, *own, f"--process_id={number}", devices=1, **options) for number, own in enumerate(each)]


def start_slurm_job(folder, *flags):
    """Starts two processes that find each other by Slurm's environment variables."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}  # JAX derives a port from the job id.
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    tasks = ({"SLURM_PROCID": number, "SLURM_LOCALID": number} for number in ("0", "1"))
    return [start(*flags, f"--workdir={folder}", devices=1, environment=job | task) for task in tasks]


def wait_for(condition, seconds=60, every=0.02):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(every)


def wait_for_work(process, folder):
    """Waits until the process has locked its folder, or ended."""
    lock = Path(folder) / ".lock"
    wait_for(lambda: process.poll() is not None or (lock.exists() and f" {process.pid} " in lock.read_text()))


def saved(folder):
    """Returns the complete checkpoints of the unfinished block."""
    return {path for path in Path(folder).glob("checkpoints/*/*") if path.name.isdecimal()}


def is_saved(folder):
    return bool(saved(folder))


def tables(folder):
    """Returns the bytes of a study's results without its folder's name, and the weights of some runs if saved."""
    found = {name: (Path(folder) / name) for name in TABLES}
    contents = {
        name: path.read_bytes().replace(str(folder).encode(), b"FOLDER") for name, path in found.items() if path.exists()
    }
    if (Path(folder) / "weights").exists():
        for run in (0, NUM_RUNS // 2, NUM_RUNS - 1):  # From both blocks.
            contents[f"run {run}"] = {
                path: array.tobytes() for path, array in ojax.load_weights(folder, run).params.items()
            }
    return contents


def kill_at(stage, folder, *flags):
    """Kills the study at a stage; returns the stage that was hit, which may be another if the stage was short."""
    log = Path(folder).with_suffix(".log")
    with log.open("w") as file:
        process = start(*STUDY, *flags, f"--workdir={folder}", stdout=file)
    reached = {
        "compile": lambda: "compiling" in log.read_text(),
        "train": lambda: "of all samples" in log.read_text(),
        "save": lambda: "of all samples" in log.read_text() and half_written(folder),
    }[stage]
    wait_for(lambda: process.poll() is not None or reached(), every=0.001)
    process.kill()
    _, _, stderr = finish(process)
    assert process.returncode == -signal.SIGKILL, stderr
    return stage_of(folder, log.read_text())


def kill_until_finished(folder, rng, most=1000, num_processes=1):
    """Kills a process of the study at random moments until it finishes; returns the stages that were hit.

    Every second time the cache of compiled programs is not used, so that kills hit the compiler too.
    """
    stages, log = [], Path(folder).with_suffix(".log")
    while True:
        flags = (*STUDY, "--checkpoint_every=0.5s", *(("--compilation_cache=none",) if len(stages) % 2 else ()))
        with log.open("w") as file:
            if num_processes == 1:
                job = [start(*flags, f"--workdir={folder}", stdout=file)]
            else:
                job = start_job(folder, *flags, each=[()] * num_processes, stdout=file)
        victim = None
        if len(stages) < most:
            wait_for_work(job[0], folder)  # So that no kill is spent on the interpreter's start.
            time.sleep(rng.uniform(0.0, 5.0 * num_processes))  # They share the cores.
            victim = rng.choice(job)
            victim.send_signal(signal.SIGKILL)
        outcomes = [finish(process) for process in job]
        if outcomes[0][0] == 0:
            return stages
        for process, (code, _, stderr) in zip(job, outcomes, strict=True):
            # The other processes exit with "try again", or JAX aborts them.
            allowed = (-signal.SIGKILL,) if process is victim else (75, -signal.SIGABRT)
            assert code in allowed, (code, stderr)
        stages.append(stage_of(folder, log.read_text()))


def half_written(folder):
    """Returns whether a state or a table is being written, or was when its writer was killed."""
    # Unlike Path.rglob, os.walk tolerates folders that appear and disappear.
    names = [name for _, folders, files in os.walk(folder) for name in (*folders, *files)]
    return any("orbax-checkpoint-tmp" in name or name.startswith(".tmp-") for name in names)


def stage_of(folder, printed):
    """Returns the stage of a killed process, from its output and its files."""
    if half_written(folder):
        return "save"
    if "of all samples" in printed:
        return "train"
    return "compile" if "compiling" in printed else "start"
