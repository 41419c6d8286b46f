"""The embedded set, IDX folders whole and damaged, and TFDS sets prepared by TFDS itself."""

import gzip
import importlib.resources
import io
import os

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from ojax import datasets
from ojax.datasets import DatasetError

RNG = np.random.default_rng(0)
IMAGES = {"train": RNG.integers(0, 256, (30, 4, 3), np.uint8), "t10k": RNG.integers(0, 256, (10, 4, 3), np.uint8)}
LABELS = {split: np.arange(len(images), dtype=np.uint8) % 5 for split, images in IMAGES.items()}


def idx_bytes(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def write_idx(folder, prefix="", gzipped=False):
    folder.mkdir(parents=True, exist_ok=True)
    for split in IMAGES:
        for kind, array in (("images-idx3", IMAGES[split]), ("labels-idx1", LABELS[split])):
            content, name = idx_bytes(array), f"{prefix}{split}-{kind}-ubyte"
            (folder / (name + ".gz" * gzipped)).write_bytes(gzip.compress(content) if gzipped else content)
    return folder


def assert_one_line_with_the_ways(caught, *words):
    message = str(caught.value)
    assert "\n" not in message
    for word in ("embedded", "data_dir", "idx:FOLDER", "npz:FILE", *words):
        assert word in message
    assert "--" not in message  # Flags are the commands'.


def test_the_embedded_set():
    data = datasets.load()
    assert data.train.inputs.shape == (10_000, 784) and data.test.inputs.shape == (2_000, 784)
    assert data.train.inputs.dtype == np.float32 and data.train.targets.dtype == np.int32
    assert data.train.inputs.min() == 0 and data.train.inputs.max() == 1
    assert np.bincount(data.train.targets).tolist() == [1000] * 10
    assert np.bincount(data.test.targets).tolist() == [200] * 10
    assert data.class_names[9] == "Ankle boot"
    # Shuffled, and real: trousers are taller than they are wide, and bags fill the frame.
    assert len(set(data.train.targets[:50].tolist())) == 10
    mean = {label: data.train.inputs[data.train.targets == label].mean() for label in range(10)}
    assert mean[8] > mean[1]


def test_the_embedded_file_is_small_and_has_its_licence():
    folder = importlib.resources.files("ojax.data")
    assert len(folder.joinpath("fashion_mnist.npz").read_bytes()) <= 6_000_000
    assert "Zalando" in folder.joinpath("LICENSE").read_text()


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("folder", ["plain", "sp ace/ünïcode"])
def test_idx_folders(tmp_path, gzipped, folder):
    data = datasets.load(f"idx:{write_idx(tmp_path / folder, gzipped=gzipped)}")
    np.testing.assert_array_equal(data.train.inputs, IMAGES["train"].reshape(30, 12).astype(np.float32) / 255)
    np.testing.assert_array_equal(data.test.targets, LABELS["t10k"])
    assert data.class_names == ("0", "1", "2", "3", "4")


def test_emnist_idx_files_are_turned_upright(tmp_path):
    data = datasets.load(f"idx:{write_idx(tmp_path, prefix='emnist-balanced-')}")
    np.testing.assert_array_equal(data.train.inputs.reshape(30, 3, 4)[0] * 255, IMAGES["train"][0].T)


def test_images_that_keep_their_shape(tmp_path):
    """For the embedded set, IDX folders, and grey and colour images of .npz files; vectors are refused."""
    flat, images = datasets.load(), datasets.load(flatten=False)
    assert images.train.inputs.shape == (10_000, 28, 28, 1)
    np.testing.assert_array_equal(images.test.inputs.reshape(2_000, -1), flat.test.inputs)
    folder = datasets.load(f"idx:{write_idx(tmp_path / 'idx')}", flatten=False)
    np.testing.assert_array_equal(folder.train.inputs[..., 0], IMAGES["train"].astype(np.float32) / 255)
    for shape in ((4, 5, 3), (4, 5), (20,)):
        x, path = RNG.uniform(size=(6, *shape)).astype(np.float32), tmp_path / "images.npz"
        np.savez(path, x=x, y=np.arange(6) % 2, x_test=x[:2], y_test=np.arange(2))
        if len(shape) == 1:
            with pytest.raises(DatasetError) as caught:
                datasets.load(f"npz:{path}", flatten=False)
            assert_one_line_with_the_ways(caught, "(20,)", "(height, width, channels)")
        else:
            found = datasets.load(f"npz:{path}", flatten=False).train.inputs
            np.testing.assert_array_equal(found, x.reshape(6, 4, 5, -1))
        np.testing.assert_array_equal(datasets.load(f"npz:{path}").train.inputs, x.reshape(6, -1))


def damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


TRAIN_IMAGES, TEST_LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (damage(TRAIN_IMAGES, lambda content: content[:-1]), [TRAIN_IMAGES, "truncated"]),
        (damage(TRAIN_IMAGES, lambda content: content + b"x"), [TRAIN_IMAGES, "longer"]),
        (damage(TRAIN_IMAGES, lambda content: content[:9]), [TRAIN_IMAGES, "no IDX file"]),
        (damage(TRAIN_IMAGES, lambda content: b""), [TRAIN_IMAGES, "no IDX file"]),
        (damage(TRAIN_IMAGES, lambda content: b"\x00\x00\x0d" + content[3:]), [TRAIN_IMAGES, "unsigned bytes"]),
        (damage(TRAIN_IMAGES, lambda content: content[:4] + b"\xff" * 12 + content[16:]), [TRAIN_IMAGES, "too large"]),
        (damage(TEST_LABELS, lambda content: idx_bytes(LABELS["t10k"][:9])), ["10 inputs", "9 targets"]),
        (damage(TRAIN_IMAGES, lambda content: idx_bytes(IMAGES["train"][:, :2])), ["different shapes"]),
        (damage(TRAIN_IMAGES, lambda content: idx_bytes(IMAGES["train"][:0])), ["0 inputs"]),
        (lambda folder: (folder / TEST_LABELS).unlink(), ["no file like t10k-labels"]),
        (
            lambda folder: (folder / "train-images.idx3-ubyte").write_bytes(b""),
            ["several files like train-images", "train-images.idx3-ubyte"],
        ),
        (lambda folder: ((folder / TRAIN_IMAGES).unlink(), (folder / TRAIN_IMAGES).mkdir()), [TRAIN_IMAGES]),
        (
            lambda folder: ((folder / TEST_LABELS).unlink(), (folder / TEST_LABELS).symlink_to(TEST_LABELS)),
            [TEST_LABELS],
        ),
    ],
)
def test_damaged_idx_folders(tmp_path, apply, words):
    apply(write_idx(tmp_path))
    with pytest.raises(DatasetError) as caught:
        datasets.load(f"idx:{tmp_path}")
    assert_one_line_with_the_ways(caught, *words)


@pytest.mark.parametrize("cut", [10, 40, -9])
def test_damaged_gzip(tmp_path, cut):
    path = write_idx(tmp_path, gzipped=True) / (TRAIN_IMAGES + ".gz")
    content = path.read_bytes()
    path.write_bytes(content[:cut] + b"damage" + content[cut:][6:] if cut > 10 else content[:cut])
    with pytest.raises(DatasetError) as caught:
        datasets.load(f"idx:{tmp_path}")
    assert_one_line_with_the_ways(caught, TRAIN_IMAGES)


def test_labels_of_one_class(tmp_path):
    folder = write_idx(tmp_path)
    for split in LABELS:
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros_like(LABELS[split])))
    with pytest.raises(DatasetError, match="at least two"):
        datasets.load(f"idx:{folder}")


@pytest.mark.parametrize(
    "name", ["mnits", "", "idx:", "idx:/no/such/folder", "../mnist", "emnist/no_such_config", "mnist", "no spaces"]
)
def test_sets_that_are_not_there(name, tmp_path):
    with pytest.raises(DatasetError) as caught:
        datasets.load(name, data_dir=tmp_path / "empty", cache_dir=tmp_path / "cache")
    assert_one_line_with_the_ways(caught, repr(name))
    assert not (tmp_path / "cache").exists()


def tfds_images(count, shape):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def prepare(base, data_dir, first=0, **options):
    """Lets TFDS prepare one of its sets from random images, in its own file format and without TensorFlow."""

    def split_generators(self, dl_manager):
        return {split: self.generate(count) for split, count in (("train", 60), ("test", 50))}

    def generate(self, count):
        for index, image in enumerate(tfds_images(count, (28, 28, 1))):
            encoded = io.BytesIO()  # TFDS would encode an array with TensorFlow.
            PIL.Image.fromarray(image[..., 0]).save(encoded, "PNG")
            encoded.seek(0)
            yield index, {"image": encoded, "label": index % 10 + first}

    body = {"_split_generators": split_generators, "generate": generate, "__module__": base.__module__}
    with tfds.core.registered.skip_registration():
        builder = type(base.__name__, (base,), body)(data_dir=data_dir, **options)
    builder.download_and_prepare(file_format="array_record")
    return builder


@pytest.fixture
def mnist(tmp_path):
    return prepare(tfds.image_classification.MNIST, tmp_path / "tfds")


def load_mnist(tmp_path):
    return datasets.load("mnist", data_dir=tmp_path / "tfds", cache_dir=tmp_path / "cache")


def test_a_prepared_tfds_set(tmp_path, mnist):
    data = load_mnist(tmp_path)
    want = tfds_images(60, (28, 28)).reshape(60, 784).astype(np.float32) / 255
    # TFDS shuffles what it writes, so compare as sets of images, each with its label.
    order = [int(np.flatnonzero((want == image).all(axis=1))[0]) for image in data.train.inputs]
    assert sorted(order) == list(range(60))
    np.testing.assert_array_equal(data.train.targets, np.array(order) % 10)
    assert data.test.inputs.shape == (50, 784) and data.class_names == tuple("0123456789")


def test_decoded_images_are_cached_until_the_files_change(tmp_path, mnist, monkeypatch):
    first = load_mnist(tmp_path)
    (cached,) = (tmp_path / "cache").iterdir()

    def refuse(*_):
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(datasets.prepared, "_decode", refuse)
        np.testing.assert_array_equal(load_mnist(tmp_path).train.inputs, first.train.inputs)
        os.utime(next(mnist.data_path.glob("*train*")), (1, 1))
        with pytest.raises(AssertionError, match="decoded again"):
            load_mnist(tmp_path)
    load_mnist(tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert cached.exists()


@pytest.mark.parametrize("content", [b"", b"PK nonsense", b"\x80\x04pickle"])
def test_a_damaged_cache_is_written_again(tmp_path, mnist, content):
    first = load_mnist(tmp_path)
    (cached,) = (tmp_path / "cache").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(content or whole[: len(whole) // 2])
    np.testing.assert_array_equal(load_mnist(tmp_path).train.inputs, first.train.inputs)
    assert cached.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, mnist):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(load_mnist(tmp_path).train.targets) == 60


def test_damaged_tfds_files(tmp_path, mnist):
    path = next(mnist.data_path.glob("*train.array_record*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DatasetError) as caught:
        load_mnist(tmp_path)
    assert_one_line_with_the_ways(caught, "mnist")
    (mnist.data_path / "dataset_info.json").write_text("{")
    with pytest.raises(DatasetError) as caught:
        load_mnist(tmp_path)
    assert_one_line_with_the_ways(caught, "mnist")


def test_emnist_is_turned_upright_and_named(tmp_path):
    prepare(tfds.image_classification.EMNIST, tmp_path / "tfds", config="balanced")
    data = datasets.load("emnist/balanced", data_dir=tmp_path / "tfds", cache_dir=tmp_path / "cache")
    assert len(data.class_names) == 47 and data.class_names[10] == "A" and data.class_names[-1] == "t"
    upright = tfds_images(50, (28, 28)).swapaxes(1, 2).reshape(50, 784)
    found = (data.test.inputs[:, None] * 255 == upright[None]).all(axis=-1)
    assert (found.sum(axis=1) == 1).all()


X, Y = RNG.normal(size=(8, 4, 3)), np.arange(8) % 3


def test_own_arrays_become_a_data_set():
    data = datasets.Dataset.from_arrays(X, Y, X[:2], Y[:2], class_names=["a", "b", "c"], name="mine")
    assert data.train.inputs.dtype == np.float32 and data.train.inputs.shape == (8, 4, 3)
    assert data.train.targets.dtype == np.int32 and data.num_train == 8
    assert (data.class_names, data.name) == (("a", "b", "c"), "mine")
    assert datasets.Dataset.from_arrays(X, Y, X, Y).class_names == ("0", "1", "2")
    regression = datasets.Dataset.from_arrays(X, X[:, 0], X, X[:, 0])
    assert regression.class_names == () and regression.test.targets.dtype == np.float32
    lists = datasets.Dataset.from_arrays([[1, 2], [3, 4]], [0, 1], [[5, 6]], [1])
    assert lists.train.inputs.dtype == np.float32


def spoiled(array, value):
    array = np.array(array, np.float64)
    array[3, 1] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X, Y[:7], X, Y), ["training", "8 inputs", "7 targets"]),
        ((X, Y, X[:5], Y), ["test", "5 inputs", "8 targets"]),
        ((X[:0], Y[:0], X, Y), ["training", "0 inputs"]),
        ((X, Y, X[:, :2], Y), ["x and x_test", "(4, 3)", "(2, 3)"]),
        ((X.astype(str), Y, X, Y), ["x must be an array of numbers"]),
        ((X * 1j, Y, X, Y), ["x must be an array of numbers", "complex"]),
        ((X, np.array(list("abcdefgh")), X, Y), ["y has labels that are not numbers", "np.unique(y, return_inverse=True)"]),
        ((1.0, Y, X, Y), ["x must be an array of numbers"]),
        ((spoiled(X[:, 0], np.nan), Y, X[:, 0], Y), ["x is not finite at [3, 1]", "nan"]),
        ((X, spoiled(X[:, 0], np.inf), X, X[:, 0]), ["y is not finite at [3, 1]", "inf"]),
        ((X, Y - 1, X, Y), ["0, 1, 2, ... without gaps", "from -1 to 2", "np.unique(y, return_inverse=True)"]),
        ((X, Y + 2**40, X, Y), ["32 bits"]),
        ((X, Y, X, Y.astype(float)), ["both be labels", "int64", "float64"]),
    ],
)
def test_arrays_that_make_no_data_set(arguments, words):
    with pytest.raises(DatasetError) as caught:
        datasets.Dataset.from_arrays(*arguments)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_class_names_go_with_labels():
    with pytest.raises(DatasetError, match="from 0 to 1"):
        datasets.Dataset.from_arrays(X, Y, X, Y, class_names=["a", "b"])
    with pytest.raises(DatasetError, match="class_names are for"):
        datasets.Dataset.from_arrays(X, X[:, 0], X, X[:, 0], class_names=["a", "b"])


def test_training_arrays_that_disagree():
    for train in ({"a": X, "b": X[:3]}, {}, {"a": np.float32(1)}):
        with pytest.raises(ValueError, match="same number of samples"):
            _ = datasets.Dataset(train, {}).num_train
