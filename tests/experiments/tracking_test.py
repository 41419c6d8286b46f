"""Event files for TensorBoard: their content, and that writing them again does not change them."""

import struct
import sys

import numpy as np
import pandas as pd
import pytest

import experiments
from experiments.common.errors import UserError
from experiments.common.statistics import mean_interval

pytestmark = pytest.mark.compiled_quickly

SMALL = {"widths": [8], "learning_rate": [1e-2, 1e-1], "oja_rate": [0, 1e-3], "seeds": 3, "num_train": 64, "evals": 2}


def read(path):
    """Returns the value at each step by tag, from records of length, its checksum, the event, and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found, data = {}, path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*tfevents*")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return experiments.study("deep_mlp", **SMALL, workdir=tmp_path_factory.mktemp("study") / "one", tensorboard=True)


def test_each_setting_has_its_mean_and_interval_over_seeds(study):
    folder = study.folder / "tensorboard"
    assert len(files(folder)) == 4
    found = read(folder / "learning_rate=0.01" / "oja_rate=0.001" / "events.out.tfevents.0")
    rows = study.results.table.query("learning_rate == 0.01 and oja_rate == 0.001")
    assert {"test_accuracy/mean", "train_loss/low", "weight_norm_1/high"} <= set(found)
    assert not [tag for tag in found if tag.startswith(("seed", "depth", "diverged_at", "examples"))]
    for seen, at_once in rows.groupby("examples_seen"):
        interval = mean_interval(at_once["test_loss"])
        for end in ("mean", "low", "high"):
            np.testing.assert_allclose(found[f"test_loss/{end}"][seen], getattr(interval, end), rtol=1e-6)


def test_written_again_they_are_the_same(study, tmp_path):
    """By the same command on the finished folder, and after a study that was trained without them."""
    written = files(study.folder)
    experiments.study("deep_mlp", **SMALL, workdir=study.folder, tensorboard=True)
    assert files(study.folder) == written
    experiments.study("deep_mlp", **SMALL, workdir=tmp_path / "two")
    assert not files(tmp_path / "two")
    again = experiments.study("deep_mlp", **SMALL, workdir=tmp_path / "two", tensorboard=True)
    assert files(tmp_path / "two") == written
    pd.testing.assert_frame_equal(again.results.table, study.results.table)


def test_a_missing_package_or_workdir_is_reported_before_any_work(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="tensorboard needs a workdir"):
        experiments.study("deep_mlp", **SMALL, tensorboard=True)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="pip install tensorboardX"):
        experiments.study("deep_mlp", **SMALL, workdir=tmp_path / "one", tensorboard=True)
    assert not (tmp_path / "one").exists()
