"""Connects the processes of one job by JAX's runtime, and runs work in the first process for all."""

import contextlib
import faulthandler
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.common.errors import UserError

# JAX ends a process this long after another's last heartbeat; it notices a closed connection at once.
HEARTBEAT_SECONDS = 30
# A scheduler may start the processes of a job minutes apart.
_START_SECONDS = 300
# "Try again later" of sysexits.h: start the job again, with any number of processes.
TRY_AGAIN = 75


def start(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connects to the other processes of this job, given by flags or found by JAX; call it before JAX is used.

    JAX finds them under Slurm, Open MPI, on Cloud TPU, and in an indexed Job of Kubernetes. A single process needs no
    flags. If another process does not connect within 300 s, JAX aborts this one.

    Raises:
      UserError: If the flags do not fit together, or JAX cannot find the other processes.
    """
    given: dict[str, Any] = {
        "coordinator_address": coordinator_address,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    wanted = any(value is not None for value in given.values())
    if not wanted and not _is_in_a_cluster():
        return
    in_kubernetes = "JOB_COMPLETION_INDEX" in os.environ
    if not wanted and in_kubernetes and importlib.util.find_spec("kubernetes") is None:
        raise UserError(
            "A pod of an indexed Job of Kubernetes needs the flags "
            f"{', '.join(f'--{name}' for name in given)}, or pip install 'jax[k8s]' to ask Kubernetes for the others."
        )
    if num_processes is not None and process_id is not None and process_id >= num_processes:
        raise UserError(f"--process_id={process_id} must be below --num_processes={num_processes}.")
    if coordinator_address is not None and not coordinator_address.rpartition(":")[2].isdecimal():
        raise UserError(f"--coordinator_address={coordinator_address} must be HOST:PORT of process 0.")
    # JAX aborts a process if the first process has ended, with one line of explanation. Python's trace would hide that
    # line.
    faulthandler.disable()
    try:
        # Checkpoints handle errors and SIGTERM here.
        jax.config.update("jax_enable_preemption_service", False)
        with _note_if_long(f"If it does not come, JAX ends this one after {_START_SECONDS} s."):
            jax.distributed.initialize(
                **given,
                # With all flags Kubernetes, which would require permissions, need not be queried.
                cluster_detection_method="deactivate" if in_kubernetes and None not in given.values() else None,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                initialization_timeout=_START_SECONDS,
                shutdown_timeout_seconds=3600,
            )
    except Exception as error:  # Queries to Kubernetes and Google's servers raise other errors.
        if not wanted and "should be defined" in str(error):
            return  # There is no cluster that JAX knows.
        missing = [f"--{name}" for name, value in given.items() if value is None]
        hint = f" Outside of a cluster that JAX knows it needs {', '.join(missing)} too." if wanted and missing else ""
        raise UserError(f"The processes of this job did not find each other ({_reason(error)}).{hint}") from None


def is_first() -> bool:
    """Returns whether this is the process that writes and prints for all."""
    return jax.process_index() == 0


def on_first(work: Callable[[], Any]) -> Any:
    """Does the work in the first process, and returns its result, a JSON value, in all processes.

    Raises:
      UserError: In all processes, if the work raises it.
    """
    if jax.process_count() == 1:
        return work()
    outcome, failure = None, None
    if is_first():
        try:
            outcome = {"result": work()}
        except Exception as error:
            failure = error
            outcome = {"error": str(error) if isinstance(error, UserError) else "The first process of this job has failed."}
    text = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    with waiting():
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
        text = multihost_utils.broadcast_one_to_all(text if is_first() else np.zeros(length, np.uint8))
    if failure is not None:
        raise failure
    outcome = json.loads(np.asarray(text, np.uint8).tobytes())
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["result"]


def in_step(work: Callable[[], Any]) -> Any:
    """Does the work in each process, and raises an error in all processes if it fails in one.

    Raises:
      UserError: If it failed in another process. An error in this process is raised unchanged.
    """
    if jax.process_count() == 1:
        return work()
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    if any_of(failure is not None):
        raise failure or UserError("Another process of this job cannot continue; see its message.")
    return result


def any_of(value: bool) -> bool:
    """Returns whether the value is true in any process."""
    if jax.process_count() == 1:
        return value
    with waiting():
        return bool(multihost_utils.process_allgather(np.array(value)).any())


def have_same(value: Any) -> bool:
    """Returns whether all processes have the same value, a JSON value."""
    text = json.dumps(value)
    return not any_of(on_first(lambda: text) != text)


def waiting() -> contextlib.AbstractContextManager[None]:
    """Prints a note if the body, which needs the other processes, takes long, before JAX ends this process."""
    return _note_if_long(f"If it is dead, JAX ends this one within {HEARTBEAT_SECONDS} s: {LOST}")


@contextlib.contextmanager
def _note_if_long(what_then: str) -> Iterator[None]:
    def say() -> None:
        print(f"note: waiting for another process of this job. {what_then}", file=sys.stderr, flush=True)

    timer = threading.Timer(HEARTBEAT_SECONDS / 2, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


LOST = "start the job again, with any number of processes; it resumes from its last checkpoint."


def leave(code: int) -> NoReturn:
    """Ends this process so that the others notice at once, instead of waiting for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        if is_first():
            time.sleep(1)  # JAX's service ends with this process; the others first get time to print their messages.
        os._exit(code)
    sys.exit(code)


def fail(error: Exception) -> NoReturn:
    """Raises an error that no user can fix; in a job the other processes notice at once."""
    if jax.distributed.is_initialized():
        traceback.print_exception(error)
        leave(1)
    raise error


def _is_in_a_cluster() -> bool:
    """Returns whether to let JAX search for a cluster, which may be slow, or fail e.g. for a notebook in Kubernetes."""
    # A shell in a Slurm allocation is a step of one task; SLURM_NTASKS describes the allocation.
    sizes = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    several = any(size.isdecimal() and int(size) > 1 for size in sizes)
    return several or "JOB_COMPLETION_INDEX" in os.environ or importlib.util.find_spec("libtpu") is not None


def _reason(error: Exception) -> str:
    """Returns an error's message, without JAX's lines of YAML."""
    return (" ".join(str(error).partition("```")[0].split()) or type(error).__name__).rstrip(".:")
