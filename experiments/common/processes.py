"""The processes of one job, by JAX's own runtime: how they find each other, and what the first one does for all."""

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

# JAX ends a process so long after the last sign of life of another; a closed connection is noticed at once.
HEARTBEAT_SECONDS = 30
# A scheduler may start the processes of a job minutes apart.
_START_SECONDS = 300
# "Try again later" of sysexits.h: the job is to be started again, with the processes that there are then.
TRY_AGAIN = 75


def start(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of this job, before JAX is used: those of the flags, or those that JAX finds by itself.

    It finds them under Slurm, Open MPI, on Cloud TPU, and in an indexed Job of Kubernetes. On its own a process needs
    nothing of it. Where another does not come within 300 s, JAX itself aborts this one.

    Raises:
      UserError: If the flags do not go together, or JAX cannot tell where the others are.
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
    # JAX aborts a process whose first one is gone. Its own line says why; Python's trace below would bury it.
    faulthandler.disable()
    try:
        # Recovering from errors is ours, by checkpoints; so is SIGTERM.
        jax.config.update("jax_enable_preemption_service", False)
        with _note_if_long(f"If it does not come, JAX ends this one after {_START_SECONDS} s."):
            jax.distributed.initialize(
                **given,
                # With all flags there is nothing to ask Kubernetes for, which would want rights for it.
                cluster_detection_method="deactivate" if in_kubernetes and None not in given.values() else None,
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                initialization_timeout=_START_SECONDS,
                shutdown_timeout_seconds=3600,
            )
    except Exception as error:  # What asks Kubernetes and Google's servers raises errors of its own.
        if not wanted and "should be defined" in str(error):
            return  # No cluster that JAX knows.
        missing = [f"--{name}" for name, value in given.items() if value is None]
        hint = f" Outside of a cluster that JAX knows it needs {', '.join(missing)} too." if wanted and missing else ""
        raise UserError(f"The processes of this job did not find each other ({_reason(error)}).{hint}") from None


def is_first() -> bool:
    """Whether this is the process that writes and speaks for all."""
    return jax.process_index() == 0


def on_first(work: Callable[[], Any]) -> Any:
    """Does the work in the first process, and returns its result (anything that JSON can hold) in all.

    Raises:
      UserError: If the work did, in all processes.
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
    """Does the work in each process, and goes on only if it went well in all.

    Raises:
      UserError: If it failed in another process; what it raised here is raised as it is.
    """
    if jax.process_count() == 1:
        return work()
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    if any_of(failure is not None):
        raise failure or UserError("Another process of this job cannot go on; see its message.")
    return result


def any_of(value: bool) -> bool:
    """Whether it is true in any process."""
    if jax.process_count() == 1:
        return value
    with waiting():
        return bool(multihost_utils.process_allgather(np.array(value)).any())


def have_same(value: Any) -> bool:
    """Whether all processes have the same value, which is anything that JSON can hold."""
    text = json.dumps(value)
    return not any_of(on_first(lambda: text) != text)


def waiting() -> contextlib.AbstractContextManager[None]:
    """Around what needs the other processes: says so where that takes long, before JAX ends this process."""
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


LOST = "start the job again, with any number of processes, and it goes on from its last checkpoint."


def leave(code: int) -> NoReturn:
    """Ends this process so that the others notice at once, instead of waiting for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        if is_first():
            time.sleep(1)  # With this process goes JAX's service; the others shall say what they have to say before.
        os._exit(code)
    sys.exit(code)


def fail(error: Exception) -> NoReturn:
    """Raises what no user can mend; in a job the others then notice at once."""
    if jax.distributed.is_initialized():
        traceback.print_exception(error)
        leave(1)
    raise error


def _is_in_a_cluster() -> bool:
    """Whether to ask JAX, which may take a while, or fail where a notebook runs in Kubernetes, say."""
    # A shell in an allocation of Slurm's is a step of one task, whatever SLURM_NTASKS says of the allocation.
    sizes = (os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    several = any(size.isdecimal() and int(size) > 1 for size in sizes)
    return several or "JOB_COMPLETION_INDEX" in os.environ or importlib.util.find_spec("libtpu") is not None


def _reason(error: Exception) -> str:
    """The message, without the lines of YAML that JAX advises."""
    return (" ".join(str(error).partition("```")[0].split()) or type(error).__name__).rstrip(".:")
