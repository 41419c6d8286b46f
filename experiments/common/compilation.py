"""A cache of compiled programs on disk, which later commands load.

JAX asks its persistent compilation cache before it compiles a program. JAX's own cache writes files in place and trusts
them, and on a CPU its keys do not distinguish processors. The entries here are written atomically. A program is compiled
again if its entry is damaged, or was written under another key or for another processor.
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
# Above this size, the entries that were not used for longest are removed until half is free. A study takes a few MiB.
_MOST_BYTES = 2**30
# Lines of /proc/cpuinfo on a processor's instructions, on x86, ARM and RISC-V; other lines differ between cores.
_PROCESSOR_FACTS = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features"),
    *("isa", "uarch", "mvendorid", "marchid"),
)


def use_cache(folder: str | None) -> Path | None:
    """Makes JAX store compiled programs in a folder; call it after :func:`experiments.common.processes.start`.

    It never fails: if the folder is not usable, or this version of JAX accepts no other cache, programs are compiled
    without a cache. The entries are machine code, so anybody who can write to the folder can run code here.

    Args:
      folder: The folder, or `none`. With None it is JAX's `JAX_COMPILATION_CACHE_DIR`, or else `ojax/programs` in the
        user's cache folder; but there is no cache if several processes have GPUs. XLA divides the search for fast kernels
        among these processes and waits for each, so all would need equal entries in the cache.

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
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # Turns off XLA's own files, which are not checked.
    # JAX compiles a program again if it cannot load the entry; the user need not do anything.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    return path


def processor() -> str:
    """Returns a name for this machine's kind of processor."""
    cpuinfo = ""
    with contextlib.suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return processor_name(cpuinfo, platform.node())


def processor_name(cpuinfo: str, node: str) -> str:
    """Returns a name for a kind of processor, from its model and all of its instruction sets.

    Args:
      cpuinfo: The content of Linux's `/proc/cpuinfo`.
      node: The machine's name, used if `cpuinfo` does not describe the processor.
    """
    lines = ((name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in cpuinfo.splitlines()))
    facts = sorted({f"{name}: {value}" for name, value in lines if name in _PROCESSOR_FACTS})
    known = "\n".join(facts) or node
    return f"{platform.machine()}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"


class Programs:
    """A folder of compiled programs, which JAX reads and writes by key.

    An entry is the SHA-256 of the processor's name, the key and the program, followed by the program.
    """

    def __init__(self, path: Path, processor: str):
        self._path, self._processor = path, processor
        self._given: set[str] = set()

    def get(self, key: str) -> bytes | None:
        """Returns the program; None if there is no entry, or it is damaged."""
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
            os.utime(path)  # Marks the entry as used.
        self._given.add(key)
        return program

    def put(self, key: str, value: bytes) -> None:
        """Stores the program, if it can."""
        # If JAX could not load the stored program, it has compiled it again and would do so each time, for instance if XLA
        # takes a tuning option for a missing instruction set. An empty entry prevents that.
        program = b"" if key in self._given else value
        # The disk may be full, or the folder not writable.
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
    """Removes the entries that were not used for longest if there are too many, and files of killed processes."""
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
