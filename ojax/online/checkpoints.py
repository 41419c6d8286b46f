"""Saves the state of a training to disk in the background, verifies it on load, and resumes from it."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from ojax import _compat
from ojax.files import replacing
from ojax.online.checksums import checksum, num_differing, with_keys, without_keys
from ojax.paths import local
from ojax.trees import first_line

_IDENTITY = "identity.json"


class Interrupted(Exception):  # noqa: N818 - nothing went wrong.
    """The training was asked to stop, and its state is saved."""


class CheckpointError(OSError):
    """A checkpoint cannot be written; the message is one line with the reason. Earlier checkpoints are untouched."""


class Checkpoints:
    """A folder with the last few states of one training, for :func:`ojax.online.train`.

    Orbax writes states in the background and atomically. All processes of a job must make the same calls and share the
    folder. A state can be read with any number of processes and devices.

    Args:
      folder: Directory of the checkpoints; created if missing.
      every_samples: Number of samples per run between saves.
      every_seconds: Seconds between saves, by the first process's clock; 120 if neither is given.
      keep: Number of states to keep; with 2, training can resume from the previous state if the newest is damaged.
      stop: Called about once per second. If it returns True in any process, the state is saved and :class:`Interrupted` is
        raised in all processes.

    Raises:
      ValueError: If `keep` is less than one, or an interval is not above 0.
      CheckpointError: If the folder cannot be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        every_samples: int | None = None,
        every_seconds: float | None = None,
        keep: int = 2,
        stop: Callable[[], bool] = lambda: False,
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}.")
        if every_samples is None and every_seconds is None:
            every_seconds = 120.0
        for name, value in (("every_samples", every_samples), ("every_seconds", every_seconds)):
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        self._folder, self._keep = local(folder).absolute(), keep
        self._every_samples, self._every_seconds, self._stop = every_samples, every_seconds, stop
        # Orbax's CheckpointManager is not used, although it keeps the last states and removes half-written ones: its
        # processes wait for one another at each save and deletion, they do not agree if one of them fails, and its list of
        # states keeps a state that was moved aside. Weights hardly compress, and trying to takes longer than writing them.
        self._writer = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        # Each process reads alone: a reader that waited for the others would hang if only one found damage.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        self._reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._drop(f"*{ocp.utils.TMP_DIR_SUFFIX}*")  # Left by a process that was killed while writing.
        except OSError as error:
            raise CheckpointError(f"Checkpoints cannot be kept in {self._folder}: {_reason(error)}.") from None
        self._waiter = concurrent.futures.ThreadPoolExecutor(1)
        self._guard = contextlib.ExitStack()  # Guards Orbax's event loops.
        self._written: concurrent.futures.Future | None = None  # The pending write.
        self._saved_seen, self._saved_at = 0, time.monotonic()
        self._claimed = 0  # Of the identity, once there is one.

    def __enter__(self) -> "Checkpoints":
        self._guard.enter_context(_compat.ending_what_orbax_begins())
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._await_written()
            except CheckpointError as error:  # Training has finished, so the checkpoint is no longer needed.
                warnings.warn(str(error), stacklevel=2)
        if kind is None or not issubclass(kind, CheckpointError):  # Else close could wait for a process that has ended.
            with contextlib.suppress(Exception):
                self._writer.close()
        self._waiter.shutdown(wait=False)
        self._guard.close()

    def claim(self, identity: Mapping[str, str]) -> None:
        """Takes the folder for one training.

        Args:
          identity: Short strings by name that identify the training: its plan, runs and data.

        Raises:
          ValueError: In all processes, if the folder holds states of another training.
        """
        path, names = self._folder / _IDENTITY, sorted(identity)
        text = json.dumps(dict(identity), sort_keys=True)
        self._claimed = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        differing = 0
        if jax.process_index() == 0:
            try:
                held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and self._steps() else {}
                known = held or identity
                differing = sum(1 << i for i, name in enumerate(names) if known.get(name) != identity[name])
            except (OSError, ValueError, AttributeError, RecursionError):
                differing = 0  # Damaged; states of another training have another checksum.
            if not differing:
                # If nothing can be written, saving a state will raise the error.
                with contextlib.suppress(OSError), replacing(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
        differing = int(multihost_utils.broadcast_one_to_all(np.int32(differing)))
        if differing:
            changed = ", ".join(name for i, name in enumerate(names) if differing >> i & 1)
            raise ValueError(
                f"{self._folder} holds checkpoints of another training, which differs in its {changed}: name another "
                "folder, or remove this one."
            )

    def next_save(self) -> int:
        """Returns the count of samples of the next save; a very large number if saves are timed in seconds."""
        return 2**31 - 1 if self._every_samples is None else self._saved_seen + self._every_samples

    def update(self, seen: int, state: PyTree, runs: PyTree = ()) -> None:
        """Saves the state, with its count of samples seen, if a save is due.

        Args:
          seen: The count of samples seen.
          state: Arrays with a leading axis `runs`.
          runs: Arrays that identify the runs, with a leading axis `runs`; only their checksum is saved.

        Raises:
          Interrupted: If `stop` returned True; the state is then on disk.
          CheckpointError: In all processes, if this state or the previous one cannot be written.
        """
        due = self._every_samples is not None and seen - self._saved_seen >= self._every_samples
        due |= self._every_seconds is not None and time.monotonic() - self._saved_at >= self._every_seconds
        self._is_written()
        stop, due = _in_any(self._stop(), due and jax.process_index() == 0)
        if stop or due:
            self._await_written()
            self._save(seen, state, runs)
        if stop:
            self._await_written()
            raise Interrupted(f"Stopped after {seen} samples of each run; their state is saved in {self._folder}.")

    def _save(self, seen: int, state: PyTree, runs: PyTree) -> None:
        # A copy, since the next step overwrites the state during the write.
        state = without_keys(state)
        content = {"state": jax.tree.map(jnp.copy, state), "checksum": checksum((state, runs), self._seal(seen))}
        try:
            self._writer.save(self._folder / str(seen), args=ocp.args.PyTreeSave(content))
        except Exception as error:  # Orbax and TensorStore have no common error.
            in_a_job = jax.process_count() > 1 and not isinstance(error, OSError)
            if in_a_job or isinstance(error, jax.errors.JaxRuntimeError):
                raise  # Another process has ended, or memory is exhausted.
            raise self._failure(_reason(error)) from None
        self._written = self._waiter.submit(self._writer.wait_until_finished)
        self._saved_seen, self._saved_at = seen, time.monotonic()

    def _seal(self, seen: int) -> np.uint32:
        """Returns what a state's checksum starts from: states of another count or another training have another one."""
        return np.uint32(seen ^ self._claimed)

    def _is_written(self) -> bool:
        """Returns whether the last state is on disk, equally in all processes, without blocking."""
        if self._written is None:
            return True
        is_done = self._written.done()
        error = self._written.exception() if is_done else None
        failed, unfinished = _in_any(error is not None, not is_done)
        if failed or not unfinished:
            self._written = None
        if failed:
            raise self._failure("see the message of another process" if error is None else _reason(error))
        if not unfinished and jax.process_index() == 0:
            for seen in self._steps()[: -self._keep]:
                self._drop(str(seen))
        return not unfinished

    def _await_written(self) -> None:
        while not self._is_written():
            time.sleep(0.02)

    def _failure(self, reason: str) -> CheckpointError:
        return CheckpointError(f"A checkpoint cannot be written to {self._folder}: {reason}.")

    def restore(self, like: PyTree, num_runs: int, runs: PyTree = ()) -> tuple[int, PyTree] | None:
        """Returns the newest intact state of these runs and its count of samples seen; None if there is none.

        If a state is damaged it warns, moves the state aside, and tries the previous one.

        Args:
          like: Arrays with the wanted shapes, types and shardings. The leading axis `runs` may be padded to another length
            than in the saved state, if the number of devices differs.
          num_runs: Number of runs on that axis without the padding.
          runs: As given to :meth:`update`.

        Raises:
          CheckpointError: If a damaged state cannot be moved.
        """
        if self._newest() < 0:
            return None  # At the start no checksum has to be compiled.
        original, like = like, without_keys(like)
        arguments = jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(
                dtype=leaf.dtype, sharding=leaf.sharding, global_shape=leaf.shape, strict=False
            ),
            {"state": like, "checksum": checksum((like, runs), np.uint32(0))},
        )
        while (seen := self._newest()) >= 0:
            found, reason = self._read(seen, arguments)
            # Each process reads its own part, so only one may find damage; all must continue from the same state.
            (damaged,) = _in_any(reason is not None)
            if damaged:
                reason = reason or "another process cannot read it"
            elif num_differing(found["checksum"], checksum((found["state"], runs), self._seal(seen)), num_runs):
                reason = "its checksum is wrong"
            if reason is None:
                self._saved_seen, self._saved_at = seen, time.monotonic()
                return seen, with_keys(found["state"], original)
            warnings.warn(f"The checkpoint {self._folder / str(seen)} is damaged ({reason}).", stacklevel=2)
            self._set_aside(seen)
        return None

    def _newest(self) -> int:
        """Returns the count of samples of the newest state; -1 if there is none."""
        # The first process lists the folder; on a shared file system the others may lag behind.
        return int(multihost_utils.broadcast_one_to_all(np.int32(max(self._steps(), default=-1))))

    def _read(self, seen: int, arguments: PyTree) -> tuple[Any, str | None]:
        """Returns this process's part of a state, or the reason why it cannot be read."""
        path = self._folder / str(seen)
        try:
            if not all(part.is_file() or part.is_dir() for part in path.rglob("*")):
                raise ValueError("it contains something that is not a regular file")  # Reading a pipe might never end.
            wanted = ocp.args.PyTreeRestore(arguments, restore_args=arguments)
            return self._reader.restore(path, args=wanted), None
        except Exception as error:  # A damaged file can raise almost any error.
            return None, _reason(error)

    def _set_aside(self, seen: int) -> None:
        if jax.process_index() == 0:
            path = self._folder / str(seen)
            try:
                os.replace(path, self._folder / f"damaged-{seen}-{time.time_ns()}")
            except OSError as error:
                raise CheckpointError(f"The damaged {path} cannot be moved: {error.strerror}.") from None

    def _steps(self) -> list[int]:
        """Returns the counts of samples of the stored states; Orbax names a folder only once it is complete."""
        names = (path.name for path in self._folder.glob("*"))
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name) and int(name) < 2**31)

    def _drop(self, pattern: str) -> None:
        if jax.process_index() == 0:
            for path in self._folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)


def _in_any(*here: bool) -> tuple[bool, ...]:
    """Returns for each flag whether it is set in at least one process."""
    return tuple(bool(found) for found in multihost_utils.process_allgather(np.array(here)).any(axis=0))


def _reason(error: BaseException) -> str:
    """Returns an error's reason, without the details that Orbax and TensorStore append."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = re.sub(r" *\[\w+='.*|\. See full TensorStore details: .*", "", first_line(error))
    # TensorStore's errors begin with a code, `NOT_FOUND: `, and end with the reason. All other lines are reasons.
    return (line.rpartition(": ")[2] if re.match("[A-Z_]+: ", line) else line).rstrip(".:")
