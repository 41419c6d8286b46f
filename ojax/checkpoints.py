"""The state of a training on disk: saved beside the work, checked when it is read, and found again after any stop."""

import gc
import os
import re
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Array, Int, PyTree, UInt32


_ITEM = "runs"  # The one thing in a checkpoint, and the name of its folder there.


class Interrupted(Exception):  # noqa: N818 - nothing went wrong.
    """The training was asked to stop, and its state is saved."""


class CheckpointError(OSError):
    """A checkpoint cannot be written; the message is one line that says why. What was saved before is untouched."""


class Checkpoints:
    """A folder with the last few states of one training, for :func:`ojax.online.train`.

    States are written by orbax in the background, each whole or not at all. All processes of a job make the same calls,
    and the folder is one that all of them see. A state is read by any number of processes and devices.

    Args:
      folder: Where they are; made if it is not there.
      every_samples: Save whenever each run has seen so many samples more.
      every_seconds: Save whenever so many seconds have passed since the last time; of several processes, on the first.
      keep: Number of states that are kept; with two, a damaged one leaves the one before.
      stop: Asked about once a second; when it returns True in any process, the state is saved and
        :class:`Interrupted` raised in all.

    Raises:
      ValueError: If `keep` is less than one.
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
        self._folder = Path(folder).absolute()
        self._every_samples, self._every_seconds, self._stop = every_samples, every_seconds, stop
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, single_host_load_and_broadcast=jax.process_count() > 1
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Weights hardly compress, and trying to takes longer than writing them.
            handler = ocp.PyTreeCheckpointHandler(use_compression=False)
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers={_ITEM: handler})
        except (OSError, ValueError) as error:
            raise CheckpointError(f"Checkpoints cannot be kept in {self._folder}: {_reason(error)}.") from None
        # The manager's own reading waits for all processes, and for ever where one alone finds a damaged file.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        self._reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(), multiprocessing_options=alone)
        self._saved_seen, self._saved_at = 0, time.monotonic()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._manager.close()  # It waits for what is being saved.
        except Exception as error:  # Orbax and TensorStore have no common error.
            if kind is None:  # All is learned, so the state is of no more use.
                warnings.warn(f"A checkpoint could not be written to {self._folder} ({_reason(error)}).", stacklevel=2)

    def next_save(self) -> int:
        """The count of samples at which to save next; very large where it is seconds that count."""
        return 2**31 - 1 if self._every_samples is None else self._saved_seen + self._every_samples

    def update(self, seen: int, state: PyTree) -> None:
        """Saves the state, with its count of samples seen, if it is time to.

        Raises:
          Interrupted: If it was asked to stop; then the state is saved at any rate, and on disk.
          CheckpointError: If this state, or one whose saving had begun before, cannot be written.
        """
        due = self._every_samples is not None and seen - self._saved_seen >= self._every_samples
        due |= self._every_seconds is not None and time.monotonic() - self._saved_at >= self._every_seconds
        stop, due = _agreed(self._stop(), due)
        if stop or due:
            try:
                # A copy, since the next step overwrites the state while this is being written.
                content = {"state": jax.tree.map(jnp.copy, state), "checksum": _checksum(state)}
                self._manager.save(seen, args=ocp.args.Composite(**{_ITEM: ocp.args.PyTreeSave(content)}))
                if stop:
                    self._manager.wait_until_finished()
            except Exception as error:  # Orbax and TensorStore have no common error.
                raise CheckpointError(f"A checkpoint cannot be written to {self._folder}: {_reason(error)}.") from None
            self._saved_seen, self._saved_at = seen, time.monotonic()
        if stop:
            raise Interrupted(f"Stopped after {seen} samples of each run; their state is saved in {self._folder}.")

    def restore(self, like: PyTree, num_runs: int) -> tuple[int, PyTree] | None:
        """The newest state that is whole, and its count of samples seen; None if there is none.

        A damaged one is warned of, moved aside, and the one before taken.

        Args:
          like: Arrays of the shapes, types and shardings wanted; on other numbers of devices the leading axis `runs` may
            have been filled up to another length.
          num_runs: Number of runs on that axis that count.
        """
        arguments = jax.tree.map(
            lambda leaf: ocp.ArrayRestoreArgs(
                dtype=leaf.dtype, sharding=leaf.sharding, global_shape=leaf.shape, strict=False
            ),
            {"state": like, "checksum": _checksum(like)},
        )
        for seen in sorted(self._manager.all_steps(), reverse=True):
            found, reason = self._read(seen, arguments)
            # Each process reads its own part, so one alone may find it damaged; all go on with the same.
            (damaged,) = _agreed(reason is not None)
            if damaged:
                reason = reason or "another process cannot read it"
            elif _differing(found["checksum"], _checksum(found["state"]), num_runs):
                reason = "its checksum is wrong"
            if reason is None:
                self._saved_seen, self._saved_at = seen, time.monotonic()
                return seen, found["state"]
            warnings.warn(f"The checkpoint {self._folder / str(seen)} is damaged ({reason}).", stacklevel=2)
            self._set_aside(seen)
        return None

    def _read(self, seen: int, arguments: PyTree) -> tuple[Any, str | None]:
        """This process's part of that state, or why it cannot be read; the other processes are not waited for."""
        try:
            wanted = ocp.args.PyTreeRestore(arguments, restore_args=arguments)
            return self._reader.restore(self._folder / str(seen) / _ITEM, args=wanted), None
        except Exception as error:  # What a damaged file raises depends on where it is damaged.
            reason = _reason(error)
        _drop_unfinished_reads()
        return None, reason

    def _set_aside(self, seen: int) -> None:
        try:
            if jax.process_index() == 0:
                os.replace(self._folder / str(seen), self._folder / f"damaged-{seen}-{time.time_ns()}")
        except OSError as error:
            raise CheckpointError(f"The damaged {self._folder / str(seen)} cannot be moved: {error.strerror}.") from None
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("ojax damaged checkpoint")
        self._manager.reload()


@jax.jit
def _checksum(state: PyTree) -> UInt32[Array, "runs"]:
    """One number a run that changes with any one word of its state; computed where the state is, in one pass."""

    def of_leaf(leaf: Array) -> Array:
        if leaf.dtype == bool:
            leaf = leaf.astype(jnp.uint8)
        words = lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")).astype(jnp.uint32)
        words = words.reshape(len(leaf), -1)
        # Odd factors have inverses modulo 2^32, so no change of a single word can go unseen.
        return jnp.sum(words * (2 * lax.broadcasted_iota(jnp.uint32, words.shape, 1) + 1), axis=1, dtype=jnp.uint32)

    sums = [of_leaf(leaf) for leaf in jax.tree.leaves(state)]
    return sum((np.uint32(pow(31, index, 2**32)) * value for index, value in enumerate(sums)), start=jnp.uint32(0))


@partial(jax.jit, static_argnums=2)
def _differing(saved: Array, computed: Array, num_runs: int) -> Int[Array, ""]:
    return jnp.sum((saved != computed) & (jnp.arange(len(saved)) < num_runs))


def _agreed(*wanted: bool) -> tuple[bool, ...]:
    """Whether any process wants the first (to stop), and whether the first process wants the others."""
    if jax.process_count() == 1:
        return wanted
    stop, *others = multihost_utils.process_allgather(np.array(wanted)).T
    return (bool(stop.any()), *(bool(other[0]) for other in others))


def _drop_unfinished_reads() -> None:
    """Orbax's, of the other files of a damaged checkpoint, which would complain whenever they are collected."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.collect()
    sys.unraisablehook = hook


def _reason(error: Any) -> str:
    """What is wrong, without the path that TensorStore took to it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r" *\[\w+='.*", "", line).rpartition(": ")[2].rstrip(".")
