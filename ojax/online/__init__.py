"""Online learning, one sample at a time: scanned over samples, mapped over runs, sharded over devices.

A *run* is one seed at one setting. Numeric hyper-parameters and seeds are arrays along one leading axis, `runs`, so one
compiled program trains a whole grid. A :class:`Learner` is four pure functions; :func:`classifier` and :func:`supervised`
make one from a Flax NNX network. :func:`train` trains a grid of runs, and :func:`learn` trains one run and is
differentiable.
"""

from typing import TYPE_CHECKING, Any

from ojax.online.devices import OutOfMemoryError, num_cores, use_all_cores
from ojax.online.fast import FastPath, fast_path
from ojax.online.learner import Gradient, Hyper, Learner, Sum
from ojax.online.memory import runs_that_fit
from ojax.online.networks import classifier, supervised
from ojax.online.plan import Plan, sample_order
from ojax.online.run import Learned, Step, initial_params, learn, step
from ojax.online.training import Training, columns, data_frame, grid, train

if TYPE_CHECKING:
    from ojax.online.checkpoints import CheckpointError, Checkpoints, Interrupted

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "FastPath",
    "Gradient",
    "Hyper",
    "Interrupted",
    "Learned",
    "Learner",
    "OutOfMemoryError",
    "Plan",
    "Step",
    "Sum",
    "Training",
    "classifier",
    "columns",
    "data_frame",
    "fast_path",
    "grid",
    "initial_params",
    "learn",
    "num_cores",
    "runs_that_fit",
    "sample_order",
    "step",
    "supervised",
    "train",
    "use_all_cores",
]


def __getattr__(name: str) -> Any:
    """Loads Orbax, which takes a while, only if checkpoints are used."""
    if name in ("CheckpointError", "Checkpoints", "Interrupted"):
        from ojax.online import checkpoints

        return getattr(checkpoints, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
