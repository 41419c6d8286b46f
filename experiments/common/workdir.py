"""A study's folder: one identity, locked by one command, atomic writes.

- `identity.json`: the identity of its runs, and the versions that trained them.
- `runs/`: the rows of all finished runs, see :mod:`experiments.common.store`; `weights/`: their weights, if saved.
- `checkpoints/`: the states of unfinished runs.
- `results.csv`, `measures.csv`, `runs.csv`, `config.json`, `figures/`, `summary.md`: for the grid of the last command.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import itertools
import json
import os
import socket
import subprocess
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.common import identity
from experiments.common.errors import UserError
from experiments.common.files import check_writable, read_json, write_text
from experiments.common.store import Store
from ojax.files import is_temporary

if TYPE_CHECKING:
    from experiments.common.flags import Settings

IDENTITY, _CONFIG, SUMMARY, _LOCK = "identity.json", "config.json", "summary.md", ".lock"
_FOLDERS = ("runs", "checkpoints", "weights", "figures", "tensorboard")
_OURS = (_CONFIG, SUMMARY, "results.csv", "measures.csv", "runs.csv", *_FOLDERS)
_IS_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


class Workdir:
    """A study's folder.

    Args:
      settings: The study's settings.
      experiment: The module of its question.

    Attributes:
      path: The folder.
      store: Its runs.
      version: The number of this command's version, from 1.
      read_only: Whether the folder cannot be written.
    """

    def __init__(self, settings: Settings, experiment: str):
        self.path, self._settings, self._experiment = Path(settings["workdir"]), settings, experiment
        self.store = Store(self.path)
        self._identity: dict[str, Any] = {}
        self._mine: dict[str, Any] = {}
        self._lock = -1
        self.version = 1
        self.read_only = False

    def take(self, mine: Mapping[str, Any]) -> int:
        """Locks the folder for runs of an identity, before any work that might be lost.

        A folder that cannot be written, but holds runs of this identity, is opened for reading.

        Args:
          mine: The identity, see :func:`experiments.common.identity.of`.

        Returns:
          The number of its version, from 1.

        Raises:
          UserError: If it is a file, cannot be written, is in use, or holds runs of another identity or other files.
        """
        try:
            return self._take(mine)
        except BaseException as error:
            self.release()
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise UserError(f"--workdir={self.path} is not a folder: name a new or an empty one.") from None
            if isinstance(error, OSError):
                raise UserError(f"--workdir={self.path} cannot be used: {error.strerror or error}.") from None
            if isinstance(error, ValueError):  # A NUL in the name.
                raise UserError(f"--workdir={str(self.path)!r} is not the name of a folder: {error}.") from None
            raise

    def release(self) -> None:
        """Unlocks the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def begin(self) -> None:
        """Adds this version to the folder's versions, before training.

        Raises:
          UserError: If the folder cannot be written.
        """
        if self.read_only:
            raise UserError(f"--workdir={self.path} cannot be written, and does not hold all that is asked for.")
        if self.version > len(self.versions()):
            self.versions().append(self._mine | {"git_revision": _git_revision()})
            write_text(self.path / IDENTITY, json.dumps(self._identity, indent=1) + "\n")

    def versions(self) -> list[dict[str, Any]]:
        """Returns the versions that trained the folder's runs, from number 1 on."""
        return self._identity["versions"]

    @property
    def finished(self) -> bool:
        """Whether there is a summary, from the last finished command."""
        return (self.path / SUMMARY).is_file()

    def facts(self) -> dict[str, Any]:
        """Returns the content of `config.json`; empty if missing or damaged. Raises UserError if it cannot be read."""
        return read_json(self.path / _CONFIG, {"report": dict, "finished": str}) or {}

    def tidy(self) -> None:
        """Removes temporary files of killed commands."""
        below = itertools.chain(*((self.path / name).rglob("*") for name in _FOLDERS))
        for path in [path for path in (*self.path.iterdir(), *below) if is_temporary(path.name)]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (self.path / "checkpoints").rmdir()  # If it is empty.

    def command(self) -> str:
        """Returns the command that repeats the study."""
        flags = [*self._settings.flags(), f"--workdir={self.path}"]
        places = {name: self._settings.get(name) for name in ("data_dir", "found")}
        flags += [f"--{name}={place}" for name, place in places.items() if place is not None]
        return " ".join([f"python -m {self._experiment}", *(_quoted(flag) for flag in flags)])

    def write_config(self, **facts: Any) -> None:
        """Writes `config.json`: flags, devices, the newest version of the runs, and the facts given."""
        import jax

        import ojax

        newest = self.versions()[: max(map(int, facts["runs_by_version"]))][-1]
        content = {
            "experiment": self._experiment,
            "flags": self._settings.deciding(),
            "workdir": str(self.path),
            "data_dir": self._settings.get("data_dir"),
            "command": self.command(),
            "finished": self.facts().get("finished") or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": {"ojax": ojax.__version__} | newest["packages"],
            "devices": [f"{device.platform}:{device.device_kind}" for device in jax.devices()],
            "git_revision": newest.get("git_revision"),
            **facts,
        }
        write_text(self.path / _CONFIG, json.dumps(content, indent=2) + "\n")

    def _take(self, mine: Mapping[str, Any]) -> int:
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._read() and (taken := [name for name in _OURS if (self.path / name).exists()]):
            what = "runs of an earlier ojax" if _CONFIG in taken else f"{taken[0]}, which no study has written"
            raise UserError(f"--workdir={self.path} holds {what}: name another folder.")
        try:
            self._take_lock()
            check_writable(self.path)
        except (OSError, UserError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__ or error.__context__
            if not self._read() or not (isinstance(reason, OSError) and reason.errno in _IS_READ_ONLY):
                raise
            self.read_only = True
        held = self._read()  # Another command may have used the folder in between.
        self._mine, self._identity = mine["version"], held or {**mine, "versions": []}
        self._identity.pop("version", None)
        identity.check_same(self._identity, mine, self.path)
        differing = [identity.differences(version, mine["version"]) for version in self.versions()]
        if "" in differing:
            self.version = differing.index("") + 1
        elif not differing or self._settings["accept_changes"]:
            self.version = len(differing) + 1
        else:
            raise UserError(
                f"--workdir={self.path} holds runs of another version ({differing[-1]}): name another folder, or give "
                "--accept_changes to add runs of this one."
            )
        if not held:
            self.begin()
        return self.version

    def _take_lock(self) -> None:
        """Locks the folder until it is released or this process ends in any way."""
        # Does not follow a link, which may lead out of the folder.
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = " ".join(os.read(self._lock, 200).decode(errors="replace").split()) or "another process"
            raise UserError(f"--workdir={self.path} is in use by {holder}: wait for it, or name another folder.") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            # Some clusters' file systems are mounted without locks.
            warnings.warn(f"{self.path} has no file locks: see to it that no second command uses it too.", stacklevel=2)
        os.ftruncate(self._lock, 0)
        os.write(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def _read(self) -> dict[str, Any]:
        """Returns the folder's identity; empty for a new folder. Raises UserError if it is damaged or cannot be read."""
        path = self.path / IDENTITY
        held = read_json(path, {"question": str, "settings": dict, "data": str, "versions": list})
        if held is None and not os.path.lexists(path):
            return {}
        fields = {"source": dict, "packages": dict, "device": str}
        if (
            held is None
            or not held["versions"]
            or not all(
                isinstance(version, dict) and all(isinstance(version.get(name), kind) for name, kind in fields.items())
                for version in held["versions"]
            )
        ):
            raise UserError(f"{path} is damaged: remove the folder or name another --workdir.")
        return held


def _quoted(flag: str) -> str:
    return flag if all(c.isalnum() or c in "-_=.,/:+" for c in flag) else "'" + flag.replace("'", "'\\''") + "'"


def _git_revision() -> str | None:
    """Returns this checkout's commit, with `-dirty` for uncommitted changes; None without a checkout or git."""
    here = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        options: dict[str, Any] = {"cwd": here, "capture_output": True, "text": True, "check": True, "timeout": 10}
        revision = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **options).stdout.strip()
        return revision + ("-dirty" if changed else "")
    return None
