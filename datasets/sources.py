"""Loads data sets by name, folder, file or function."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.datasets.folder import class_folders, load_image_folder
from featherfed.datasets.function import call_function, find_function
from featherfed.datasets.idx import has_idx_files, load_idx_folder
from featherfed.datasets.table import is_table, load_table, load_table_inputs
from featherfed.tasks.task import Task, Values

NAMES = ("digits", "fashion-mnist")

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_DIGITS_TEST = 360
_CALIBRATES = 5
"""One of so many examples of a test set is used for the ranges of int8 instead."""
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_train_test(name_or_path: str | Path, task: Task | None = None) -> tuple[Dataset, Dataset]:
    """Return the train and test sets of a name or a folder.

    "digits": scikit-learn's 8x8 digits, 1437 and 360 examples, always the same split.
    "fashion-mnist": 60000 and 10000 examples; `fashion_mnist_folders` says where it is looked for.
    A folder: the four idx files, or train.npz and test.npz, or train/CLASS/*.png and
    test/CLASS/*.png (jpg too). For a ``task`` it may also be what `load_client_data` takes, of
    which `split_off_calibration` makes two. Raises `DatasetError` when nothing usable is there.
    """
    if name_or_path == "digits":
        return _load_digits()
    if name_or_path == "fashion-mnist":
        return _load_fashion_mnist()
    folder = Path(name_or_path).expanduser()
    if task is not None and not _has_train_test(folder):
        return split_off_calibration(load_client_data(str(name_or_path), task))
    if not folder.is_dir():
        raise DatasetError(
            f"unknown data set '{name_or_path}': use {', '.join(NAMES)}, or a folder that exists; "
            "other data need a task in the run file, [task]"
        )
    if task is None:
        return _load_folder(folder)
    return _load_folder(folder, [given.name for given in task.inputs], task.target.names)


def split_off_calibration(data: Dataset) -> tuple[Dataset, Dataset]:
    """Return a fifth of the examples, for the ranges of int8, and the others, to test on.

    The fifth is the first one of examples in order of time, and else every fifth example. Raises
    `DatasetError` for a single example.
    """
    count = len(data)
    if count < 2:
        raise DatasetError("1 example is too few to test on some and find int8's ranges on others")
    if data.ordered:
        calibrates = np.arange(count) < max(1, count // _CALIBRATES)
    else:
        calibrates = np.arange(count) % _CALIBRATES == 0
    return data.take(np.flatnonzero(calibrates)), data.take(np.flatnonzero(~calibrates))


def load_client_data(spec: str, task: Task) -> Dataset:
    """Return the data that a client names, as the task asks for them.

    ``spec`` is an .npz file (see `Dataset.load`), a table (.csv, .csv.gz or .parquet) with the
    task's columns, a folder FOLDER/CLASS/*.png of pictures of any size, or ``module:function``.
    Raises `DatasetError`.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return _load_pictures(path, task)
    if path.is_file() and is_table(path):
        return load_table(path, task).fit(task)
    if path.is_file():
        names = [given.name for given in task.inputs]
        return Dataset.load(path, names, task.target.names).fit(task)
    if _FUNCTION.fullmatch(spec):
        return call_function(spec, task).fit(task)
    raise _nowhere(spec)


def check_client_data(spec: str) -> None:
    """Raise `DatasetError` unless there is the file, folder or function that a client names.

    Nothing is read: that needs the task, which a server tells.
    """
    if Path(spec).expanduser().exists():
        return
    if not _FUNCTION.fullmatch(spec):
        raise _nowhere(spec)
    find_function(spec)


def _nowhere(spec: str) -> DatasetError:
    return DatasetError(
        f"'{spec}': no such file or folder; give an .npz, .csv or .parquet file, a folder of"
        " CLASS/*.png, or module:function"
    )


def _load_pictures(folder: Path, task: Task) -> Dataset:
    if not task.is_images:
        raise DatasetError(f"{folder}: a folder of pictures, but the task is not about pictures")
    names, shape = task.target.class_names, task.inputs[0].shape
    return load_image_folder(folder, names, shape).fit(task)


def load_inputs(spec: str, task: Task) -> list[Values]:
    """Return the inputs of the examples in a file, as the task asks for them, without targets.

    ``spec`` is an .npz with x (see `Dataset.load`), an .npy of the only input, or a table with the
    inputs' columns. Raises `DatasetError`.
    """
    path = Path(spec).expanduser()
    if path.is_file() and is_table(path):
        return load_table_inputs(path, task)
    if path.suffix == ".npy" and path.is_file():
        try:
            data = Dataset((np.load(path, allow_pickle=False),))
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(f"{path}: not a readable .npy file ({error})") from error
    else:
        data = Dataset.load(path, [given.name for given in task.inputs])
    return list(data.fit_inputs(task))


def fashion_mnist_folders() -> list[Path]:
    """Return the folders searched for Fashion-MNIST's idx files, first match wins."""
    folders = []
    if own := os.environ.get("FEATHERFED_DATA"):
        folders = [Path(own).expanduser() / "fashion-mnist", Path(own).expanduser()]
    return [*folders, Path("~/.keras/datasets/fashion-mnist").expanduser(), _FASHION_SYSTEM_FOLDER]


def _load_fashion_mnist() -> tuple[Dataset, Dataset]:
    folders = fashion_mnist_folders()
    for folder in folders:
        if has_idx_files(folder):
            return load_idx_folder(folder, FASHION_CLASSES)
    raise DatasetError(
        "fashion-mnist is not on this machine (searched "
        + ", ".join(map(str, folders))
        + "). Get it with `sudo apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or in"
        " Python with `tf_keras.datasets.fashion_mnist.load_data()`, or set FEATHERFED_DATA to a"
        " folder that holds its four idx files"
    )


def _load_digits() -> tuple[Dataset, Dataset]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DatasetError(
            "the digits come with scikit-learn: pip install featherfed[demo]"
        ) from error
    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    whole = Dataset.from_images(images, bunch.target, [str(digit) for digit in range(10)])
    order = np.random.default_rng(0).permutation(len(whole))
    return whole.take(order[:-_DIGITS_TEST]), whole.take(order[-_DIGITS_TEST:])


def _has_train_test(folder: Path) -> bool:
    return has_idx_files(folder) or any(
        (folder / f"train{end}").exists() and (folder / f"test{end}").exists()
        for end in (".npz", "")
    )


def _load_folder(
    folder: Path, input_names: Sequence[str] = (), target_names: Sequence[str] = ()
) -> tuple[Dataset, Dataset]:
    if has_idx_files(folder):
        return load_idx_folder(folder)
    if (folder / "train.npz").is_file() and (folder / "test.npz").is_file():
        train = Dataset.load(folder / "train.npz", input_names, target_names)
        test = Dataset.load(folder / "test.npz", input_names, target_names)
    elif (folder / "train").is_dir() and (folder / "test").is_dir():
        names = class_folders(folder / "train")
        train = load_image_folder(folder / "train")
        test = load_image_folder(folder / "test", names)
    else:
        raise DatasetError(
            f"{folder}: holds neither the four idx files (train-images-idx3-ubyte.gz, ...), nor"
            " train.npz and test.npz, nor train/CLASS/*.png and test/CLASS/*.png"
        )
    return _matching(folder, train, test)


def _matching(folder: Path, train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    for what in ("input_shape", "class_names"):
        ours, theirs = getattr(train, what), getattr(test, what)
        if ours != theirs:
            raise DatasetError(f"{folder}: {what} is {ours} in train but {theirs} in test")
    return train, test
