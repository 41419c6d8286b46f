"""Compiled programs on disk: what one command has compiled, the next one loads.

JAX asks its persistent compilation cache before it compiles a program. Its own files are written in place and trusted when
they are read, and on a CPU its keys do not tell one processor from another. The entries here are written whole or not at
all, and one that is damaged, or was written under another key or for another processor, is compiled anew.
"""

import contextlib
import hashlib
import os
import platform
import time
import warnings
from pathlib import Path

import jax

from ojax import _compat
from ojax.files import is_temporary, replacing
from ojax.paths import local, user_cache

_SUFFIX = ".program"
# Beyond this the entries that were used last are kept, and half of the space is freed. A study takes a few MiB.
_MOST_BYTES = 2**30
# What /proc/cpuinfo says of a processor's instructions, on x86, ARM and RISC-V; its other lines change from core to core.
_PROCESSOR_FACTS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
    *("isa", "uarch", "mvendorid", "marchid"),
)


def use_cache(folder: str | None) -> Path | None:
    """Makes JAX keep compiled programs in a folder; call it when the processes of a job have found each other.

    It never fails: where the folder cannot be used, or this version of JAX takes no cache but its own, programs are
    compiled as they are without one. The entries are machine code, so whoever can write to the folder can run code here.

    Args:
      folder: The folder, or `none`. None stands for JAX's `JAX_COMPILATION_CACHE_DIR`, or else `ojax/programs` in the
        user's cache folder; but for no cache where several processes have GPUs. XLA divides the search for fast kernels
        among them and waits for each, so all would have to find the same in the cache.

    Returns:
      The folder of this processor's programs; None if there is no cache.
    """
    jax.config.update("jax_compilation_cache_dir", None)
    if folder == "none" or (folder is None and jax.process_count() > 1 and jax.default_backend() == "gpu"):
        return None
    try:
        path = (Path(folder) if folder else _default_folder()) / processor()
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _free_space(path)
    except (OSError, ValueError, RuntimeError):  # ValueError: a NUL. RuntimeError: no home.
        return None
    if not _compat.use_compilation_cache(Programs(path, processor()), str(path)):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # XLA's own files, which are not checked.
    # An entry that JAX cannot load is compiled anew; there is nothing for the user to do.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    return path


def processor() -> str:
    """A name for this machine's kind of processor."""
    cpuinfo = ""
    with contextlib.suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return processor_name(cpuinfo, platform.node())


def processor_name(cpuinfo: str, node: str) -> str:
    """A name for a kind of processor, from its model and every instruction set that it has.

    Args:
      cpuinfo: What Linux tells in `/proc/cpuinfo`.
      node: The machine's own name, which is taken where the system tells nothing of its processor.
    """
    lines = ((name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in cpuinfo.splitlines()))
    facts = sorted({f"{name}: {value}" for name, value in lines if name in _PROCESSOR_FACTS})
    known = "\n".join(facts) or node
    return f"{platform.machine()}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"


class Programs:
    """A folder of compiled programs, as JAX asks for them by key.

    An entry is the SHA-256 of the processor's name, the key and the program, and then the program.
    """

    def __init__(self, path: Path, processor: str):
        self._path, self._processor = path, processor
        self._given: set[str] = set()

    def get(self, key: str) -> bytes | None:
        """The program; None if there is none, or the entry is not as it was written."""
        path = self._path_of(key)
        try:
            if not path.is_file():  # Reading a pipe might never end.
                return None
            entry = path.read_bytes()
        except OSError:
            return None
        program = entry[hashlib.sha256().digest_size :]
        if entry != self._entry(key, program) or not program:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # Space is freed of those that were not used for longest.
        self._given.add(key)
        return program

    def put(self, key: str, value: bytes) -> None:
        """Keeps the program, if it can."""
        # JAX could not load the program that it was given, and has compiled it again. This happens each time, for instance
        # where XLA takes a tuning option for an instruction set that is missing. An empty entry ends that.
        program = b"" if key in self._given else value
        # The disk may be full, or the folder not ours to write.
        with contextlib.suppress(OSError), replacing(self._path_of(key)) as temporary:
            temporary.write_bytes(self._entry(key, program))

    def _path_of(self, key: str) -> Path:
        return self._path / f"{hashlib.sha256(key.encode()).hexdigest()}{_SUFFIX}"

    def _entry(self, key: str, program: bytes) -> bytes:
        words = (self._processor.encode(), key.encode(), program)
        return hashlib.sha256(b"\0".join(words)).digest() + program


def _default_folder() -> Path:
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return local(folder) if folder else user_cache() / "programs"


def _free_space(path: Path) -> None:
    """Removes what was not used for longest where there is too much, and what killed processes left half written."""
    entries = []
    for entry in path.iterdir():
        with contextlib.suppress(OSError):
            found = entry.stat()
            if is_temporary(entry.name) and time.time() - found.st_mtime > 3600:
                entry.unlink()
            elif entry.name.endswith(_SUFFIX):
                entries.append((found.st_mtime, found.st_size, entry))
    size = sum(size for _, size, _ in entries)
    if size <= _MOST_BYTES:
        return
    for _, entry_size, entry in sorted(entries):
        if size <= _MOST_BYTES // 2:
            break
        with contextlib.suppress(OSError):
            entry.unlink()
            size -= entry_size
