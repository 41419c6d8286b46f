"""Experiments as commands in processes of their own, to be stopped, killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# Three blocks, a few seconds of work in each process, and a state saved twice a second.
STUDY = (
    *("--widths=16", "--learning_rate=1e-3,1e-2", "--oja_rate=0,1e-4", "--seeds=6", "--block_size=8"),
    *("--num_train=10000", "--epochs=2", "--num_test=500", "--evals=5", "--checkpoint_every=0.5s"),
)
TABLES = ("results.csv", "measures.csv", "summary.md")


def start(*flags, devices=2, environment=types.MappingProxyType({}), **options):
    """A process with that many CPU devices, whatever the machine has."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"} | environment
    command = [sys.executable, "-m", "experiments.deep_mlp", *map(str, flags)]
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY, "env": environment}
    return subprocess.Popen(command, **(usual | options))


def finish(process, timeout=120):
    """Its exit code, standard output and standard error."""
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def run(*flags, **options):
    return finish(start(*flags, **options))


def start_job(folder, *flags, each=((), ())):
    """Processes of one job over loopback, as many as there are flags of each alone."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    shared = (*flags, f"--workdir={folder}", f"--coordinator_address=localhost:{port}", f"--num_processes={len(each)}")
    return [start(*shared, *own, f"--process_id={number}", devices=1) for number, own in enumerate(each)]


def start_slurm_job(folder, *flags):
    """Two processes that find each other by what Slurm tells them."""
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"}  # JAX makes a port of the former.
    job |= {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}
    tasks = ({"SLURM_PROCID": number, "SLURM_LOCALID": number} for number in ("0", "1"))
    return [start(*flags, f"--workdir={folder}", devices=1, environment=job | task) for task in tasks]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def wait_for_work(process, folder):
    """Until the process has taken its folder, or ended."""
    lock = Path(folder) / ".lock"
    wait_for(lambda: process.poll() is not None or (lock.exists() and f" {process.pid} " in lock.read_text()))


def saved(folder):
    """The whole checkpoints of the block that is not done."""
    return {path for path in Path(folder).glob("checkpoints/*/*") if path.name.isdecimal()}


def is_saved(folder):
    return bool(saved(folder))


def tables(folder):
    """The bytes of what a study found, but for the name of its folder."""
    found = {name: (Path(folder) / name) for name in TABLES}
    return {
        name: path.read_bytes().replace(str(folder).encode(), b"FOLDER") for name, path in found.items() if path.exists()
    }


def kill_until_finished(folder, dice, most=1000, num_processes=1):
    """Kills a process of the study at random moments, until it ends by itself; what stood on disk at each kill."""
    stages = []
    while True:
        if num_processes == 1:
            job = [start(*STUDY, f"--workdir={folder}")]
        else:
            job = start_job(folder, *STUDY, each=[()] * num_processes)
        victim = None
        if len(stages) < most:
            wait_for_work(job[0], folder)  # So that no kill is spent on the interpreter's start.
            time.sleep(dice.uniform(0.0, 7.0 * num_processes))  # They share the cores.
            victim = dice.choice(job)
            victim.send_signal(signal.SIGKILL)
        outcomes = [finish(process) for process in job]
        if outcomes[0][0] == 0:
            return stages
        for process, (code, _, stderr) in zip(job, outcomes, strict=True):
            # The others ask to be started again, or are ended by JAX itself.
            allowed = (-signal.SIGKILL,) if process is victim else (75, -signal.SIGABRT)
            assert code in allowed, (code, stderr)
        stages.append(_stage(Path(folder)))


def _stage(folder):
    blocks = len(list(folder.glob("blocks/*.json")))
    states = sorted(int(path.name) for path in saved(folder))
    saving = any("orbax" in path.name or path.name.startswith(".tmp-") for path in folder.rglob("*"))
    return f"{blocks} blocks done, states at {states}" + (", a file half written" if saving else "")
