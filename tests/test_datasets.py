import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featherfed.datasets import sources
from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.folder import load_image_folder
from featherfed.datasets.idx import has_idx_files
from featherfed.datasets.partition import PartitionError, partition
from featherfed.datasets.sources import load_client_data, load_train_test
from featherfed.tasks.task import Input, Target, TargetKind, Task, image_task

PETS = image_task((4, 5, 1), ["bird", "cat", "dog"])


def make(count: int = 6, shape: tuple[int, ...] = (4, 5, 1), classes: int = 3) -> Dataset:
    images = np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8)
    names = [f"class {i}" for i in range(classes)]
    return Dataset.from_images(images, np.arange(count) % classes, names)


# --- Dataset ---


def test_shape_and_length() -> None:
    data = make(shape=(4, 5))
    assert data.images.shape == (6, 4, 5, 1)
    assert (data.input_shape, data.num_classes, len(data)) == ((4, 5, 1), 3, 6)


def test_take_keeps_class_names() -> None:
    part = make().take([4, 1])
    assert part.labels.tolist() == [1, 1]
    assert part.num_classes == 3


@pytest.mark.parametrize("indices", [[], [6]])
def test_take_refuses(indices: list[int]) -> None:
    with pytest.raises(DatasetError, match="cannot take"):
        make().take(indices)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3), np.uint8), [0, 0], r"shape \(2, 3\)"),
        (np.zeros((2, 3, 3, 1), np.int32), [0, 0], "int32"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, 2], "label 2 of example 1"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0, -1], "label -1"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0], "inputs and targets hold 2 and 1 examples"),
        (np.zeros((2, 3, 3, 1), np.uint8), [[0, 0], [0, 0]], r"labels have shape \(2, 2\)"),
        (np.zeros((0, 3, 3, 1), np.uint8), np.zeros(0, np.int64), "empty"),
        (np.zeros((2, 3, 3, 1), np.uint8), [0.0, 1.0], "labels are float64"),
        (np.full((2, 3, 3, 1), 1.5), [0, 1], "span 1.5 to 1.5"),
        (np.full((2, 3, 3, 1), np.nan), [0, 1], "span nan"),
    ],
)
def test_invalid_arrays(images: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        Dataset.from_images(images, labels, ["a", "b"])


def test_arrays_that_are_no_examples_are_refused() -> None:
    for inputs, targets, message in (
        ((), None, "first axis counts examples"),
        ((np.float32(1),), None, "first axis counts examples"),
        ((np.zeros((2, 3)), np.zeros(3)), None, "2 and 3 examples"),
        ((np.zeros((2, 3)),), np.zeros((3, 1)), "2 and 3 examples"),
        ((np.zeros((2, 0)),), np.zeros(2), r"shape \(2, 0\): the data set is empty"),
    ):
        with pytest.raises(DatasetError, match=message):
            Dataset(inputs, targets)
    with pytest.raises(DatasetError, match="no labels"):
        _ = Dataset((np.zeros((2, 3)),)).labels


# --- what a task asks for ---


def test_looser_arrays_become_the_tasks() -> None:
    given = Dataset((np.zeros((2, 4, 5)),), np.array([[1], [2]], np.uint8))
    data = given.fit(PETS)
    assert (data.images.shape, data.images.dtype) == ((2, 4, 5, 1), np.uint8)
    assert (data.labels.tolist(), data.labels.dtype) == ([1, 2], np.int64)
    assert data.class_names == ("bird", "cat", "dog")
    named = Dataset(given.inputs, np.array(["dog", "bird"])).fit(PETS)
    assert named.labels.tolist() == [2, 0]


def test_numbered_classes_are_the_tasks_by_number() -> None:
    images = np.zeros((2, 4, 5), np.uint8)
    assert Dataset.from_images(images, [0, 1]).fit(PETS).class_names == PETS.target.class_names
    with pytest.raises(DatasetError, match="targets go from 0 to 3; the task has 0 to 2"):
        Dataset.from_images(images, [0, 3]).fit(PETS)
    with pytest.raises(DatasetError, match="the classes are dog, cat; the task has bird, cat, dog"):
        Dataset.from_images(images, [0, 1], ["dog", "cat"]).fit(PETS)


VALUES = Task(
    (Input("x", "float32", (3,)), Input("tokens", "int32", (2,), vocabulary=5)),
    Target(TargetKind.VALUES),
)


def test_several_inputs_and_numbers_fit() -> None:
    data = Dataset((np.arange(6).reshape(2, 3), np.ones((2, 2), np.uint8)), np.ones((2, 1), int))
    fitted = data.fit(VALUES)
    assert [array.dtype for array in fitted.inputs] == [np.float32, np.int32]
    assert fitted.targets is not None
    assert (fitted.targets.shape, fitted.targets.dtype) == ((2,), np.float32)
    labels = Task(VALUES.inputs, Target(TargetKind.LABELS, (2,), ("a", "b")))
    flags = Dataset(data.inputs, np.array([[True, False], [True, True]])).fit(labels)
    assert flags.targets is not None
    assert (flags.targets.tolist(), flags.targets.dtype) == ([[1, 0], [1, 1]], np.uint8)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        ([np.zeros((2, 3))], np.zeros(2), "1 inputs; the task needs x, tokens"),
        ([np.zeros((2, 4)), np.zeros((2, 2), int)], np.zeros(2), r"'x' must be float32 \[3\]"),
        ([np.full((2, 3), np.nan), np.zeros((2, 2), int)], np.zeros(2), "not finite .example 0"),
        ([np.zeros((2, 3)), np.zeros((2, 2))], np.zeros(2), "'tokens': float64; give integers"),
        ([np.zeros((2, 3)), np.full((2, 2), 5)], np.zeros(2), "tokens from 5 to 5"),
        ([np.array([["a"] * 3] * 2), np.zeros((2, 2), int)], np.zeros(2), "give numbers"),
        ([np.zeros((2, 3)), np.zeros((2, 2), int)], None, "the data have no targets"),
        ([np.zeros((2, 3)), np.zeros((2, 2), int)], np.full(2, np.inf), "target is not finite"),
    ],
)
def test_what_is_not_the_tasks_is_refused(
    inputs: list[np.ndarray], targets: np.ndarray | None, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        Dataset(tuple(inputs), targets).fit(VALUES)


def test_several_inputs_are_saved_and_loaded(tmp_path: Path) -> None:
    data = Dataset((np.ones((2, 3), np.float32), np.zeros((2, 2), np.int32)), np.zeros(2))
    data.save(tmp_path / "data.npz")
    again = Dataset.load(tmp_path / "data.npz")
    assert [array.tolist() for array in again.inputs] == [a.tolist() for a in data.inputs]
    np.savez(tmp_path / "named.npz", tokens=data.inputs[1], x=data.inputs[0], y=data.targets)
    found = load_client_data(str(tmp_path / "named.npz"), VALUES)
    assert [array.dtype for array in found.inputs] == [np.float32, np.int32]


def test_save_and_load(tmp_path: Path) -> None:
    data = make()
    data.save(tmp_path / "data.npz")
    again = Dataset.load(tmp_path / "data.npz")
    np.testing.assert_array_equal(again.images, data.images)
    np.testing.assert_array_equal(again.labels, data.labels)
    assert again.class_names == data.class_names


def test_float_images_become_bytes(tmp_path: Path) -> None:
    images = np.array([0.0, 0.5, 1.0]).reshape(3, 1, 1)
    np.savez(tmp_path / "f.npz", images=images, labels=[0, 1, 1], class_names=["a", "b"])
    data = Dataset.load(tmp_path / "f.npz")
    assert data.images.ravel().tolist() == [0, 128, 255]


def test_load_errors(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    with pytest.raises(DatasetError, match="no such file"):
        Dataset.load(path)
    path.write_bytes(b"not a zip")
    with pytest.raises(DatasetError, match=r"not a readable \.npz"):
        Dataset.load(path)
    np.savez(path, images=np.zeros((1, 2, 2), np.uint8))
    with pytest.raises(DatasetError, match="holds images; it needs x and y"):
        Dataset.load(path)
    np.savez(path, images=np.zeros((1, 2, 2)) + 7, labels=[0], class_names=["a"])
    with pytest.raises(DatasetError, match=r"bad\.npz: images: floats span 7"):
        Dataset.load(path)
    np.savez(path, images=np.array([{}]), labels=[0], class_names=["a"])
    with pytest.raises(DatasetError, match="not a readable"):
        Dataset.load(path)


# --- named sources ---


def test_digits() -> None:
    train, test = load_train_test("digits")
    assert (len(train), len(test), train.input_shape) == (1437, 360, (8, 8, 1))
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert set(test.labels.tolist()) == set(range(10))
    again, _ = load_train_test("digits")
    np.testing.assert_array_equal(train.images, again.images)


@pytest.mark.skipif(
    not any(map(has_idx_files, sources.fashion_mnist_folders())),
    reason="Fashion-MNIST's idx files are not here: apt-get install dataset-fashion-mnist",
)
def test_fashion_mnist() -> None:
    train, test = load_train_test("fashion-mnist")
    assert (len(train), len(test), train.input_shape) == (60000, 10000, (28, 28, 1))
    assert train.class_names[9] == "Ankle boot"
    assert train.labels[:3].tolist() == [9, 0, 0]
    assert np.bincount(test.labels).tolist() == [1000] * 10


def test_fashion_mnist_missing_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sources, "_FASHION_SYSTEM_FOLDER", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEATHERFED_DATA", raising=False)
    with pytest.raises(DatasetError, match="sudo apt-get install dataset-fashion-mnist") as caught:
        load_train_test("fashion-mnist")
    assert "tf_keras.datasets.fashion_mnist.load_data()" in str(caught.value)


def write_idx(folder: Path, *, suffix: str = ".gz") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 6), ("t10k", 3)):
        images = np.arange(count * 4, dtype=np.uint8).tobytes()
        labels = bytes(i % 3 for i in range(count))
        header = np.array([0x803, count, 2, 2], ">u4").tobytes()
        pairs = {
            "images-idx3-ubyte": header + images,
            "labels-idx1-ubyte": np.array([0x801, count], ">u4").tobytes() + labels,
        }
        for kind, data in pairs.items():
            packed = gzip.compress(data) if suffix else data
            (folder / f"{split}-{kind}{suffix}").write_bytes(packed)


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_folder(tmp_path: Path, suffix: str) -> None:
    write_idx(tmp_path, suffix=suffix)
    train, test = load_train_test(tmp_path)
    assert (len(train), len(test), train.class_names) == (6, 3, ("0", "1", "2"))
    assert train.images[1].ravel().tolist() == [4, 5, 6, 7]


def test_fashion_mnist_from_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_idx(tmp_path / "fashion-mnist")
    monkeypatch.setenv("FEATHERFED_DATA", str(tmp_path))
    train, _ = load_train_test("fashion-mnist")
    assert len(train) == 6
    assert train.class_names == sources.FASHION_CLASSES


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: gzip.compress(data)[:-9], "cannot be read"),
        (lambda data: b"plain", "cannot be read"),
        (lambda data: gzip.compress(data[:-1]), "its header says"),
        (lambda data: gzip.compress(data[:6]), "not an idx file"),
        (lambda data: gzip.compress(b"\0\0\x0d\x03" + data[4:]), "not an idx file"),
        (lambda data: gzip.compress(data[:4] + b"\xff" * 12 + data[16:]), "its header says"),
    ],
)
def test_damaged_idx(tmp_path: Path, damage, message: str) -> None:
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(gzip.decompress(path.read_bytes())))
    with pytest.raises(DatasetError, match=message):
        load_train_test(tmp_path)


# --- folders ---


def write_images(folder: Path, mode: str = "L", size: tuple[int, int] = (5, 4)) -> None:
    image = pytest.importorskip("PIL.Image")
    for name, color in (("cat", 10), ("dog", 200)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(2):
            picture = image.new("L", size, color).convert(mode)
            picture.save(folder / name / f"{index}.png")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)])
def test_image_folder(tmp_path: Path, mode: str, channels: int) -> None:
    write_images(tmp_path, mode)
    (tmp_path / "bird").mkdir()
    data = load_image_folder(tmp_path)
    assert data.images.shape == (4, 4, 5, channels)
    assert data.class_names == ("bird", "cat", "dog")
    assert data.labels.tolist() == [1, 1, 2, 2]
    assert data.images[0, 0, 0, 0] == 10


def test_image_folder_mixes_grey_and_colour(tmp_path: Path) -> None:
    write_images(tmp_path)
    write_images(tmp_path / "colour", "RGB")
    (tmp_path / "colour/cat/0.png").rename(tmp_path / "cat/2.png")
    for path in sorted((tmp_path / "colour").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "colour").rmdir()
    assert load_image_folder(tmp_path).input_shape == (4, 5, 3)


def test_image_folder_takes_the_runs_classes_and_size(tmp_path: Path) -> None:
    write_images(tmp_path)
    data = load_client_data(str(tmp_path), image_task((2, 2, 3), ["dog", "cow", "cat"]))
    assert data.labels.tolist() == [2, 2, 0, 0]
    assert data.input_shape == (2, 2, 3)
    assert data.images[0].min() == data.images[0].max() == 10
    with pytest.raises(DatasetError, match="dog: not one of the classes cat, cow"):
        load_client_data(str(tmp_path), image_task((4, 5, 1), ["cat", "cow"]))
    with pytest.raises(DatasetError, match="the task is not about pictures"):
        load_client_data(str(tmp_path), VALUES)


def test_image_folder_errors(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(DatasetError, match="no images"):
        load_client_data(str(tmp_path), PETS)
    write_images(tmp_path)
    image.new("L", (9, 9)).save(tmp_path / "dog/1.png")
    with pytest.raises(DatasetError, match=r"dog/1\.png: 9x9 pixels, but .*cat/0\.png is 5x4"):
        load_image_folder(tmp_path)
    assert load_client_data(str(tmp_path), PETS).input_shape == (4, 5, 1)
    image.new("I;16", (5, 4)).save(tmp_path / "dog/1.png")
    with pytest.raises(DatasetError, match="8 bits a channel"):
        load_client_data(str(tmp_path), PETS)
    (tmp_path / "dog/1.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"dog/1\.png: not a readable image"):
        load_client_data(str(tmp_path), PETS)


def test_pillow_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DatasetError, match=r"pip install featherfed\[images\]"):
        load_client_data(str(tmp_path), PETS)


def test_train_test_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    write_images(tmp_path / "test")
    train, test = load_train_test(tmp_path)
    assert train.class_names == test.class_names == ("cat", "dog")
    write_images(tmp_path / "test", size=(3, 3))
    with pytest.raises(DatasetError, match="input_shape is"):
        load_train_test(tmp_path)


def test_npz_folder(tmp_path: Path) -> None:
    make(8).save(tmp_path / "train.npz")
    make(4).save(tmp_path / "test.npz")
    train, test = load_train_test(str(tmp_path))
    assert (len(train), len(test)) == (8, 4)


def test_unknown_places(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="unknown data set 'mnst': use digits, fashion-mnist"):
        load_train_test("mnst")
    with pytest.raises(DatasetError, match="holds neither"):
        load_train_test(tmp_path)
    with pytest.raises(DatasetError, match="no such file or folder"):
        load_client_data("nowhere.npz", PETS)


# --- functions ---


def test_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "garden_data.py").write_text(
        "import numpy as np\n"
        "def pair(): return np.zeros((3, 2, 2), np.uint8), [0, 1, 1]\n"
        "def bad(): return 7\n"
        "def odd(): return np.zeros((3, 2, 2), np.uint8), [0]\n"
        "def named():\n"
        "    from featherfed.datasets.dataset import Dataset\n"
        "    return Dataset.from_images(*pair(), ['x', 'y'])\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = image_task((2, 2, 1), ["x", "y"])
    for name in ("pair", "named"):
        data = load_client_data(f"garden_data:{name}", task)
        assert data.class_names == ("x", "y")
        assert data.labels.tolist() == [0, 1, 1]
    with pytest.raises(DatasetError, match="the classes are x, y; the task has a, b"):
        load_client_data("garden_data:named", image_task((2, 2, 1), ["a", "b"]))
    for name, message in {
        "bad": "returned int",
        "odd": "inputs and targets hold 3 and 1 examples",
        "number": "no function number",
        "none": "no function none",
    }.items():
        with pytest.raises(DatasetError, match=message):
            load_client_data(f"garden_data:{name}", task)
    with pytest.raises(DatasetError, match="cannot import no_such_module"):
        load_client_data("no_such_module:f", task)


# --- partition ---


def test_iid_shards_are_contiguous() -> None:
    shards = partition(np.zeros(11, np.int64), 3, "iid", 0)
    assert [shard.tolist() for shard in shards] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 9), min_size=1, max_size=80),
    share=st.floats(0, 1),
    scheme=st.sampled_from(
        ["iid", "dirichlet:1e-300", "dirichlet:0.05", "dirichlet:3", "dirichlet:1e300"]
    ),
    seed=st.integers(0, 2**32),
)
def test_partition_is_disjoint_and_complete(
    labels: list[int], share: float, scheme: str, seed: int
) -> None:
    clients = max(1, int(len(labels) * share))
    parts = partition(np.array(labels), clients, scheme, seed)
    assert len(parts) == clients
    assert min(map(len, parts)) >= 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    again = partition(np.array(labels), clients, scheme, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_dirichlet_skews() -> None:
    labels = np.arange(10000) % 10

    def top_share(scheme: str) -> float:
        parts = partition(labels, 5, scheme, 3)
        return float(np.mean([np.bincount(labels[part]).max() / len(part) for part in parts]))

    assert top_share("dirichlet:0.1") > 2 * top_share("dirichlet:100")


@pytest.mark.parametrize(
    "scheme",
    [
        "x",
        "iid:3",
        "dirichlet",
        "dirichlet:",
        "dirichlet:0",
        "dirichlet:-1",
        "dirichlet:nan",
        "dirichlet:inf",
        "dirichlet:a",
    ],
)
def test_bad_scheme(scheme: str) -> None:
    with pytest.raises(PartitionError, match=r"use iid or dirichlet:ALPHA with ALPHA > 0, e\.g\."):
        partition(np.zeros(5, np.int64), 2, scheme, 0)


@pytest.mark.parametrize("clients", [0, 6])
def test_bad_number_of_clients(clients: int) -> None:
    with pytest.raises(PartitionError, match=f"5 examples between {clients} clients"):
        partition(np.zeros(5, np.int64), clients, "iid", 0)
