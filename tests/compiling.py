"""Compiles programs in a third of the time, for tests that compare numbers only up to rounding.

The programs run slower and round differently.
"""

import functools

import jax
from jax._src import compiler
from jax._src.interpreters import mlir

_OPTIONS = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11, 1):  # XLA has it no longer.
    _OPTIONS["xla_cpu_use_fusion_emitters"] = False
XLA_FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in _OPTIONS.items())  # For a command's environment.

_usual = compiler.get_compile_options


def quickly(yes):
    """Sets whether later programs are compiled quickly, or as for a user."""
    if yes == (compiler.get_compile_options is _quick):
        return
    compiler.get_compile_options = _quick if yes else _usual
    jax.clear_caches()  # So that no program of the other mode is used; on disk the two modes have different keys.


def in_one_context():
    """Lowers all programs in one MLIR context, as making one per program takes longer than lowering one operation."""
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)


def _quick(*args, **kwargs):
    options = _usual(*args, **kwargs)
    options.env_option_overrides = [*options.env_option_overrides, *_OPTIONS.items()]
    return options
