"""The folder that a study writes: one configuration's and one command's at a time, each file whole or not there.

While a study runs, `blocks/` holds the rows of the blocks of runs that are done, and `checkpoints/` the state of the one
that is not. Both are gone when it is finished.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common.errors import UserError
from ojax import files
from ojax.trees import first_line

if TYPE_CHECKING:  # What takes long to import is imported where it is used: the page of studies needs none of it.
    import pandas as pd

    from experiments.common.flags import Settings

_CONFIG, _SUMMARY, _LOCK = "config.json", "summary.md", ".lock"
_BLOCKS, _CHECKPOINTS = "blocks", "checkpoints"
COMPILED = "compiled"  # What --compile_for has found, before the study or beside it.
# Columns with gaps, which pandas would else read as fractions; the others are what they look like.
_TYPES = {"diverged_at": "Int64", "diverged_layer": "Int64"}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")


class Workdir:
    """A study's folder.

    Args:
      settings: Those of the study.
      experiment: The module of its question.
      code: Digests of the question's own functions that decide the results, by name.
    """

    def __init__(self, settings: Settings, experiment: str, code: Mapping[str, str] | None = None):
        self.path, self._settings, self._experiment = Path(settings["workdir"]), settings, experiment
        self._code = dict(code or {})
        self._began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._lock = -1

    def take(self, dataset: Mapping[str, object]) -> None:
        """Takes the folder for this configuration and these data, before any work that might be lost.

        Raises:
          UserError: If it is a file, cannot be written, is in use, or holds another configuration's results or somebody
            else's files.
        """
        try:
            self._take(dataset)
        except BaseException as error:
            self.release()
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise UserError(f"--workdir={self.path} is not a folder: name a new or an empty one.") from None
            if isinstance(error, OSError):
                raise UserError(f"--workdir={self.path} cannot be used: {error.strerror or error}.") from None
            if isinstance(error, ValueError):  # A NUL in the name.
                raise UserError(f"--workdir={str(self.path)!r} is no name of a folder: {error}.") from None
            raise

    def release(self) -> None:
        """Lets another command have the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def finished(self) -> bool:
        """Whether the study is done: its summary is the last file to be written."""
        return (self.path / _SUMMARY).exists()

    @property
    def weights(self) -> Path:
        """The folder for the final weights."""
        return self.path / "weights"

    def facts(self) -> dict[str, Any]:
        """What its `config.json` says."""
        return self._held()

    def has_blocks(self, name: str) -> bool:
        """Whether blocks have left a table of that name."""
        return any((self.path / _BLOCKS).glob(f"*.{name}.csv"))

    def block_size(self) -> int | None:
        """The size of blocks with which the study was begun, if it was."""
        return self._held().get("block_size")

    def checkpoints(self, block: int) -> Path:
        """The folder for the state of the block of that number."""
        return self.path / _CHECKPOINTS / f"{block:06}"

    def blocks_done(self, block_size: int) -> list[int]:
        """Numbers of the blocks of that size whose rows are here, as they were written."""
        done = []
        for path in sorted((self.path / _BLOCKS).glob("*.json")):
            if self._is_whole(path, block_size):
                done.append(int(path.stem))
            else:
                warnings.warn(f"{path} or its tables are damaged: the block is run again.", stacklevel=2)
        return done

    def write_block(self, block: int, block_size: int, tables: Mapping[str, pd.DataFrame | None]) -> None:
        """Writes the rows of a block, then what marks it as done, and drops its state."""
        digests = {}
        for name, table in tables.items():
            if table is not None:
                with self.replacing(self._table_of(block, name)) as path:
                    table.to_csv(path, index=False)
                    digests[name] = _digest(path)
        self.write_text(f"{_BLOCKS}/{block:06}.json", json.dumps({"block_size": block_size, "sha256": digests}) + "\n")
        shutil.rmtree(self.checkpoints(block), ignore_errors=True)

    def read_blocks(self, name: str, num_blocks: int) -> pd.DataFrame:
        """The rows of all blocks.

        Raises:
          UserError: If one cannot be read.
        """
        import pandas as pd

        tables = []
        for block in range(num_blocks):
            table = self._read(self._table_of(block, name), "run the same command to redo this block")
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def read_table(self, name: str) -> pd.DataFrame | None:
        """A table of a finished study; None if there is none of that name.

        Raises:
          UserError: If it cannot be read.
        """
        return self._read(f"{name}.csv", "remove the folder") if (self.path / f"{name}.csv").exists() else None

    def _read(self, name: str, what_then: str) -> pd.DataFrame:
        import pandas as pd

        path = self.path / name
        try:
            return pd.read_csv(path, dtype=_TYPES, keep_default_na=False, na_values=[""])  # Bit for bit, since 3.1.
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is damaged ({first_line(error)}): {what_then}.") from None

    def drop_parts(self) -> None:
        """Removes what a finished study needs no more."""
        for name in (_BLOCKS, _CHECKPOINTS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for left in self.path.glob("**/.tmp-*"):  # A command that was killed while it wrote.
            left.unlink(missing_ok=True)

    def command(self) -> str:
        """The command that repeats the study."""
        flags = [*self._settings.flags(), f"--workdir={self.path}"]
        if (data_dir := self._settings.get("data_dir")) is not None:
            flags.append(f"--data_dir={data_dir}")
        return " ".join([f"python -m {self._experiment}", *(_quoted(flag) for flag in flags)])

    def write_config(self, **facts: Any) -> None:
        """Writes `config.json`: flags, versions, devices, git revision, and the facts given."""
        import jax

        content = {
            "experiment": self._experiment,
            "flags": self._settings.identity(),
            "code": self._code,
            "workdir": str(self.path),
            "data_dir": self._settings.get("data_dir"),
            "command": self.command(),
            "began": self._began,
            "versions": {"python": platform.python_version()} | _package_versions(),
            "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
            "git_revision": _git_revision(),
            **facts,
        }
        self.write_text(_CONFIG, json.dumps(content, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Writes one text file, whole or not at all."""
        with self.replacing(name) as path:
            path.write_text(text, encoding="utf-8")

    def read_summary(self) -> str:
        """The summary of a finished study."""
        return (self.path / _SUMMARY).read_text(encoding="utf-8")

    def replacing(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """:func:`replacing` for the file of that name in the folder."""
        return replacing(self.path / name)

    def _table_of(self, block: int, name: str) -> str:
        return f"{_BLOCKS}/{block:06}.{name}.csv"

    def _is_whole(self, marker: Path, block_size: int) -> bool:
        """Whether the block so marked is of that size, and its tables are those that were written."""
        try:
            if not re.fullmatch(r"\d{6}", marker.stem, re.ASCII) or not marker.is_file():  # A pipe might never end.
                return False
            held = json.loads(marker.read_text(encoding="utf-8"))
            return (
                held["block_size"] == block_size
                and "results" in held["sha256"]
                and all(
                    _digest(self.path / self._table_of(int(marker.stem), str(name))) == digest
                    for name, digest in held["sha256"].items()
                )
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return False

    def _take(self, dataset: Mapping[str, object]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        held = self._held()
        if not held and any(not entry.name.startswith((".tmp-", _LOCK, COMPILED)) for entry in self.path.iterdir()):
            raise UserError(f"--workdir={self.path} holds files but no {_CONFIG} of ojax: name a new or an empty folder.")
        self._take_lock()
        held = self._held()  # Another command may have had the folder in between.
        if held:
            self._check_same_configuration(held, dataset)
            self._began = str(held.get("began", self._began))
        check_writable(self.path)

    def _take_lock(self) -> None:
        """Holds the folder until it is released or this process ends, however it ends."""
        # Not through a link, which may lead out of the folder.
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = " ".join(os.read(self._lock, 200).decode(errors="replace").split()) or "another process"
            raise UserError(f"--workdir={self.path} is in use by {holder}: wait for it, or name another folder.") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            # Some clusters' file systems are mounted so.
            warnings.warn(f"{self.path} has no file locks: see to it that no second command uses it too.", stacklevel=2)
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def _held(self) -> dict[str, Any]:
        """The `config.json` that is there; empty if there is none."""
        path = self.path / _CONFIG
        if not path.exists():
            return {}
        try:
            if not path.is_file():  # Reading a pipe might never end.
                raise ValueError
            held = json.loads(path.read_text(encoding="utf-8"))
            size = held.get("block_size")
            if not isinstance(held["flags"], dict) or not isinstance(held.get("code", {}), dict):
                raise ValueError
            if not (size is None or (isinstance(size, int) and size >= 1)):
                raise ValueError
            return held | {"experiment": str(held["experiment"])}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{path} is damaged: remove the folder or name another --workdir.") from None

    def _check_same_configuration(self, held: Mapping[str, Any], dataset: Mapping[str, object]) -> None:
        if held["experiment"] != self._experiment:
            raise UserError(f"--workdir={self.path} holds results of {held['experiment']}: name another folder.")
        old, new = dict(held["flags"]), self._settings.identity()
        if self._settings["block_size"] is not None:
            old["block_size"], new["block_size"] = held.get("block_size"), self._settings["block_size"]
        differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if differing:
            changes = ", ".join(f"--{name}={old.get(name)} there, {new.get(name)} now" for name in differing)
            raise UserError(
                f"--workdir={self.path} holds another configuration's results ({changes}): name another folder, or "
                "remove this one."
            )
        code = held.get("code", {})
        if changed := [name for name in sorted(code.keys() | self._code.keys()) if code.get(name) != self._code.get(name)]:
            raise UserError(
                f"--workdir={self.path} holds results of another version of {self._experiment}, whose own "
                f"{' and '.join(changed)} has changed since: name another folder, or remove this one."
            )
        if "dataset" in held and held["dataset"] != dataset:
            raise UserError(
                f"--workdir={self.path} holds results of other data than these of {dataset.get('name')}: name another."
            )


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """As :func:`ojax.files.replacing`, but makes the folder, and raises UserError if the file cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(target) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from None


def check_writable(folder: Path) -> None:
    """Raises UserError if no file can be written into the folder, which is made if it is missing."""
    with replacing(folder / ".tmp-probe") as temporary:
        temporary.touch()
    (folder / ".tmp-probe").unlink(missing_ok=True)


def _digest(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _quoted(flag: str) -> str:
    return flag if all(c.isalnum() or c in "-_=.,/:+" for c in flag) else "'" + flag.replace("'", "'\\''") + "'"


def _package_versions() -> dict[str, str]:
    import ojax

    versions = {"ojax": ojax.__version__}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _git_revision() -> str | None:
    """The commit of this checkout, with `-dirty` for uncommitted changes; None outside of a checkout or without git."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        options: dict[str, Any] = {"cwd": here, "capture_output": True, "text": True, "check": True, "timeout": 10}
        revision = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
        return revision + ("-dirty" if changed else "")
    return None
