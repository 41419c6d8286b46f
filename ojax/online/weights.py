"""Final weights on disk: arrays with the weights of many runs, and a program that calls their network."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ojax import _compat
from ojax.datasets import Dataset, Examples
from ojax.files import replacing
from ojax.online.checksums import with_keys, without_keys
from ojax.paths import local
from ojax.trees import first_line, map_named, named_leaves

_ARRAYS, _RUNS, _PROGRAM, _CHOSEN = "arrays", "runs.json", "network.program", "chosen.json"
_PLATFORMS = ("cpu", "cuda", "tpu")


class WeightsError(ValueError):
    """Weights are missing or damaged, or settings fit no run or several; the message says in one line what to do."""


class TrainedRun(NamedTuple):
    """The trained network of a run.

    Attributes:
      setting: The run's settings, by name. A run that has diverged has the weights at which it was frozen.
      params: Its parameters by path, `layers/0/kernel`, as NumPy arrays.
      state: The learner's state, likewise.
      network: `network(inputs)` calls the network on inputs with a leading axis, e.g. the data set's; None if the learner
        had no `apply`, or JAX could not export it.
    """

    setting: dict[str, Any]
    params: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    network: Callable[[Any], Array] | None


class SavedWeights:
    """A folder with the final weights of blocks of runs. All processes of a job must make the same calls."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = local(folder).absolute()

    def saved(self) -> list[str]:
        """Returns the names of the complete blocks."""
        return [path.name for path in _blocks(self.folder)]

    def choose(self, runs: Sequence[tuple[str, int]]) -> None:
        """Sets the runs that :func:`load_weights` reads, in order, by block name and row in the block.

        Raises:
          WeightsError: If the list cannot be written.
        """
        path, content = self.folder / _CHOSEN, json.dumps(list(runs)).encode()
        try:
            if not path.is_file() or path.read_bytes() != content:
                _write(path, content)
        except OSError as error:
            raise WeightsError(f"{path} cannot be written: {first_line(error)}.") from None

    def save(
        self,
        block: str,
        apply: Callable[[PyTree, PyTree, Any], Any] | None,
        dataset: Dataset,
        runs: Sequence[Mapping[str, Any]],
        params: PyTree,
        state: PyTree,
    ) -> None:
        """Saves a block.

        Args:
          block: Its name.
          apply: Calls the network, see :class:`ojax.online.Learner`.
          dataset: The data, for the shape of the inputs.
          runs: The settings of each run.
          params: The parameters, arrays with a leading axis for the runs, which may be longer than `runs`.
          state: The learner's state, likewise.

        Raises:
          WeightsError: If it cannot be written.
        """
        import orbax.checkpoint as ocp

        folder = self.folder / block
        arrays = without_keys({"params": _by_path(params), "state": _by_path(state)})
        try:
            handler = ocp.PyTreeCheckpointHandler(use_compression=False)
            with _compat.ending_what_orbax_begins(), ocp.Checkpointer(handler) as writer:
                writer.save(folder / _ARRAYS, args=ocp.args.PyTreeSave(arrays), force=True)
            if jax.process_index() == 0:
                program = _exported(apply, dataset, params, state)
                if program is not None:
                    _write(folder / _PROGRAM, program)
                listed = json.dumps([dict(run) for run in runs], default=_as_number)
                _write(folder / _RUNS, listed.encode())  # The last file, which marks the block as complete.
        except OSError as error:
            raise WeightsError(f"The weights cannot be written to {folder}: {first_line(error)}.") from None


def load_weights(folder: str | os.PathLike, run: int | Mapping[str, Any] = 0) -> TrainedRun:
    """Reads the weights and the network of one run, as :class:`SavedWeights` wrote them.

    Args:
      folder: The folder of the weights, or the one above it.
      run: Settings that only this run has: `{"depth": 5, "learning_rate": 1e-2, "oja_rate": 0.0, "seed": 3}`; or its
        number.

    Returns:
      Its :class:`TrainedRun`.

    Raises:
      WeightsError: If there are no weights, they are damaged, or the settings fit no run or several.
    """
    import orbax.checkpoint as ocp

    try:
        folder = root = local(folder)
    except ValueError as error:
        raise WeightsError(f"{error}.") from None
    root = (root / "weights" if (root / "weights").is_dir() else root).absolute()
    found = _listed(root)
    if not found:
        raise WeightsError(
            f"There are no weights in {folder}: they are there only if they were saved when the runs were trained."
        )
    path, row, setting = _chosen(found, run)
    try:
        with _compat.ending_what_orbax_begins(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            saved = reader.metadata(path / _ARRAYS).item_metadata.tree
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
            arrays = reader.restore(path / _ARRAYS, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        params, state = (
            {name: np.asarray(array)[row] for name, array in arrays.get(part, {}).items()} for part in ("params", "state")
        )
    except Exception as error:  # Orbax and TensorStore have no common error.
        raise WeightsError(f"The weights in {path} are damaged: {first_line(error)}.") from None
    return TrainedRun(setting, params, state, _network(path / _PROGRAM, params, state))


def _chosen(found: list[tuple[Path, int, dict]], run: int | Mapping[str, Any]) -> tuple[Path, int, dict]:
    if not isinstance(run, Mapping | int) or isinstance(run, bool):
        raise WeightsError(f"A run is given by its settings, a dict, or by its number, not by {run!r}.")
    if not isinstance(run, Mapping):
        if not 0 <= run < len(found):
            raise WeightsError(f"There is no run {run}: there are {len(found)}, from 0 to {len(found) - 1}.")
        return found[run]
    known = found[0][2]
    if unknown := set(run) - set(known):
        raise WeightsError(f"Runs have no setting {min(unknown)!r}; they have {', '.join(known)}.")
    fitting = [entry for entry in found if all(_same(entry[2][name], value) for name, value in run.items())]
    if len(fitting) == 1:
        return fitting[0]
    differing = [name for name in known if len({str(entry[2][name]) for entry in fitting or found}) > 1]
    values = {name: sorted({entry[2][name] for entry in fitting or found}) for name in differing}
    listed = "; ".join(f"{name} {', '.join(map(str, some[:6]))}" for name, some in values.items())
    how_many = f"{len(fitting)} runs have" if fitting else "No run has"
    raise WeightsError(f"{how_many} the settings {dict(run)}: choose among {listed}.")


def _same(one: Any, other: Any) -> bool:
    try:
        return one == other if isinstance(one, str) else float(one) == float(other)
    except (TypeError, ValueError):
        return False


def _listed(folder: Path) -> list[tuple[Path, int, dict]]:
    """Returns the block, row and settings of the chosen runs, or of all runs."""
    settings = {path.name: _runs(path) for path in _blocks(folder)}
    listed = [(name, row) for name, runs in settings.items() for row in range(len(runs))]
    path = folder / _CHOSEN
    try:
        chosen = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else listed
        return [(folder / name, row, settings[name][row]) for name, row in chosen]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: {first_line(error)}.") from None


def _blocks(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if (path / _RUNS).is_file() and (path / _ARRAYS).is_dir())


def _runs(block: Path) -> list[dict[str, Any]]:
    try:
        runs = json.loads((block / _RUNS).read_text(encoding="utf-8"))
        if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
            raise ValueError("it holds no list of runs")
        return runs
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{block / _RUNS} is damaged: {first_line(error)}.") from None


def _by_path(tree: PyTree) -> dict[str, Array]:
    return dict(named_leaves(tree))


def _exported(apply: Any, dataset: Dataset, params: PyTree, state: PyTree) -> bytes | None:
    """Returns the network as a portable program of one run's parameters and state, and a batch of inputs."""
    if apply is None or not isinstance(dataset.test, Examples):
        return None
    # The file holds the raw data of random keys, so the program takes that. This process alone may compute shapes only.
    numbers = jax.eval_shape(without_keys, (params, state))
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), numbers)
    arguments = [_by_path(tree) for tree in one]

    def call(params_of: dict[str, Array], state_of: dict[str, Array], inputs: Array) -> Array:
        trees = [
            map_named(lambda path, _, leaves=leaves: leaves[path], tree)
            for tree, leaves in zip(one, (params_of, state_of), strict=True)
        ]
        return apply(*with_keys(tuple(trees), (params, state)), inputs)

    inputs = np.asarray(dataset.test.inputs)
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *inputs.shape[1:]), inputs.dtype)
    try:
        exported = jax.export.export(jax.jit(call), platforms=_PLATFORMS)(*arguments, shape)
        return bytes(exported.serialize())
    except (TypeError, ValueError, NotImplementedError, jax.errors.InconclusiveDimensionOperation):
        return None  # E.g. a network that depends on the number of samples.


def _network(path: Path, params: Mapping[str, Any], state: Mapping[str, Any]) -> Callable[[Any], Array] | None:
    if not path.is_file():
        return None
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # A damaged program can raise almost any error.
        raise WeightsError(f"{path} is damaged: {first_line(error)}.") from None
    arrays = jax.tree.map(jnp.asarray, (dict(params), dict(state)))
    return lambda inputs: exported.call(*arrays, jnp.asarray(inputs))


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _as_number(value: Any) -> Any:
    return value.item()  # For NumPy's numbers.
