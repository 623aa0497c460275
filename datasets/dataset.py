"""Examples in memory, for any task: input tensors and targets, saved and loaded as .npz."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featherfed.tasks.arrays import taken
from featherfed.tasks.errors import TaskError
from featherfed.tasks.records import fields, records
from featherfed.tasks.task import Input, Target, TargetKind, Task, Values


class DatasetError(ValueError):
    """Data that cannot be used; the message says what, where, and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Examples: input tensors ``[N, ...]``, and targets ``[N, ...]`` or None.

    Several targets are records by their names (tasks/records.py); a dict of arrays becomes such.
    ``class_names`` are those of the targets by number, none if they have none. ``ordered``
    examples follow each other in time. Raises `DatasetError` for no example at all, or for arrays
    of different lengths.
    """

    inputs: tuple[Values, ...]
    targets: Values | None = None
    class_names: tuple[str, ...] = ()
    ordered: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "class_names", tuple(map(str, self.class_names)))
        if isinstance(self.targets, Mapping):
            object.__setattr__(self, "targets", as_targets(self.targets))
        arrays = [*self.inputs, *([] if self.targets is None else [self.targets])]
        if not self.inputs or any(not array.ndim for array in arrays):
            raise DatasetError("a data set is made of arrays whose first axis counts examples")
        counts = [len(array) for array in arrays]
        if len(set(counts)) > 1:
            what = " and ".join(map(str, counts))
            raise DatasetError(f"inputs and targets hold {what} examples; all need as many")
        shapes = [array.shape for array in arrays]
        if self.targets is not None:
            shapes += [part.shape for part in fields(self.targets, self.targets.dtype.names or ())]
        if any(0 in shape for shape in shapes):
            shape = next(shape for shape in shapes if 0 in shape)
            raise DatasetError(f"an array has shape {shape}: the data set is empty")

    @classmethod
    def from_images(
        cls,
        images: ArrayLike,
        labels: ArrayLike,
        class_names: Sequence[str] | None = None,
    ) -> Dataset:
        """Make a data set of pictures and their classes from looser arrays.

        ``images``: ``[N, H, W]`` or ``[N, H, W, C]``, uint8, or float within [0, 1] (scaled to
        0..255 and rounded; any other float range is refused, as its scale is unknown).
        ``labels``: any integer type, ``[N]`` or ``[N, 1]``. Without ``class_names`` the classes
        are named "0", "1", ... up to the largest label. Raises `DatasetError`.
        """
        pixels, numbers = _as_uint8(np.asarray(images)), _as_classes(np.asarray(labels))
        if pixels.ndim == 3:
            pixels = pixels[..., np.newaxis]
        if pixels.ndim != 4:
            raise DatasetError(
                f"images have shape {pixels.shape}; [N, H, W, C] or [N, H, W] is needed"
            )
        if class_names is None:
            top = int(numbers.max()) if numbers.size else 0
            class_names = [str(index) for index in range(top + 1)]
        made = cls((pixels,), numbers, tuple(class_names))
        _check_classes(numbers, len(made.class_names))
        return made

    @property
    def num_classes(self) -> int:
        """How many classes there are, also those without an example here."""
        return len(self.class_names)

    @property
    def has_class_names(self) -> bool:
        """Whether the classes have names of their own, not just their numbers."""
        return self.class_names != tuple(str(i) for i in range(self.num_classes))

    @property
    def images(self) -> NDArray[np.uint8]:
        """The pictures of a data set of pictures, uint8 ``[N, H, W, C]``."""
        return self.inputs[0]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The classes of a data set of pictures, int64 ``[N]``."""
        if self.targets is None:
            raise DatasetError("these examples have no labels")
        return self.targets

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example of the first input."""
        return self.inputs[0].shape[1:]

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, indices: ArrayLike) -> Dataset:
        """Return the examples at ``indices``, integers ``[M]`` or a bool mask ``[N]``.

        Neighbours are views, others are copied.
        """
        chosen = np.asarray(indices)
        if chosen.size == 0:
            raise DatasetError("cannot take zero examples: a data set needs at least one")
        try:
            targets = None if self.targets is None else taken(self.targets, chosen)
            inputs = tuple(taken(array, chosen) for array in self.inputs)
            return replace(self, inputs=inputs, targets=targets)
        except IndexError as error:
            raise DatasetError(f"cannot take these of {len(self)} examples: {error}") from error

    def fit(self, task: Task) -> Dataset:
        """Return the same examples in the dtypes and shapes of a task.

        Pictures without a channel axis get one, numbers a trailing axis or none, integers become
        floats, names of classes their numbers. Raises `DatasetError` for what is not the task's.
        """
        inputs = self.fit_inputs(task)
        target = task.target
        wanted = None if target.kind is TargetKind.INPUT else self.targets
        names = self.class_names if self.has_class_names else ()  # numbers name nothing
        targets = None if wanted is None else _fit_targets(wanted, target, names)
        try:
            target.check(targets, len(self))
        except TaskError as error:
            raise DatasetError(str(error)) from error
        return Dataset(inputs, targets, target.class_names, self.ordered)

    def fit_inputs(self, task: Task) -> tuple[Values, ...]:
        """Return the inputs as `fit` does, whatever the targets are."""
        if len(self.inputs) != len(task.inputs):
            names = ", ".join(given.name for given in task.inputs)
            raise DatasetError(f"the data have {len(self.inputs)} inputs; the task needs {names}")
        inputs = tuple(
            _fit_input(array, given) for array, given in zip(self.inputs, task.inputs, strict=True)
        )
        try:
            task.check_inputs(inputs)
        except TaskError as error:
            raise DatasetError(str(error)) from error
        return inputs

    def save(self, path: str | Path) -> None:
        """Write a compressed .npz: x (or x_0, x_1, ...), y and class_names, as far as they are.

        Several targets are y_NAME each.
        """
        names = ["x"] if len(self.inputs) == 1 else [f"x_{k}" for k in range(len(self.inputs))]
        arrays: dict[str, Any] = dict(zip(names, self.inputs, strict=True))
        if self.targets is not None:
            parts = self.targets.dtype.names or ()
            own = [f"y_{name}" for name in parts] or ["y"]
            arrays.update(zip(own, fields(self.targets, parts), strict=True))
        if self.class_names:
            arrays["class_names"] = np.array(self.class_names, dtype=np.str_)
        with Path(path).open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(
        cls, path: str | Path, input_names: Sequence[str] = (), target_names: Sequence[str] = ()
    ) -> Dataset:
        """Read an .npz with x and y, or images and labels; class_names may be there.

        Several inputs are named x_0, x_1, ... or as in ``input_names``; y is left out where the
        input itself is the target, and several targets are y_NAME for each of ``target_names``;
        without any of them there are no targets. Pictures (`images`) are read as by `from_images`.
        Nothing is unpickled. Raises `DatasetError` when the file is missing, not an .npz, or lacks
        an array.
        """
        arrays = _read_npz(Path(path))
        names = arrays.get("class_names")
        if names is not None and names.ndim != 1:
            raise DatasetError(f"{path}: class_names must be a list of names")
        class_names = None if names is None else [str(name) for name in names]
        try:
            if "images" in arrays and "labels" in arrays:
                return cls.from_images(arrays["images"], arrays["labels"], class_names)
            inputs = _inputs_of(arrays, input_names)
            if not inputs:
                raise DatasetError(
                    f"holds {', '.join(arrays) or 'nothing'}; it needs x and y. Write it with"
                    " np.savez(path, x=, y=) or Dataset.save"
                )
            return cls(inputs, _targets_of(arrays, target_names), tuple(class_names or ()))
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error


def _inputs_of(
    arrays: Mapping[str, NDArray[Any]], input_names: Sequence[str]
) -> tuple[NDArray[Any], ...]:
    if input_names and all(name in arrays for name in input_names):
        return tuple(arrays[name] for name in input_names)
    if "x" in arrays:
        return (arrays["x"],)
    count = 0
    while f"x_{count}" in arrays:
        count += 1
    return tuple(arrays[f"x_{k}"] for k in range(count))


def _targets_of(
    arrays: Mapping[str, NDArray[Any]], target_names: Sequence[str]
) -> NDArray[Any] | None:
    """Return the targets, records by these names if there are several; None if there are none."""
    found = {name: arrays[f"y_{name}"] for name in target_names if f"y_{name}" in arrays}
    missing = [f"y_{name}" for name in target_names if name not in found]
    if missing and (found or "y" in arrays):
        raise DatasetError(
            f"holds {', '.join(arrays)}; the task has several targets, each an array of its own, "
            f"and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        )
    if found:
        return as_targets(found)
    return arrays.get("y")


def as_targets(y: Any) -> Values | None:
    """Return targets as a data set holds them: an array, or records of a dict of arrays by name.

    Raises DatasetError for what is neither.
    """
    try:
        if isinstance(y, Mapping):
            return records({name: np.asarray(values) for name, values in y.items()})
        return None if y is None else np.asarray(y)
    except ValueError as error:  # numpy's, of lists that are no array, too
        raise DatasetError(
            f"the targets are no arrays ({error}); give an array, or a dict of arrays by the names "
            "of several targets"
        ) from error


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DatasetError(f"{path}: one bare array; save x and y with np.savez")
            with archive:
                return {name: archive[name] for name in archive}
    except DatasetError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path}: not a readable .npz file ({error})") from error


def _fit_input(array: Values, given: Input) -> Values:
    where = f"input {given.name!r}"
    if given.dtype == "uint8":
        array = _as_uint8(array, where)
    elif given.dtype == "float32":
        array = _as_float32(array, where)
    else:
        array = _as_integers(array, where, np.int32)
    return _with_shape(array, given.shape)


def _fit_targets(array: Values, target: Target, class_names: Sequence[str]) -> Values:
    """Return targets, of several ones records in the task's order, as the task asks for them."""
    found = array.dtype.names or ()
    if not target.parts:
        if found:
            raise DatasetError(
                f"the data have the targets {', '.join(found)}, and the task has one without a "
                "name; give it as one array"
            )
        return _fit_target(array, target, class_names)
    if set(found) != set(target.names):
        raise DatasetError(
            f"the data have {'the targets ' + ', '.join(found) if found else 'targets of no name'}"
            f", and the task has {', '.join(target.names)}; give a dict of arrays by these names, "
            "in an .npz y_NAME for each"
        )
    if class_names:
        raise DatasetError(
            "class_names do not say which of several targets they name; leave them out, the task "
            "has them"
        )
    kinds = [(part.name, np.dtype(part.dtype), part.shape) for part in target.parts]
    if array.dtype == np.dtype(kinds):  # as it is, perhaps on disk
        return array
    made = {}
    for part in target.parts:
        try:
            made[part.name] = _fit_target(array[part.name], part, ())
        except DatasetError as error:
            raise DatasetError(f"target {part.name!r}: {error}") from error
    return records(made)


def _fit_target(array: Values, target: Target, class_names: Sequence[str]) -> Values:
    if target.kind is TargetKind.VALUES:
        return _with_shape(_as_float32(array, "the target"), target.shape)
    if target.kind is TargetKind.LABELS:
        labels = array.astype(np.uint8) if array.dtype == np.bool_ else array
        return _as_integers(labels, "the labels", np.uint8)
    if class_names and tuple(class_names) != target.class_names:
        raise DatasetError(
            f"the classes are {', '.join(class_names)}; the task has"
            f" {', '.join(target.class_names)}, in this order"
        )
    if array.dtype.kind in "UO":
        array = _numbers_of(array, target.class_names)
    return _with_shape(_as_integers(array, "the classes", np.int64), target.shape)


def _numbers_of(names: Values, class_names: Sequence[str]) -> NDArray[np.int64]:
    """Return the numbers of classes that are given by name."""
    numbers = {name: number for number, name in enumerate(class_names)}
    texts = [str(name) for name in names.ravel()]
    unknown = next((text for text in texts if text not in numbers), None)
    if unknown is not None:
        raise DatasetError(f"{unknown!r} is not one of the classes {', '.join(class_names)}")
    return np.array([numbers[text] for text in texts], np.int64).reshape(names.shape)


def _with_shape(array: Values, shape: tuple[int, ...]) -> Values:
    """Return examples with an axis of length 1 added or dropped at the end, if that is it."""
    own = array.shape[1:]
    if own != shape and (own == (*shape, 1) or shape == (*own, 1)):
        return array.reshape(len(array), *shape)
    return array


def _as_uint8(images: NDArray[Any], where: str = "images") -> NDArray[np.uint8]:
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise DatasetError(f"{where}: {images.dtype}; give uint8, or float within [0, 1]")
    if images.size and not (images.min() >= 0 and images.max() <= 1):
        raise DatasetError(
            f"{where}: floats span {images.min():g} to {images.max():g}; give floats within"
            " [0, 1], or uint8"
        )
    scaled: NDArray[np.uint8] = np.rint(images * 255).astype(np.uint8)
    return scaled


def _as_float32(array: NDArray[Any], where: str) -> NDArray[np.float32]:
    if array.dtype.kind not in "fiub":
        raise DatasetError(f"{where}: {array.dtype}; give numbers")
    return array.astype(np.float32, copy=False)


def _as_integers(array: NDArray[Any], where: str, dtype: Any) -> NDArray[Any]:
    if not np.issubdtype(array.dtype, np.integer):
        raise DatasetError(f"{where}: {array.dtype}; give integers")
    made = array.astype(dtype, copy=False)
    if made is not array and not np.array_equal(made, array):
        raise DatasetError(
            f"{where}: numbers from {array.min()} to {array.max()}, more than {made.dtype} holds"
        )
    return made


def _as_classes(labels: NDArray[Any]) -> NDArray[np.int64]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if not np.issubdtype(labels.dtype, np.integer):
        raise DatasetError(f"labels are {labels.dtype}; give integers, one class index per image")
    if labels.ndim != 1:
        raise DatasetError(f"labels have shape {labels.shape}; [N] is needed")
    return labels.astype(np.int64)


def _check_classes(labels: NDArray[np.int64], num_classes: int) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        at = int(wrong[0])
        raise DatasetError(
            f"label {labels[at]} of example {at} is outside 0..{num_classes - 1}"
            f" ({num_classes} class names)"
        )
