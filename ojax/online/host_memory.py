"""How much memory this process may still take on its machine."""

from collections.abc import Iterator
from pathlib import Path

import psutil

# Of each version of control groups: the folder below /sys/fs/cgroup, and the files of the limit and of what is used.
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("", "memory.max", "memory.current", "inactive_file")


def free(root: Path = Path("/")) -> int:
    """Returns the bytes that the machine has left, or the limits of a container or of a cluster's job.

    A limit holds for a control group and all below it, and Slurm sets that of a job two levels above the process. So the
    process's own group counts, and every one above it.

    Args:
      root: The root of the file system.
    """
    left = psutil.virtual_memory().available
    for version, group in _groups(root):
        mount = root / "sys/fs/cgroup" / version[0]
        # In a container the path may be the host's, of which only the root is mounted here.
        for path in (group, *group.parents):
            left = min(left, _left_in(mount / path, *version[1:], otherwise=left))
    return left


def _groups(root: Path) -> Iterator[tuple[tuple[str, str, str, str], Path]]:
    """The version and path of this process's memory groups; their roots where the system tells no path."""
    paths = {_V1: Path(), _V2: Path()}
    try:
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                paths[_V2 if number == "0" else _V1] = Path(path.lstrip("/"))
    except (OSError, ValueError):  # There are none, on macOS say.
        pass
    yield from paths.items()


def _left_in(folder: Path, limit: str, used: str, cached: str, *, otherwise: int) -> int:
    try:
        most, taken = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
    except (OSError, ValueError):  # No such group, and "max" where there is no limit.
        return otherwise
    try:  # What files have left in memory makes way.
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        taken -= sum(int(line.split()[1]) for line in lines if line.startswith(f"{cached} "))
    except (OSError, ValueError, IndexError):
        pass
    return max(most - taken, 0)
