"""The folder that a study writes: one configuration's, each file whole or not there."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

import ojax
from experiments.common.config import Config
from experiments.common.errors import UserError

_CONFIG, _RESULTS, _SUMMARY = "config.json", "results.csv", "summary.md"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")


class Workdir:
    """A study's folder. Made before any training, so that a folder that will not do is refused at once."""

    def __init__(self, config: Config, experiment: str):
        """Takes the folder for this configuration.

        Raises:
          UserError: If it is a file, cannot be written, holds another configuration's results, or somebody else's files.
        """
        self.path, self._config, self._experiment = Path(config.workdir), config, experiment
        self._began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / _CONFIG).exists():
                self._check_same_configuration()
            elif any(entry for entry in self.path.iterdir() if not entry.name.startswith(".tmp-")):
                raise UserError(
                    f"--workdir={self.path} holds files but no {_CONFIG} of ojax: name a new or an empty folder."
                )
            with replacing(self.path / "probe.txt", publish=False):
                pass
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"--workdir={self.path} is not a folder: name a new or an empty one.") from None
        except OSError as error:
            raise UserError(f"--workdir={self.path} cannot be used: {error.strerror or error}.") from None

    @property
    def finished(self) -> bool:
        """Whether the study is done: its summary is the last file to be written."""
        return (self.path / _SUMMARY).exists()

    def command(self) -> str:
        """The command that repeats the study."""
        flags = [*self._config.flags(), f"--workdir={self.path}"]
        if self._config.data_dir is not None:
            flags.append(f"--data_dir={self._config.data_dir}")
        return " ".join([f"python -m {self._experiment}", *(_quoted(flag) for flag in flags)])

    def write_config(self, **facts: Any) -> None:
        """Writes `config.json`: flags, versions, devices, git revision, and the facts given."""
        content = {
            "experiment": self._experiment,
            "flags": self._config.settings(),
            "workdir": str(self.path),
            "data_dir": self._config.data_dir,
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

    def _check_same_configuration(self) -> None:
        try:
            held = json.loads((self.path / _CONFIG).read_text(encoding="utf-8"))
            experiment, old = held["experiment"], dict(held["flags"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.path / _CONFIG} is damaged: remove the folder or name another --workdir.") from None
        new = self._config.settings()
        if experiment != self._experiment:
            raise UserError(f"--workdir={self.path} holds results of {experiment}: name another folder.")
        differing = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
        if differing:
            changes = ", ".join(f"--{name}={old.get(name)} there, {new.get(name)} now" for name in differing)
            raise UserError(
                f"--workdir={self.path} holds another configuration's results ({changes}): name another folder, or "
                "remove this one."
            )


@contextlib.contextmanager
def replacing(target: Path, *, publish: bool = True) -> Iterator[Path]:
    """A temporary path that becomes the target when all went well, and is removed if not."""
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        yield Path(temporary)
        if publish:
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are for their owner alone.
            os.replace(temporary, target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _quoted(flag: str) -> str:
    return flag if all(c.isalnum() or c in "-_=.,/:+" for c in flag) else "'" + flag.replace("'", "'\\''") + "'"


def _package_versions() -> dict[str, str]:
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
