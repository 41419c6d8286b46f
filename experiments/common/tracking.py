"""Event files for TensorBoard: the mean over seeds and its interval per setting, not single runs.

`tensorboard --logdir=WORKDIR/tensorboard` shows them. A writer for another tracker is a function like :func:`write`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.common.errors import UserError
from experiments.common.files import replacing
from experiments.common.parsers import format_list
from experiments.common.results import COUNTS, METHOD, PLACES, SEED, SEEN
from experiments.common.statistics import mean_interval

if TYPE_CHECKING:
    import pandas as pd

_EVENTS = "events.out.tfevents.0"
_NO_SCORES = (METHOD, *COUNTS, *PLACES)


def check() -> None:
    """Raises UserError if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise UserError("--tensorboard needs tensorboardX: pip install tensorboardX.") from None


def write(results: pd.DataFrame, columns: Sequence[str], folder: Path) -> None:
    """Writes `tensorboard/AXIS=VALUE/.../events.out.tfevents.0`, one folder per setting.

    Each score has three curves over samples: `test_accuracy/mean`, and `/low` and `/high`, its 95 % interval over
    seeds. Equal results give equal bytes: events have no time. Results have one row per run and evaluation; `columns`
    identify a run, the seed included. Axes with a single value are not named.

    Raises:
      UserError: If a file cannot be written.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.record_writer import RecordWriter

    for old in folder.glob(f"tensorboard/**/{_EVENTS}"):  # Files of earlier runs.
        old.unlink()
    axes = [name for name in columns if name != SEED and results[name].nunique() > 1]
    numbers = results.drop(columns=[*columns, *_NO_SCORES], errors="ignore").select_dtypes(["number", "bool"])
    for setting, rows in results.groupby(axes, sort=False) if axes else [((), results)]:
        named = [f"{axis}={format_list([value])}" for axis, value in zip(axes, setting, strict=True)]
        with replacing(folder.joinpath("tensorboard", *named, _EVENTS)) as path:
            writer = RecordWriter(str(path))
            writer.write(Event(wall_time=0, file_version="brain.Event:2").SerializeToString())
            for seen, at_once in rows.groupby(SEEN):
                values = []
                for score in numbers:
                    interval = mean_interval(at_once[score].to_numpy())
                    ends = {"mean": interval.mean, "low": interval.low, "high": interval.high}
                    values += [
                        Summary.Value(tag=f"{score}/{end}", simple_value=number)
                        for end, number in ends.items()
                        if math.isfinite(number)
                    ]
                writer.write(Event(wall_time=0, step=int(seen), summary=Summary(value=values)).SerializeToString())
            writer.close()
