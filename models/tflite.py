"""Inference with a .tflite file and numpy: needs neither TensorFlow nor Keras.

The contract of every exported kind is the same: a model gets its task's prepared inputs
(Scaling.prepare). Bytes are divided as the task says, for a quantized input in that input's own
scale and zero point, which for pictures are usually 1/255 and 0: the byte itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featherfed.models.errors import ModelError
from featherfed.models.images import Source, load_images
from featherfed.models.importing import importing_tensorflow
from featherfed.models.trial import try_model
from featherfed.proto.peer_text import printable
from featherfed.tasks.errors import TaskError
from featherfed.tasks.records import together
from featherfed.tasks.scaling import FeatureScale, Scaling
from featherfed.tasks.scoring import Scoring, both_classes, evaluate
from featherfed.tasks.task import Task, Values, image_task

LABELS = "labels.txt"
"""The member that holds the class names, one a line; `unzip -p FILE.tflite labels.txt` shows it."""
TASK = "task.json"
"""The member that holds the task, its scaling, and the names of the input tensors."""

_MAX_MEMBER_BYTES = 1 << 22
_MAX_NAME = 100  # characters of a class name
_MAX_CLASSES = 1 << 20
_KINDS = {"float32", "int8", "uint8", "int32"}


class FileTask(NamedTuple):
    """What a .tflite file says of itself: its task, how data are standardised, and the names of its
    input tensors in the task's order (none in files of pictures), and of the output tensors in the
    order of several targets."""

    task: Task
    scaling: Scaling
    tensor_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()


class TfliteModel:
    """A model in a .tflite file, from prepared inputs to answers.

    Raises ModelError if the file is missing or not a TFLite model of its task, and ImportError if
    there is neither ai-edge-litert nor TensorFlow. A file that was made for it can crash the
    process: `Predictor` tries it in another one first.
    """

    def __init__(
        self, source: str | Path | bytes, *, batch_size: int = 250, num_threads: int = 1
    ) -> None:
        """Load a file, by its path or its content."""
        content = source if isinstance(source, bytes) else read_model(source)
        self._name = "the model" if isinstance(source, bytes) else str(source)
        try:
            self._interpreter: Any = _interpreter_class()(
                model_content=content, num_threads=num_threads
            )
            described = read_task(content, self._name)
            self._inputs = self._ordered(described.tensor_names if described else ())
            self._outputs = self._ordered_outputs(described)
            self._check_tensors()
            self.described = described or self._pictures()
        except (ValueError, RuntimeError) as error:
            if isinstance(error, ModelError):
                raise
            why = printable(str(error))  # it may hold names from the file
            raise ModelError(f"{self._name} is not a TFLite model: {why}") from error
        self._check_task()
        self._batch_size = batch_size
        self._allocated = 0

    def _ordered(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the input tensors in the task's order."""
        details = self._interpreter.get_input_details()
        runner = self._interpreter.get_signature_runner
        what = f"{self._name} does not have the inputs"
        places = _places(details, names, lambda: runner().get_input_details(), what)
        return [details[place] for place in places]

    def _ordered_outputs(self, described: FileTask | None) -> list[dict[str, Any]]:
        """Return the output tensors in the order of the task's targets."""
        details = list(self._interpreter.get_output_details())
        count = len(described.task.target.each) if described else 1
        if len(details) != count:
            needed = "one" if count == 1 else f"{count}, one for each target"
            raise ModelError(f"{self._name} has {len(details)} outputs; it needs {needed}")
        names = described.output_names if described else ()
        what = f"{self._name} does not have the outputs"
        if count > 1 and len(names) != count:
            raise ModelError(f"{what} that its task names")
        runner = self._interpreter.get_signature_runner
        places = _places(details, names, lambda: runner().get_output_details(), what)
        return [details[place] for place in places]

    def _check_tensors(self) -> None:
        kinds = {np.dtype(d["dtype"]).name for d in (*self._inputs, *self._outputs)}
        if not kinds <= _KINDS:
            raise ModelError(f"{self._name} has tensors of {', '.join(sorted(kinds))}")

    def _pictures(self) -> FileTask:
        """Return the task of a file that names none: to tell numbered classes of pictures apart."""
        shape = self._outputs[0]["shape"]
        if len(self._inputs) != 1 or len(self._inputs[0]["shape"]) != 4 or len(shape) != 2:
            raise ModelError(f"{self._name} does not turn images into probabilities")
        if not 2 <= shape[-1] <= _MAX_CLASSES:
            raise ModelError(f"{self._name} tells {shape[-1]} classes apart")
        names = [str(number) for number in range(shape[-1])]
        try:
            task = image_task(tuple(map(int, self._inputs[0]["shape"][1:])), names)
        except TaskError as error:
            raise ModelError(f"{self._name}: {error}") from error
        return FileTask(task, Scaling.none(task))

    def _check_task(self) -> None:
        """Raise ModelError unless the tensors are those of the task."""
        inputs = [tuple(map(int, detail["shape"][1:])) for detail in self._inputs]
        try:
            self.task.check_model(inputs, self._output_shapes())
        except TaskError as error:
            raise ModelError(f"{self._name}: {printable(str(error))}") from error

    def _output_shapes(self) -> list[tuple[int, ...]]:
        return [tuple(map(int, detail["shape"][1:])) for detail in self._outputs]

    @property
    def task(self) -> Task:
        """What the model has learned."""
        return self.described.task

    @property
    def scaling(self) -> Scaling:
        """How its data are standardised."""
        return self.described.scaling

    @property
    def input_types(self) -> list[dict[str, Any]]:
        """Of each input: `name`, `dtype`; `scale` and `zero_point`, None unless it is quantized."""
        return [
            {"name": given.name, **_type(detail)}
            for given, detail in zip(self.task.inputs, self._inputs, strict=True)
        ]

    def predict(self, inputs: Sequence[Values]) -> npt.NDArray[Any]:
        """Return float32 [N, ...] answers to prepared inputs [N, ...].

        Those to several targets are records by name (tasks/records.py). Raises ModelError if the
        inputs are not the task's.
        """
        try:
            self.task.check_inputs(inputs)
        except TaskError as error:
            raise ModelError(f"{self._name}: {error}") from error
        parts = [
            self._invoke([values[start : start + self._batch_size] for values in inputs])
            for start in range(0, len(inputs[0]), self._batch_size)
        ]
        if parts:
            return np.concatenate(parts)
        nothing = [np.empty((0, *shape), np.float32) for shape in self._output_shapes()]
        return together(nothing, self.task.target.names)

    def evaluate(self, inputs: Sequence[Values], targets: Values | None) -> dict[str, float]:
        """Return loss and metrics on examples, given as stored."""
        scoring = Scoring(self.task, self.scaling)
        sums = evaluate(scoring, self.predict, inputs, targets, prepare=self.scaling.prepare)
        return scoring.scores(sums)

    def time_one(self, count: int, warm_up: int = 20) -> npt.NDArray[np.float64]:
        """Return the seconds of `count` inferences of one example of noise, float64 [count]."""
        example = noise(self.task, 1)
        for _ in range(warm_up):
            self._invoke(example)
        seconds = np.empty(count)
        for number in range(count):
            start = time.perf_counter()
            self._interpreter.invoke()
            seconds[number] = time.perf_counter() - start
        return seconds

    def _invoke(self, inputs: Sequence[Values]) -> npt.NDArray[Any]:
        count = len(inputs[0])
        try:
            if count != self._allocated:
                for detail, values in zip(self._inputs, inputs, strict=True):
                    self._interpreter.resize_tensor_input(detail["index"], list(values.shape))
                self._interpreter.allocate_tensors()
                self._allocated = count
            for given, detail, values in zip(self.task.inputs, self._inputs, inputs, strict=True):
                self._interpreter.set_tensor(detail["index"], _encode(given.seen(values), detail))
            self._interpreter.invoke()
            found = [
                _decode(self._interpreter.get_tensor(detail["index"]), detail)
                for detail in self._outputs
            ]
        except (ValueError, RuntimeError) as error:
            raise ModelError(f"{self._name} does not run: {printable(str(error))}") from error
        for part, answers in zip(self.task.parts, found, strict=True):
            if answers.shape[0] != count or answers.shape[1:] not in part.output_shapes():
                raise ModelError(f"{self._name} gives {list(answers.shape)} for {count} examples")
        return together(found, self.task.target.names)


class Names(NamedTuple):
    """Names of a file's input tensors in the task's order, and of its outputs in the targets'.

    Empty where there is but one.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def tensor_places(content: bytes, names: Names) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the place of each input among a .tflite's inputs, and of each output likewise."""
    interpreter = _interpreter_class()(model_content=content, num_threads=1)
    runner, what = interpreter.get_signature_runner, "the model does not have the tensors"
    given, made = interpreter.get_input_details(), interpreter.get_output_details()
    return (
        _places(given, names.inputs, lambda: runner().get_input_details(), what),
        _places(made, names.outputs, lambda: runner().get_output_details(), what),
    )


def _places(
    details: Sequence[dict[str, Any]],
    names: Sequence[str],
    by_name: Callable[[], dict[str, dict[str, Any]]],
    what: str,
) -> tuple[int, ...]:
    """Return the places among `details` of the tensors that a signature names.

    `by_name`: the signature's details, whose runner must be gone before anything is allocated.
    """
    places = {detail["index"]: n for n, detail in enumerate(details)}
    if len(places) == 1 or not names:
        return tuple(places.values())
    found = by_name()
    if set(names) != found.keys():
        raise ModelError(f"{what} that its task names")
    return tuple(places[found[name]["index"]] for name in names)


def noise(task: Task, count: int) -> list[Values]:
    """Return random prepared inputs of a task, the same each time."""
    rng = np.random.default_rng(0)
    made: list[Values] = []
    for given in task.inputs:
        shape = (count, *given.shape)
        if given.dtype == "float32":
            made.append(rng.normal(0, 1, shape).astype(np.float32))
        else:
            top = 256 if given.dtype == "uint8" else given.vocabulary
            made.append(rng.integers(0, top, shape).astype(given.dtype))
    return made


def read_model(path: str | Path) -> bytes:
    """Return the content of a model file; raise ModelError if there is none."""
    if not Path(path).is_file():
        raise ModelError(f"no model file {path}; a run's output folder holds model_*.tflite")
    return Path(path).read_bytes()


class Predictor:
    """Answers with a .tflite file, from data in their own units to answers in theirs.

    `task` says what it takes and gives. Raises what TfliteModel does, and ModelError if the file
    crashes another process in which it is tried first.
    """

    def __init__(self, path: str | Path, *, num_threads: int = 1) -> None:
        content = read_model(path)
        try_model(content, str(path))
        self._model = TfliteModel(content, num_threads=num_threads)

    @property
    def task(self) -> Task:
        """What the model has learned."""
        return self._model.task

    @property
    def scaling(self) -> Scaling:
        """How its data are standardised."""
        return self._model.scaling

    def predict(self, *inputs: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return float32 [N, ...] answers to each input [N, ...], as the data are stored.

        Answers are probabilities of classes or labels, or values in the units of the target; those
        to several targets are an array of records, where `answers["pulse"]` are those to `pulse`.
        Raises ModelError for arrays that are not the task's.
        """
        if len(inputs) != len(self.task.inputs):
            names = ", ".join(given.name for given in self.task.inputs)
            raise ModelError(f"{len(inputs)} arrays; the model takes {names}")
        arrays: list[Values] = []
        for given, values in zip(self.task.inputs, inputs, strict=True):
            array = np.asarray(values)
            if given.dtype != "uint8" and array.dtype.kind in "iuf":
                array = array.astype(given.dtype)
            arrays.append(array)
        try:
            self.task.check_inputs(arrays)
        except TaskError as error:
            raise ModelError(str(error)) from error
        scaling = self._model.scaling
        answers = self._model.predict(scaling.prepare(arrays))
        restored = scaling.restore(answers)
        return restored.astype(answers.dtype, copy=False)


class Classifier:
    """Classifies pictures, arrays and camera frames with a .tflite file.

    `class_names` come from the file itself; one without them gets "0", "1", ... Raises what
    TfliteModel does, and ModelError if the file does not classify pictures, or crashes another
    process in which it is tried first.
    """

    def __init__(self, path: str | Path, *, num_threads: int = 1) -> None:
        content = read_model(path)
        try_model(content, str(path))
        self._model = TfliteModel(content, num_threads=num_threads)
        task = self._model.task
        if not task.is_images:
            raise ModelError(f"{path} does not classify pictures; use Predictor for it")
        self.class_names = read_labels(path) or task.target.class_names
        if len(self.class_names) != len(task.target.class_names):
            raise ModelError(
                f"{path} names {len(self.class_names)} classes but tells "
                f"{len(task.target.class_names)} apart; export it again"
            )

    def classify(self, source: Source) -> list[tuple[str, float]]:
        """Return class names with their probabilities for one image, the likeliest first.

        `source` is a picture file, .npy, .npz or an array: see `load_images`. Raises ModelError if
        it cannot be read or holds more than one image.
        """
        found = self.classify_all(source)
        if len(found) != 1:
            raise ModelError(f"{len(found)} images where one was expected; use classify_all")
        return found[0]

    def classify_all(self, source: Source) -> list[list[tuple[str, float]]]:
        """Return what `classify` does for every image of a file or an array."""
        images = load_images(source, self._model.task.inputs[0].shape)
        probabilities = self._model.predict([images])
        if probabilities.shape[1] == 1:  # that of the second of two classes
            probabilities = both_classes(probabilities)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        return [
            [(self.class_names[index], float(row[index])) for index in indices]
            for row, indices in zip(probabilities, order, strict=True)
        ]


def with_task(model: bytes, described: FileTask) -> bytes:
    """Return a TFLite file with its task in it, as TFLite's own metadata tools keep class names.

    An archive with `task.json`, and `labels.txt` for classes, follows the model, where the
    interpreter does not look: one file to deliver, and `unzip` and Python's zipfile read it. Equal
    tasks give equal bytes. Raises ValueError if a class name holds a line break.
    """
    names = described.task.target.class_names
    if any("\n" in name for name in names):
        raise ValueError(f"a class name must be one line: {list(names)}")
    members = {TASK: json.dumps(_to_json(described), sort_keys=True)}
    if names:
        members[LABELS] = "\n".join(names) + "\n"
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:
        for name, text in members.items():
            # A fixed date, the archive's own zero: the bytes must not depend on the clock.
            archive.writestr(zipfile.ZipInfo(name), text)
    return file.getvalue()


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Return the class names in a TFLite file, fit to be printed; none if it holds none.

    Raises ModelError if what follows the model is damaged.
    """
    text = _member(read_model(path), LABELS, str(path))
    names = [] if text is None else text.split("\n")[:-1]
    return tuple(printable(name, _MAX_NAME) for name in names)


def read_task(content: bytes, what: str) -> FileTask | None:
    """Return the task in a TFLite file, called `what` in errors; None if it holds none.

    Raises ModelError if what follows the model is damaged.
    """
    text = _member(content, TASK, what)
    if text is None:
        return None
    try:
        values = json.loads(text)
        task = Task.from_dict(values["task"])
        scaling = _scaling_from(values["scaling"])
        scaling.check(task)
        outputs = tuple(map(str, values.get("output_names", ())))
        return FileTask(task, scaling, tuple(map(str, values["tensor_names"])), outputs)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{what}: its task is damaged ({printable(str(error))}); export it again"
        ) from error


def _member(content: bytes, name: str, what: str) -> str | None:
    """Return a text of the archive that follows a model, None if there is none."""
    file = io.BytesIO(content)
    if not zipfile.is_zipfile(file):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            if name not in archive.namelist():
                return None
            if archive.getinfo(name).file_size > _MAX_MEMBER_BYTES:
                raise ModelError(f"{what}: {name} is larger than {_MAX_MEMBER_BYTES} bytes")
            return archive.read(name).decode("utf-8")
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, RuntimeError) as error:
        raise ModelError(f"{what}: its {name} is damaged ({error}); export it again") from error


def _to_json(described: FileTask) -> dict[str, Any]:
    def scale(values: FeatureScale | None) -> Any:
        if values is None:
            return None
        return {"mean": values.mean.tolist(), "deviation": values.deviation.tolist()}

    scaling = described.scaling
    return {
        "task": described.task.as_dict(),
        "scaling": {
            "inputs": [scale(values) for values in scaling.inputs],
            **(
                {"targets": [scale(values) for values in scaling.targets]}
                if scaling.targets
                else {"target": scale(scaling.target)}
            ),
        },
        "tensor_names": list(described.tensor_names),
        **({"output_names": list(described.output_names)} if described.output_names else {}),
    }


def _scaling_from(values: Any) -> Scaling:
    def scale(given: Any) -> FeatureScale | None:
        if given is None:
            return None
        mean, deviation = (np.array(given[key], np.float32) for key in ("mean", "deviation"))
        return FeatureScale(mean, deviation)

    inputs = tuple(map(scale, values["inputs"]))
    if "targets" in values:
        return Scaling(inputs, None, tuple(map(scale, values["targets"])))
    return Scaling(inputs, scale(values["target"]))


def runtime() -> str:
    """Return what runs the models, for example "ai-edge-litert 2.1.0" or "tensorflow 2.21.0"."""
    name = "tensorflow" if _interpreter_class() is _tensorflow_interpreter else "ai-edge-litert"
    return f"{name} {importlib.metadata.version(name)}"


def _type(detail: dict[str, Any]) -> dict[str, Any]:
    scale, zero_point = detail["quantization"]
    plain = detail["dtype"] in (np.float32, np.int32)
    return {
        "dtype": np.dtype(detail["dtype"]).name,
        "scale": None if plain else float(scale),
        "zero_point": None if plain else int(zero_point),
    }


def _encode(values: Values, detail: dict[str, Any]) -> Values:
    """Return what a model sees in an input tensor's own numbers."""
    if detail["dtype"] in (np.float32, np.int32):
        return values.astype(detail["dtype"], copy=False)
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(detail["dtype"])
    levels = np.rint(values / np.float32(scale)) + zero_point
    clipped: Values = np.clip(levels, limits.min, limits.max).astype(detail["dtype"])
    return clipped


def _decode(values: npt.NDArray[Any], detail: dict[str, Any]) -> npt.NDArray[np.float32]:
    if detail["dtype"] == np.float32:
        return np.array(values, np.float32)
    scale, zero_point = detail["quantization"]
    centred = values.astype(np.float32) - np.float32(zero_point)
    probabilities: npt.NDArray[np.float32] = centred * np.float32(scale)
    return probabilities


def _interpreter_class() -> Any:
    # The Interpreter of both, never LiteRT's CompiledModel: that one aborts on a Raspberry Pi 4.
    try:
        return importlib.import_module("ai_edge_litert.interpreter").Interpreter
    except ImportError:
        return _tensorflow_interpreter


def _tensorflow_interpreter(model_content: bytes, num_threads: int) -> Any:
    with importing_tensorflow():
        import tensorflow as tf

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*tf\.lite\.Interpreter is deprecated")
        return tf.lite.Interpreter(model_content=model_content, num_threads=num_threads)
