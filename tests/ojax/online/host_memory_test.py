"""Limits of control groups, as Slurm, containers and Kubernetes set them."""

import psutil
import pytest

from ojax.online import host_memory

GIB = 2**30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 100 * GIB}))


def write(root, groups, **files):
    """Writes `/proc/self/cgroup`, and the files of each group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


SLURM = "system.slice/slurmstepd.scope/job_7/step_0/user/task_0"
V1 = "slurm/uid_1000/job_7/step_0"


@pytest.mark.parametrize("job", ["system.slice/slurmstepd.scope/job_7", SLURM])
def test_a_jobs_limit_of_version_2_wherever_it_is_set(tmp_path, job):
    limits = {f"{SLURM}/memory.max": "max", f"{SLURM}/memory.current": 2 * GIB, "memory.max": "max"}
    limits |= {f"{job}/memory.max": 8 * GIB, f"{job}/memory.current": 3 * GIB}
    write(tmp_path, f"0::/{SLURM}\n", **limits)
    assert host_memory.free(tmp_path) == 5 * GIB


def test_a_jobs_limit_of_version_1(tmp_path):
    unlimited = {"memory/memory.limit_in_bytes": 2**63 - 4096, "memory/memory.usage_in_bytes": 50 * GIB}
    job = {f"memory/{V1}/memory.limit_in_bytes": 4 * GIB, f"memory/{V1}/memory.usage_in_bytes": GIB}
    write(tmp_path, f"5:cpu,cpuacct:/\n4:memory:/{V1}\n1:name=systemd:/x\n0::/\n", **unlimited, **job)
    assert host_memory.free(tmp_path) == 3 * GIB


def test_what_files_have_left_in_memory_counts_as_free(tmp_path):
    stat = f"anon {GIB}\ninactive_file {6 * GIB}\nworkingset_nodes 1"
    write(tmp_path, "0::/job\n", **{"job/memory.max": 8 * GIB, "job/memory.current": 7 * GIB, "job/memory.stat": stat})
    assert host_memory.free(tmp_path) == 7 * GIB


def test_a_container_of_which_only_the_root_is_mounted(tmp_path):
    write(tmp_path, "0::/docker/0123abcd\n", **{"memory.max": 2 * GIB, "memory.current": GIB})
    assert host_memory.free(tmp_path) == GIB


@pytest.mark.parametrize("groups", ["", "nonsense", "0::/\n", "0::/gone\n", "4:memory:/../..\n"])
def test_without_a_limit_the_machine_decides(tmp_path, groups):
    write(tmp_path, groups, **{"memory.max": "max", "memory.current": GIB})
    assert host_memory.free(tmp_path) == 100 * GIB


def test_more_used_than_allowed_leaves_nothing(tmp_path):
    write(tmp_path, "0::/job\n", **{"job/memory.max": GIB, "job/memory.current": 2 * GIB})
    assert host_memory.free(tmp_path) == 0
