"""Free memory of this process on its machine."""

from collections.abc import Iterator
from pathlib import Path

import psutil

# Per version of control groups: the folder below /sys/fs/cgroup, and the names of limit and usage.
_V1 = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("", "memory.max", "memory.current", "inactive_file")


def free(root: Path = Path("/")) -> int:
    """Returns the free bytes of the machine, or within the limits of a container or a cluster's job.

    A limit applies to a control group and all groups below it; Slurm sets a job's limit two levels above the process. So
    the limits of the process's own group and of all groups above it count.

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
    """Yields the version and path of this process's memory groups; their roots if the path is unknown."""
    paths = {_V1: Path(), _V2: Path()}
    try:
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" or "memory" in controllers.split(","):
                paths[_V2 if number == "0" else _V1] = Path(path.lstrip("/"))
    except (OSError, ValueError):  # E.g. macOS has no control groups.
        pass
    yield from paths.items()


def _left_in(folder: Path, limit: str, used: str, cached: str, *, otherwise: int) -> int:
    try:
        most, taken = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
    except (OSError, ValueError):  # There is no such group, or the limit is "max".
        return otherwise
    try:  # Cached files can be evicted.
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        taken -= sum(int(line.split()[1]) for line in lines if line.startswith(f"{cached} "))
    except (OSError, ValueError, IndexError):
        pass
    return max(most - taken, 0)
