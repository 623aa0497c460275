"""`featherfed.simulate`: a whole federation on this machine, without a network."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from featherfed.api.data import Data, as_dataset
from featherfed.api.extras import explained
from featherfed.api.progress import progress_bar
from featherfed.api.trackers.hook import Tracker
from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.edge_client.examples import Examples
from featherfed.edge_client.trainer import KerasLoop
from featherfed.models.importing import importing_tensorflow
from featherfed.tasks.task import Task, image_task

if TYPE_CHECKING:
    from featherfed.api.history import History
    from featherfed.models.model_files import LoadedModel
    from featherfed.models.optimized import FederatedModel
    from featherfed.server.coordinator.coordinator import Coordinator
    from featherfed.server.settings.settings import Settings

Callback = Callable[[int, Mapping[str, float]], bool | None]
"""Called after each round with its number and the newest scores, loss and metrics by name; True
makes that round the last."""


class StopTraining(Exception):
    """Raise it in a callback of `simulate` to make this round the last."""


def simulate(
    model: Any,
    task: Task | None = None,
    *,
    clients: Sequence[Data] | Mapping[str, Data],
    rounds: int = 7,
    epochs: int = 5,
    batch_size: int = 32,
    learning_rate: float = 0.01,
    optimizer: str = "sgd",
    uplink: str = "balanced",
    test: Data | None = None,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    trackers: Sequence[str | Tracker] = (),
    trainer: KerasLoop | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    workers: int = 1,
) -> History:
    """Train `model` on the data of some clients, all on this machine; return how it went.

    The same code as of a server and its clients runs, compression and every count of bytes
    included, but for gRPC. Equal arguments give equal weights, bit for bit.

    Args:
        model: A tf_keras or Keras 3 model, which keeps its own weights; the path of a model file,
            or a built-in model for pictures: cnn, mlp, mobile, gru. docs/models.md has them all.
        task: What is learned; None: to tell pictures apart by class.
        clients: Each client's data, (x, y), in a list or by name; see docs/python.md.
        rounds: How many rounds, at the most.
        epochs: Passes over a client's data in a round.
        batch_size: Examples of one step of training.
        learning_rate: Of the clients' optimizer.
        optimizer: sgd, momentum, nesterov or adam.
        uplink: What clients send: exact, transparent, balanced, extreme, a budget of all of them
            such as "4kB/round", or codec text.
        test: The server's data to evaluate each version on; None: clients hold some back for that.
        seed: Of all that is drawn.
        callbacks: Called after each round; any of them can make it the last one.
        trackers: What else is told of each round: tensorboard:FOLDER, mlflow:URI, wandb:PROJECT, or
            objects of yours; see `Tracker` in docs/observability.md.
        trainer: Your own training loop, instead of Keras' fit; see `KerasLoop`.
        settings: Further sections of a run file, such as {"optimization": {"method": "prune"}}.
        progress: Whether to show a bar; None: in a terminal or a notebook.
        workers: Processes in which clients train side by side, with the same result; 1: in this
            one, one client after another. Each takes TensorFlow's memory again.

    Raises ValueError, of a kind that says what is wrong, for what cannot be simulated, and
    WorkerDied if a worker dies.
    """
    try:
        with importing_tensorflow():
            import featherfed.api.build
            import featherfed.edge_client.keras_trainer
            import featherfed.sweep.simulate  # noqa: F401
    except ModuleNotFoundError as error:
        raise explained(error, "simulate") from error
    from featherfed.api.build import KerasEvaluator, build_model
    from featherfed.api.client_trainers import ClientTrainers
    from featherfed.api.history import History
    from featherfed.api.tracker_choice import make_trackers
    from featherfed.server.errors import ServerError
    from featherfed.sweep.simulate import Workers
    from featherfed.sweep.simulate import simulate as run

    if workers < 1:
        raise ServerError(f"workers={workers}: give 1 or more")
    chosen_trackers = make_trackers(trackers, without=("otel",))
    data = _named(clients)
    held = None if test is None else as_dataset(test, "test")
    loaded = _loaded(model)
    if task is None:
        task = _picture_task([*data.values(), *([] if held is None else [held])], loaded)
    chosen = _settings(
        settings or {}, model, loaded, len(data),
        {"rounds": rounds, "seed": seed},
        {
            "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
            "optimizer": optimizer,
        },
        uplink, has_test=held is not None,
    )  # fmt: skip
    share = chosen.evaluation.share_held_out
    examples = {name: _examples(task, part, share, name) for name, part in data.items()}
    held = None if held is None else _fitted(held, task)
    federated: FederatedModel = build_model(chosen, task, loaded)

    trainers = ClientTrainers(examples, federated, trainer)

    ended: dict[str, Any] = {}

    def keep(coordinator: Coordinator) -> None:
        ended.update(weights=coordinator.newest_weights(), scaling=coordinator.scaling())

    with (
        _tracked(chosen_trackers, chosen, task) as track,
        progress_bar("rounds", " rounds", rounds, progress) as bar,
    ):

        def on_round(round_: int, scores: Mapping[str, float]) -> bool:
            if round_ <= rounds:  # one that calibrates comes after them
                bar.update(1)
            if task.leading in scores:
                bar.set_postfix({task.leading: f"{scores[task.leading]:.4f}"})
            return _asked_to_stop(callbacks, round_, scores)

        metrics = run(
            chosen,
            model_json=federated.model_json,
            manifest=federated.manifest,
            task=task,
            clients={name: part.summary() for name, part in examples.items()},
            make_trainer=trainers,
            evaluator=None if held is None else KerasEvaluator(federated, held),
            first_weights=federated.first_weights(),
            on_round=on_round,
            on_begun=track,
            on_finished=keep,
            extra={
                "featherfed": importlib.metadata.version("featherfed"),
                "num_test_examples": 0 if held is None else len(held),
            },
            workers=Workers(workers, trainers.only) if workers > 1 else None,
        )
    return History(metrics, federated, **ended)


@contextmanager
def _tracked(
    trackers: Sequence[Tracker], settings: Settings, task: Task
) -> Iterator[Callable[[Coordinator], None]]:
    """Yield what a run is given to before its first round, for trackers to follow it."""
    from featherfed.api.trackers.following import Trackers

    following: list[Trackers] = []

    def begin(coordinator: Coordinator) -> None:
        store, manifest = coordinator.store, coordinator.manifest
        following.append(Trackers(trackers, store, settings, task, manifest))
        coordinator.run.on_phase = following[0].update

    finished = False
    try:
        yield begin
        finished = True
    finally:
        for one in following:
            one.close(finished)


def _asked_to_stop(callbacks: Sequence[Callback], round_: int, scores: Mapping[str, float]) -> bool:
    """Call all callbacks; return whether any of them wants this round to be the last."""
    stop = False
    for callback in callbacks:
        try:
            stop |= bool(callback(round_, dict(scores)))
        except StopTraining:
            stop = True
    return stop


def _named(clients: Sequence[Data] | Mapping[str, Data]) -> dict[str, Dataset]:
    """Return each client's data by name: client-0, client-1, ... if they have none."""
    if not isinstance(clients, Mapping):
        clients = {f"client-{number}": data for number, data in enumerate(clients)}
    if not clients:
        raise DatasetError("clients: there are none; give the data of one at least")
    return {name: as_dataset(data, f"client {name!r}") for name, data in clients.items()}


def _loaded(model: Any) -> LoadedModel | None:
    """Return a model that was given as an object; None for a name or a path."""
    from featherfed.models.errors import ModelError
    from featherfed.models.model_files import is_model, load_object

    if is_model(model):
        return load_object(model)
    with suppress(TypeError):
        import os

        os.fspath(model)
        return None
    raise ModelError(
        f"{type(model).__name__} is no model; give a tf_keras or Keras 3 model, the path of one, "
        "or cnn, mlp, mobile or gru"
    )


def _picture_task(parts: Sequence[Dataset], loaded: LoadedModel | None) -> Task:
    """Return the task to tell the pictures of some data sets apart by class."""
    pictures = []
    for part in parts:
        if len(part.inputs) != 1 or part.targets is None or part.targets.dtype.names:
            raise DatasetError(
                "without a task, data are (pictures, classes); say what is learned: task="
            )
        pictures.append(Dataset.from_images(part.inputs[0], part.targets, part.class_names or None))
    names = max((part.class_names for part in pictures), key=len)
    given = next((part.class_names for part in parts if part.class_names), None)
    if given is None and loaded is not None:
        from featherfed.models.serialization import from_json

        outputs = from_json(loaded.json).outputs
        if len(outputs) != 1:
            raise DatasetError(
                f"the model has {len(outputs)} outputs; say what is learned: task=, with a target "
                "for each (docs/tasks.md)"
            )
        names = tuple(map(str, range(max(len(names), outputs[0].shape[-1]))))
    return image_task(pictures[0].input_shape, given or names)


def _settings(
    given: Mapping[str, Any],
    model: Any,
    loaded: LoadedModel | None,
    num_clients: int,
    top: dict[str, Any],
    training: dict[str, Any],
    uplink: str,
    *,
    has_test: bool,
) -> Settings:
    from featherfed.server.settings.settings import settings_of

    evaluation: dict[str, Any] = {"dataset": "test" if has_test else None, "clients": 0}
    sections: dict[str, Mapping[str, Any]] = {
        "training": training,
        "model": {"name": str(model) if loaded is None else "own"},
        "compression": {"uplink": uplink},
        "clients": {"minimum": num_clients, "quorum": 1.0, "patience": 0},
        "evaluation": evaluation,
    }
    values = {"name": "simulation", **given, **top}
    for section, own in sections.items():
        values[section] = {**own, **given.get(section, {})}
    return settings_of(values)


def _fitted(data: Dataset, task: Task) -> Dataset:
    try:
        return data.fit(task)
    except DatasetError as error:
        raise DatasetError(f"test: {error}") from error


def _examples(task: Task, data: Dataset, share: float, name: str) -> Examples:
    try:
        return Examples.of(task, data, share, name)
    except DatasetError as error:
        raise DatasetError(f"client {name!r}: {error}") from error
