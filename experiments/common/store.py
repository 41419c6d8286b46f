"""The runs of a work directory: the rows of finished runs by key, and the states of runs in training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.common.files import listed, read_json, read_table, sha256_of, write_table, write_text

if TYPE_CHECKING:
    import pandas as pd


class Held(NamedTuple):
    """A finished run.

    Attributes:
      block: The name of its block.
      row: Its row in the block.
      version: The number of the version that trained it, from 1.
      seconds: Its share of the block's time.
    """

    block: str
    row: int
    version: int
    seconds: float


class Store:
    """Stores runs by key. `runs/BLOCK.json` marks a block of runs as done; it is written after its tables."""

    def __init__(self, folder: Path):
        self._done, self._begun = folder / "runs", folder / "checkpoints"

    def held(self, blocks: Collection[str] | None = None) -> dict[str, Held]:
        """Returns the finished runs by key; for a run that was trained twice, the one of the newer version.

        Args:
          blocks: Names of the blocks to include; None for all.

        Raises:
          UserError: If a file cannot be read: it is not damaged, and stays as it is.
        """
        found: dict[str, Held] = {}
        for path in [path for path in listed(self._done) if path.suffix == ".json"]:
            content = self._intact(path)
            if content is None:
                warnings.warn(f"{path} or its tables are damaged or missing: the runs are trained again.", stacklevel=2)
                with contextlib.suppress(OSError):  # Moved aside, so that the warning comes only once.
                    path.replace(path.with_suffix(".damaged"))
            elif blocks is None or path.stem in blocks:
                for row, key in enumerate(content["runs"]):
                    run = Held(path.stem, row, content["version"], content["seconds"] / len(content["runs"]))
                    if key not in found or found[key].version < run.version:
                        found[key] = run
        return found

    def begin(self, keys: Sequence[str], version: int) -> tuple[str, str]:
        """Registers a block, and returns its name and the folder for its state, from which a later command resumes."""
        name = hashlib.sha256(json.dumps([version, *keys]).encode()).hexdigest()[:16]
        write_text(self._begun / f"{name}.json", json.dumps({"version": version, "runs": list(keys)}))
        return name, str(self._begun / name)

    def unfinished(self, version: int, done: Collection[str]) -> list[list[str]]:
        """Returns the keys of this version's unfinished blocks, and removes blocks of which a run is done."""
        found = []
        for name in sorted({path.stem for path in listed(self._begun)}):
            content = read_json(self._begun / f"{name}.json", {"version": int, "runs": list})
            if content is None or not content["runs"] or any(key in done for key in content["runs"]):
                self.forget(name)
            elif content["version"] == version:
                found.append(content["runs"])
        return found

    def forget(self, name: str) -> None:
        """Removes the state of an unfinished block."""
        shutil.rmtree(self._begun / name, ignore_errors=True)
        (self._begun / f"{name}.json").unlink(missing_ok=True)

    def write(
        self, name: str, keys: Sequence[str], version: int, seconds: float, tables: Mapping[str, pd.DataFrame | None]
    ) -> None:
        """Writes the rows of a block and removes its state. The column `run` is a run's row in the block.

        Raises:
          UserError: If they cannot be written.
        """
        written = {table: rows for table, rows in tables.items() if rows is not None}
        for table, rows in written.items():
            write_table(self._table(name, table), rows)
        hashes = {table: sha256_of(self._table(name, table)) for table in written}
        content = {"version": version, "seconds": round(seconds, 3), "sha256": hashes, "runs": list(keys)}
        write_text(self._done / f"{name}.json", json.dumps(content | {"checksum": _checksum(content)}) + "\n")
        self.forget(name)

    def read(self, table: str, runs: Iterable[Held]) -> pd.DataFrame | None:
        """Returns the rows of one program's runs; None if there is no table of this name."""
        import pandas as pd

        rows: dict[str, list[int]] = {}
        for run in runs:
            rows.setdefault(run.block, []).append(run.row)
        found = []
        for block, mine in rows.items():
            if (path := self._table(block, table)).exists():
                part = read_table(path, "give the same command again, which trains its runs again")
                found.append(part[part["run"].isin(mine)].drop(columns="run"))
        return pd.concat(found, ignore_index=True) if found else None

    def _table(self, block: str, table: str) -> Path:
        return self._done / f"{block}.{table}.csv"

    def _intact(self, path: Path) -> dict[str, Any] | None:
        """Returns the content of a block's file; None if it or a table is damaged."""
        content = read_json(path, {"version": int, "seconds": float, "sha256": dict, "runs": list, "checksum": str})
        if content is None or content.pop("checksum") != _checksum(content):
            return None
        if not content["runs"] or "results" not in content["sha256"] or content["version"] < 1:
            return None
        hashes = {name: sha256_of(self._table(path.stem, name)) for name in content["sha256"]}
        intact = hashes == content["sha256"] and None not in hashes.values()
        return content if intact and all(isinstance(key, str) for key in content["runs"]) else None


def _checksum(content: Mapping[str, Any]) -> str:
    """Returns a hash of what a block's file says."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
