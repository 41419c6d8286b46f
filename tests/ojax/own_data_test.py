"""Users' own data: arrays of other tools, folders of unpacked archives, and the messages about them."""

import gzip
import json
import shutil
import struct
import warnings

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from ojax import datasets
from ojax.datasets import Dataset, DatasetError, checking, description
from tests.ojax.datasets_test import IMAGES, LABELS, idx_bytes, prepare, write_idx

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (12, 4, 3), np.uint8), np.arange(12) % 3
X[0, 0, :2] = 0, 255
UNIT = X.astype(np.float32) / 255


def own(x=UNIT, y=Y, x_test=None, y_test=None, **options):
    return Dataset.from_arrays(x, y, x if x_test is None else x_test, y if y_test is None else y_test, **options)


def written(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def refused(*words, load=own, **options):
    with pytest.raises(DatasetError) as caught:
        load(**options)
    message = str(caught.value)
    assert "\n" not in message and "--" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("dtype", [np.uint8, ">u2", np.uint16])
def test_8_bit_and_16_bit_inputs_are_scaled_as_those_of_idx_files(tmp_path, dtype):
    unit = 255 if np.dtype(dtype).itemsize == 1 else 65_535
    x = (UNIT * unit).round().astype(dtype)
    for data in (own(x), datasets.load(written(tmp_path / "x.npz", x=x, y=Y, x_test=x, y_test=Y))):
        assert data.train.inputs.dtype == np.float32
        np.testing.assert_allclose(data.train.inputs.reshape(UNIT.shape), UNIT, atol=0.5 / 255)
    np.testing.assert_array_equal(own(X).test.inputs, UNIT)
    dark = own(x, x_test=np.minimum(x, 1))  # The training images show that these are not 0 and 1.
    assert 0 < dark.test.inputs.max() < 4e-3


def test_zeros_and_ones_stay_as_they_are():
    bits = (X > 127).astype(np.uint8)
    for x in (bits, bits.astype(bool), bits.astype(np.uint16)):
        np.testing.assert_array_equal(own(x).train.inputs, bits)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (X.astype(float), "x is from 0 to 255.*x = x / 255"),
        (X.astype(np.int64), "x = x / 255"),
        (X.astype(np.float64) * 257, "x = x / 65535"),
        (X.astype(float) / 255 * 16, "x = x / 16"),
        (X.astype(float) - 128, r"x = \(x - x.mean\(\)\) / x.std\(\)"),
    ],
)
def test_inputs_far_from_one_are_told_with_what_to_do(x, words):
    with pytest.warns(UserWarning, match=words):
        own(x)


def test_standardized_inputs_and_bfloat16_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own((UNIT - UNIT.mean()) / UNIT.std())
        np.testing.assert_allclose(own(UNIT.astype(ml_dtypes.bfloat16)).train.inputs, UNIT, atol=4e-3)


def test_training_and_test_inputs_of_two_units_are_told():
    with pytest.warns(UserWarning, match="far beyond"):
        own(X, x_test=X.astype(float))


RENUMBERED = "np.unique(y, return_inverse=True)"


@pytest.mark.parametrize("labels", [Y + 1, np.array([10, 200, 999] * 4), np.array([-1, 1] * 6), Y * 10**9, Y * 2])
def test_labels_with_gaps_are_refused_with_the_line_that_numbers_them(tmp_path, labels):
    refused("without gaps", RENUMBERED, y=labels)
    name = written(tmp_path / "x.npz", x=UNIT, y=labels, x_test=UNIT, y_test=labels)
    refused("without gaps", RENUMBERED, load=datasets.load, name=name)
    classes, y = np.unique(labels, return_inverse=True)
    assert own(y=y, y_test=np.searchsorted(classes, labels)).class_names == tuple(map(str, range(len(classes))))


def test_a_class_may_occur_in_the_test_labels_alone_or_be_named():
    assert own(y=np.array([0, 1, 3] * 4), y_test=np.arange(12) % 4).class_names == ("0", "1", "2", "3")
    assert own(y=np.array([0, 2] * 6), class_names=["a", "b", "c"]).class_names == ("a", "b", "c")


@pytest.mark.parametrize("labels", [Y[:, None], Y[:, None].astype(np.uint8), pd.Series(Y), pd.DataFrame({"y": Y})])
def test_labels_of_other_tools(labels):
    np.testing.assert_array_equal(own(y=labels).train.targets, Y)
    np.testing.assert_array_equal(own(y=labels, y_test=Y).test.targets, Y)


def test_only_labels_may_have_an_axis_of_length_1_in_one_part():
    refused("x and x_test have samples of different shapes", x=UNIT[:, 0, 0], x_test=UNIT[:, 0, :1])
    refused("y and y_test have samples of different shapes", y=UNIT[:, 0, 0], y_test=UNIT[:, 0, :1])


def test_booleans_are_two_classes():
    data = own(y=Y > 0)
    assert data.class_names == ("0", "1") and data.train.targets.tolist() == (Y > 0).astype(int).tolist()


@pytest.mark.parametrize("dtype", ["U5", "S5", object, "string"])
def test_words_are_no_labels(dtype):
    words = np.array(["cat", "dog", "emu"] * 4)
    refused("not numbers", RENUMBERED, y=pd.Series(words, dtype=dtype) if dtype == "string" else words.astype(dtype))


@pytest.mark.parametrize("dtype", [int, bool, np.uint8])
def test_whole_one_hot_targets_are_refused_with_the_line_that_makes_labels(dtype):
    refused("(12, 3)", "y.argmax(axis=1)", y=np.eye(3)[Y].astype(dtype))


def classifier(**options):
    checking.require_labels(own(**options))


def test_a_classifier_says_how_its_targets_become_labels():
    refused("one-hot", "y.argmax(axis=1)", load=classifier, y=np.eye(3)[Y])
    refused("y.astype(int)", load=classifier, y=Y.astype(float))
    refused("y.astype(int)", load=classifier, y=Y[:, None].astype(float))
    refused("numbers to predict", load=classifier, y=UNIT[:, 0, 0])
    refused("at least two", load=classifier, y=Y * 0)
    with pytest.raises(DatasetError, match="numbers to predict"):
        checking.require_numbers(own())


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_numbers_beyond_float32_are_refused(value):
    far = UNIT.astype(float)
    far[3, 1, 2] = value
    refused("x_test", "beyond float32", "[3, 1, 2]", x_test=far)
    refused("y is beyond float32", y=far[:, 1, 2], y_test=UNIT[:, 0, 0])


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 20, 24)])
def test_channels_first_images_are_refused_where_their_shape_matters(tmp_path, shape):
    x = RNG.uniform(size=(6, *shape)).astype(np.float32)
    name = written(tmp_path / "x.npz", x=x, y=np.arange(6) % 2, x_test=x, y_test=np.arange(6) % 2)
    refused("channels first", "x.transpose(0, 2, 3, 1)", load=datasets.load, name=name, flatten=False)
    assert datasets.load(name).train.inputs.shape == (6, np.prod(shape))
    last = x.transpose(0, 2, 3, 1)
    name = written(tmp_path / "last.npz", x=last, y=np.arange(6) % 2, x_test=last, y_test=np.arange(6) % 2)
    np.testing.assert_array_equal(datasets.load(name, flatten=False).train.inputs, last)


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("X_train", "y_train", "X_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_arrays_by_the_names_of_other_tools(tmp_path, names):
    path = tmp_path / "mnist.npz"
    for name in (written(path, **dict(zip(names, (X, Y[:, None], X, Y[:, None]), strict=True))), path, str(path)):
        data = datasets.load(name)
        np.testing.assert_array_equal(data.train.inputs, UNIT.reshape(12, -1))
        assert data.name == f"npz:{path}"


def test_files_that_are_no_npz_say_what_they_are(tmp_path):
    np.save(tmp_path / "x.npy", X)
    refused("x.npy is one array", "np.savez", load=datasets.load, name=tmp_path / "x.npy")
    (tmp_path / "x.npz").write_text("x,y\n")
    refused("another kind of file", load=datasets.load, name=tmp_path / "x.npz")
    name = written(tmp_path / "o.npz", x=X, y=np.array(["a", "b", "c"] * 4, object), x_test=X, y_test=Y)
    refused("y.astype(str)", load=datasets.load, name=name)
    refused("has no array x_test, only x, y;", load=datasets.load, name=written(tmp_path / "s.npz", x=X, y=Y))


def same_as_the_files(data, transposed=False):
    images = IMAGES["train"].swapaxes(1, 2) if transposed else IMAGES["train"]
    np.testing.assert_array_equal(data.train.inputs, images.reshape(30, 12).astype(np.float32) / 255)
    np.testing.assert_array_equal(data.test.targets, LABELS["t10k"])


def test_an_idx_folder_as_torchvision_leaves_it(tmp_path):
    """Packed and unpacked files next to each other, in ROOT/MNIST/raw."""
    raw = write_idx(tmp_path / "MNIST" / "raw")
    write_idx(raw, gzipped=True)
    for place in (raw, raw.parent, tmp_path):
        same_as_the_files(datasets.load(f"idx:{place}"))
    same_as_the_files(datasets.load(tmp_path))
    write_idx(tmp_path / "FashionMNIST" / "raw")
    refused("several sets", f"idx:{raw}", f"idx:{tmp_path}/FashionMNIST/raw", load=datasets.load, name=f"idx:{tmp_path}")


def test_an_idx_folder_as_kaggle_leaves_it(tmp_path):
    """Files with a dot in their names, and folders of the same names with the same files."""
    write_idx(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        content = path.read_bytes()
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
        path.mkdir()
        (path / path.name).write_bytes(content)
    same_as_the_files(datasets.load(f"idx:{tmp_path}"))
    for path in tmp_path.glob("*.idx?-ubyte"):
        path.unlink()
    same_as_the_files(datasets.load(f"idx:{tmp_path}"))


def test_files_called_gz_that_are_unpacked_and_the_other_way_round(tmp_path):
    write_idx(tmp_path)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        if number % 2:
            path.rename(path.with_name(f"{path.name}.gz"))
        else:
            path.write_bytes(gzip.compress(path.read_bytes()))
    same_as_the_files(datasets.load(f"idx:{tmp_path}"))


def test_one_of_several_sets_in_a_folder_is_chosen_by_name(tmp_path):
    for name in ("balanced", "letters"):
        write_idx(tmp_path, prefix=f"emnist-{name}-")
    refused("several sets", "emnist-balanced", "emnist-letters", load=datasets.load, name=f"idx:{tmp_path}")
    for name in ("emnist-balanced", "balanced"):
        same_as_the_files(datasets.load(f"idx:{tmp_path}/{name}"), transposed=True)
    refused("no set of that name", load=datasets.load, name=f"idx:{tmp_path}/byclass")
    for split in LABELS:  # The letters are numbered from 1.
        (tmp_path / f"emnist-letters-{split}-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS[split] + np.uint8(1)))
    same_as_the_files(datasets.load(f"idx:{tmp_path}/emnist-letters"), transposed=True)


def crc(data):
    """Returns the masked CRC-32C of TensorFlow's record files."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def as_tfrecord(folder):
    """Converts a prepared folder to TFDS's default format with TensorFlow: the same records in its own files."""
    for path in list(folder.glob("*.array_record-*")):
        reader = array_record_module.ArrayRecordReader(str(path))
        with path.with_name(path.name.replace("array_record", "tfrecord")).open("wb") as file:
            for record in reader.read_all():
                length = struct.pack("<Q", len(record))
                file.write(length + crc(length) + record + crc(record))
        reader.close()
        path.unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(tfds.image_classification.MNIST, folder)
    return folder


def load_mnist(folder, tmp_path, name="mnist"):
    return datasets.load(name, data_dir=folder, cache_dir=tmp_path / "cache")


def test_a_set_prepared_as_tfrecord_is_read_without_tensorflow(tmp_path, prepared):
    folder = tmp_path / "tfds"
    shutil.copytree(prepared, folder)
    (version,) = folder.glob("mnist/*")
    want = load_mnist(prepared, tmp_path)
    as_tfrecord(version)
    found = load_mnist(folder, tmp_path)
    assert not list(version.glob("*array_record*"))
    np.testing.assert_array_equal(found.train.inputs, want.train.inputs)
    np.testing.assert_array_equal(found.test.targets, want.test.targets)
    path = next(version.glob("*train.tfrecord*"))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:9], whole[: len(whole) // 2], b"", whole + whole, b"\xff" * len(whole)):
        path.write_bytes(damaged)
        refused("train split", load=lambda: load_mnist(folder, tmp_path))


@pytest.mark.parametrize("version", ["3.*.*", "*.*.*", "3.0.*", "3.0.1"])
def test_versions_of_tfds(tmp_path, prepared, version):
    assert load_mnist(prepared, tmp_path, f"mnist:{version}").num_train == 60


def test_names_that_tfds_has_with_a_configuration(tmp_path):
    for name in ("emnist", "emnist/no_such"):
        refused("emnist/balanced", "emnist/letters", load=lambda name=name: load_mnist(tmp_path, tmp_path, name))


def test_the_folder_of_a_set_in_place_of_the_one_above(tmp_path, prepared):
    for place in (prepared / "mnist", next(prepared.glob("mnist/*"))):
        with pytest.raises(DatasetError, match="give the one above"):
            load_mnist(place, tmp_path)


def test_letters_are_numbered_from_0(tmp_path):
    prepare(tfds.image_classification.EMNIST, tmp_path / "tfds", first=1, config="letters")
    data = datasets.load("emnist/letters", data_dir=tmp_path / "tfds", cache_dir=tmp_path / "cache")
    assert data.class_names[0] == "A" and len(data.class_names) == 26


def test_the_description_of_a_data_set():
    found = datasets.facts(own(X, y_test=Y[:9], x_test=X[:9], name="mine"))
    assert json.loads(json.dumps(found)) == found
    assert (found["shape"], found["range"], found["classes"], found["samples_per_class"]) == ([4, 3], [0, 1], 3, [4, 4])
    line = description.described(found)
    assert line == ("mine: 12 training and 9 test samples of shape 4 x 3, from 0 to 1, in 3 classes of 4 training samples")
    stream = datasets.facts(Dataset(np.arange(5), {}))
    assert description.described(stream) == "arrays: 5 training and 0 test samples"
