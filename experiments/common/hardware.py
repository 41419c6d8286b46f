"""Descriptions of hardware, which the compilers for TPUs and GPUs take in place of devices."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.common.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

DESCRIPTIONS = Path(__file__).parents[1] / "hardware"
_TOPOLOGY = re.compile(r"[a-z0-9]+:(\d+(?:x\d+)*)", re.ASCII)
# GiB per JAX device of a TPU: a chip, or one of its two cores if each core is a device.
_GIB = {"TPU v2": 8, "TPU v3": 16, "TPU v4": 16, "TPU v5 lite": 16, "TPU v5": 95, "TPU v6 lite": 32}
# Share of the memory that JAX uses: three quarters on a GPU; all but the system's share on a TPU.
_SHARE = {"gpu": 0.75, "tpu": 63 / 64}
_INSTALL = "pip install --editable '.[experiments,compile]', in an environment of its own"


class Hardware(NamedTuple):
    """Devices that programs can be compiled for.

    Attributes:
      name: The user's name for it.
      kind: The devices' kind in JAX.
      mesh: All devices along one axis.
      memory: Bytes per device that JAX may use.
    """

    name: str
    kind: str
    mesh: Mesh
    memory: int


def prepare() -> None:
    """Sets the environment for compilers alone, before JAX is imported: JAX then uses no GPU or TPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Without these the TPU's compiler would query the cloud's metadata server.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # Programs for described devices cannot be read back.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"  # Takes no lock, so that no other process has to wait.
    os.environ |= {"TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if (assembler := _assembler()) is not None:
        os.environ["PATH"] = f"{assembler.parent}{os.pathsep}{os.environ.get('PATH', '')}"


def ignore_compilers() -> None:
    """Keeps JAX, before it is imported, from taking the compilers of `ojax[compile]` for a GPU and a TPU.

    JAX would take them for drivers, search for devices, and warn at length that there are none.
    """
    compilers = _has("libtpu") and _has("jax_plugins.xla_cuda13")
    names = ("nvidia[0-9]*", "accel*", "vfio/[0-9]*", "dxg")
    if compilers and not any(next(Path("/dev").glob(name), None) for name in names):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def described(name: str) -> Hardware:
    """Returns the hardware of a name: a TPU topology, `v5e:2x2`; or a GPU, `h100` or a file that describes one.

    Raises:
      UserError: If there is no such hardware, or its compiler is not installed.
    """
    import numpy as np
    from jax.sharding import Mesh

    from ojax.plasticity.rule import RUNS_AXIS

    topology = _tpus(name) if _TOPOLOGY.fullmatch(name) else _gpu(name)
    devices = np.array(topology.devices)
    device: Any = devices.flat[0]
    if device.platform == "tpu" and device.device_kind not in _GIB:
        raise UserError(f"--compile_for={name}: the memory of a {device.device_kind} is not known.")
    memory = _GIB[device.device_kind] * 2**30 if device.platform == "tpu" else _memory_of_gpu(name)
    return Hardware(name, device.device_kind, Mesh(devices, (RUNS_AXIS,)), int(_SHARE[device.platform] * memory))


def _tpus(name: str) -> Any:
    import jax
    from jax.experimental import topologies

    if not _has("libtpu"):
        raise UserError(f"--compile_for={name} needs the compiler for TPUs: {_INSTALL}")
    # If the chips do not fill hosts of the default size, each chip gets its own host. The programs do not change, as runs
    # do not communicate.
    for options in ({}, {"chips_per_host_bounds": [1, 1, 1]}):
        try:
            return topologies.get_topology_desc(name, platform="tpu", **options)
        except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
            why = _first_sentence(error)
    raise UserError(f"--compile_for={name}: the compiler for TPUs knows no such topology ({why}). One is v5e:2x2.")


def _gpu(name: str) -> Any:
    import jax
    from jax.experimental import topologies

    text = _description(name)
    if not _has("jax_plugins.xla_cuda13") or _assembler() is None:
        raise UserError(f"--compile_for={name} needs the compiler for GPUs: {_INSTALL}")
    try:
        return topologies.get_topology_desc(platform="cuda", topology_name="", topology="1x1x1", target_config=text)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        why = _first_sentence(error)
        raise UserError(f"--compile_for={name} describes no GPU ({why}): {DESCRIPTIONS / 'h100.txtpb'} does.") from None


def _description(name: str) -> str:
    known = DESCRIPTIONS / f"{name}.txtpb"
    path = known if re.fullmatch(r"[\w-]+", name) and known.is_file() else Path(name)
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--compile_for={name} cannot be read: {error}.") from None
    listed = ", ".join(sorted(path.stem for path in DESCRIPTIONS.glob("*.txtpb")))
    raise UserError(
        f"--compile_for={name} is no hardware that is known: give a TPU topology, such as v5e:2x2, a GPU ({listed}), or a "
        f"file that describes one, like those in {DESCRIPTIONS}."
    )


def _memory_of_gpu(name: str) -> int:
    found = re.search(r"device_memory_size:\s*(\d+)", _description(name))
    if found is None:
        raise UserError(f"--compile_for={name} describes no device_memory_size.")
    return int(found[1])


def _assembler() -> Path | None:
    """Returns the path of NVIDIA's ptxas, as its wheel installs it."""
    spec = importlib.util.find_spec("nvidia.cu13") if _has("nvidia.cu13") else None
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((path for place in places if (path := Path(place) / "bin" / "ptxas").is_file()), None)


def _has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # Its parent package is missing too.
        return False


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
