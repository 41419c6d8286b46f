"""The cache of compiled programs returns its entries, and raises no error if it cannot read or write one."""

import os
import time

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.common import compilation
from experiments.common.compilation import Programs


@pytest.fixture
def cache(tmp_path):
    """Moves JAX's cache to a separate folder, and restores the tests' shared one afterwards."""
    yield compilation.use_cache(str(tmp_path / "cache"))
    compilation.use_cache(None)


def compiled():
    """Returns the output of a program that is not in memory, and the names of the programs that XLA has compiled for it."""
    jax.clear_caches()
    return float(jax.jit(lambda x: jnp.tanh(x) @ x)(jnp.arange(50.0)))


def programs(folder):
    return {path: path.read_bytes() for path in folder.glob("*.program")}


def inodes(folder):
    return {path: path.stat().st_ino for path in folder.glob("*.program")}


def test_a_program_is_compiled_once(cache):
    first = compiled()
    kept = inodes(cache)
    assert kept and compiled() == first
    assert inodes(cache) == kept


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: b"",
        lambda entry: entry[: len(entry) // 2],
        lambda entry: entry[:40] + bytes([entry[40] ^ 1]) + entry[41:],
        lambda entry: b"#!/bin/sh\n" * 20,
    ],
    ids=["empty", "cut", "one bit", "another file"],
)
def test_a_damaged_entry_is_compiled_again(cache, damage):
    first, whole = compiled(), programs(cache)
    for path, entry in whole.items():
        path.write_bytes(damage(entry))
    assert compiled() == first
    assert programs(cache).keys() == whole.keys()
    kept = inodes(cache)
    assert compiled() == first and inodes(cache) == kept  # They are repaired.


def test_the_program_of_another_key_is_not_taken(cache):
    first, whole = compiled(), programs(cache)
    largest = max(whole.values(), key=len)
    for path in whole:
        path.write_bytes(largest)
    assert compiled() == first


def test_a_program_that_jax_cannot_load_is_tried_once(tmp_path):
    mine = Programs(tmp_path, "this")
    mine.put("key", b"no program")
    assert mine.get("key") == b"no program"
    mine.put("key", b"compiled")  # JAX could not load the entry.
    assert mine.get("key") is None and Programs(tmp_path, "this").get("key") is None


def test_a_program_of_another_processor_is_not_taken(tmp_path):
    Programs(tmp_path, "this").put("key", b"program")
    assert Programs(tmp_path, "this").get("key") == b"program"
    assert Programs(tmp_path, "that").get("key") is None


@given(data=st.data())
def test_any_change_of_an_entry_is_noticed(data, tmp_path):
    mine = Programs(tmp_path, "this")
    mine.put("key", b"a program")
    (path,) = tmp_path.glob("*.program")
    entry = path.read_bytes()
    changed = data.draw(st.binary(max_size=60) | st.integers(0, len(entry)).map(lambda size: entry[:size]))
    path.write_bytes(changed)
    assert mine.get("key") == (b"a program" if changed == entry else None)
    path.unlink()


X86 = """
processor: 0
model name: EPYC
flags: sse avx
cpu MHz: 1

processor: 1
model name: EPYC
flags: sse avx
cpu MHz: 2
"""
ARM = "processor: 0\nFeatures: fp asimd\nCPU implementer: 0x41\nCPU part: 0xd0c\n"


def test_processors_are_told_apart_by_model_and_instructions():
    names = {
        compilation.processor_name(text, "node")
        for text in (
            X86,
            X86.replace("avx", "avx avx512f"),
            X86.replace("EPYC", "Xeon"),
            ARM,
            ARM.replace("fp ", "fp sve "),
        )
    }
    assert len(names) == 5
    assert compilation.processor_name(X86.replace("MHz: 1", "MHz: 3"), "other") in names
    # Without a processor's description each machine has its own name.
    assert compilation.processor_name("", "node") != compilation.processor_name("", "other")


@pytest.mark.parametrize("folder", ["/proc/none", "/dev/null/x", "a" * 300, "nul\0"])
def test_a_folder_that_cannot_be_used_is_no_error(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        assert compilation.use_cache(folder) is None
        assert compiled() > 0 and not list(tmp_path.iterdir())
    finally:
        compilation.use_cache(None)


def test_a_folder_that_is_gone_is_no_error(cache):
    cache.rmdir()
    assert compiled() > 0 and not cache.exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path)], ids=["pipe", "folder", "loop"])
def test_an_entry_that_is_no_file(tmp_path, make):
    mine = Programs(tmp_path, "this")
    make(mine._path_of("key"))
    assert mine.get("key") is None
    mine.put("key", b"program")
    assert not list(tmp_path.glob(".tmp-*"))


def test_none_is_no_cache(tmp_path):
    try:
        assert compilation.use_cache("none") is None
        assert compiled() > 0
    finally:
        compilation.use_cache(None)


def test_space_is_freed_of_what_was_not_used_for_longest(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "_MOST_BYTES", 1000)
    mine = Programs(tmp_path, "this")
    for number in range(10):
        mine.put(str(number), bytes(168))  # 200 bytes with its digest.
        os.utime(mine._path_of(str(number)), (number, number))
    assert mine.get("0") is not None  # Now it was used last.
    half_written = tmp_path / ".tmp-killed"
    half_written.write_bytes(b"half")
    os.utime(half_written, (time.time() - 7200,) * 2)
    compilation._free_space(tmp_path)
    assert [number for number in range(10) if mine.get(str(number)) is not None] == [0, 9]
    assert not half_written.exists()
