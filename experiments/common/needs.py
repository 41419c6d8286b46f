"""Checks the requirements of a command before it trains: packages, and a device for JAX."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

from experiments.common.errors import UserError

INSTALL = "pip install --editable '.[experiments]' in a clone of ojax"
_PACKAGES = ("jax", "flax", "optax", "orbax", "pandas", "matplotlib", "rich")


def check_packages() -> None:
    """Raises UserError if a package is missing, even one that is only used at the end, for the figures."""
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed: {INSTALL}.")


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Turns errors of importing JAX and other packages into UserErrors: a missing package, or a wrong variable of JAX."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: {INSTALL}.") from None
    except ValueError as error:
        given = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("JAX_")]
        if not given:
            raise
        raise UserError(f"JAX refuses {', '.join(given)} ({error}): fix or unset it.") from None


def check_devices() -> None:
    """Raises UserError if JAX has no device; call it after :func:`experiments.common.processes.start`."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        given = [f"{name}={os.environ[name]}" for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME") if os.environ.get(name)]
        if not given:
            raise UserError(f"JAX finds no device: {' '.join(str(error).split())}") from None
        advice = "unset it to take what is here, or set it to cpu"
        raise UserError(f"{', '.join(given)}: JAX finds no such device here; {advice}.") from None


def matplotlib() -> Any:
    """Returns Matplotlib, imported even if MPLBACKEND names a missing backend.

    Figures are files and need no backend. MPLBACKEND may name a notebook's backend whose package is missing in this
    environment. If the backend exists, it stays the default.
    """
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
    return matplotlib
