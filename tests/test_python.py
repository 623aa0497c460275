"""`import featherfed`: simulations, a server and clients from Python, and what costs nothing."""

from __future__ import annotations

import asyncio
import builtins
import json
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_model_optimization")

import featherfed
from featherfed.api import extras, progress
from featherfed.compression.arrays import Array
from featherfed.datasets.dataset import DatasetError
from featherfed.datasets.partition import partition
from featherfed.datasets.sources import load_train_test
from featherfed.edge_client.errors import ClientError
from featherfed.models.errors import ModelError
from featherfed.models.importing import importing_tensorflow
from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import ServerError

with importing_tensorflow():
    import tf_keras

Data = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
TASK = featherfed.Task(
    (featherfed.Input("sensors", "float32", (2,), standardize=True),),
    featherfed.Target(featherfed.TargetKind.VALUES, standardize=True),
    metrics=("rmse", "mae"),
)


def clients_of_sensors() -> dict[str, Data]:
    def one(seed: int) -> Data:
        x = np.random.default_rng(seed).normal([20, 1000], [5, 30], (200, 2)).astype(np.float32)
        return x, 3 * x[:, 0] + 0.1 * x[:, 1] + 7

    return {"a": one(1), "b": one(2)}


def linear() -> Any:
    layers = tf_keras.layers
    return tf_keras.Sequential([layers.InputLayer((2,)), layers.Dense(1, name="answer")])


def sensors(rounds: int = 3, **changes: Any) -> featherfed.History:
    options: dict[str, Any] = {"learning_rate": 0.05, "uplink": "float32", "epochs": 2, **changes}
    return featherfed.simulate(
        linear(), TASK, clients=clients_of_sensors(), rounds=rounds, **options
    )


# ---- simulations ----


def test_a_simulation_is_a_case_of_a_sweep(tmp_path: Path) -> None:
    from featherfed.cli.sweep_case import run_case
    from featherfed.sweep.grid import Sweep

    grid = {"codec": ["balanced"], "model": ["mlp"], "clients": [3], "seed": [5]}
    training = {"epochs": 2, "learning_rate": 0.1}
    (case,) = Sweep.model_validate(
        {"grid": grid, "run": {"rounds": 3, "training": training}}
    ).cases()
    swept = json.loads(json.dumps(run_case(case)))

    train, test = load_train_test("digits")
    shards = [train.take(chosen) for chosen in partition(train.labels, 3, "iid", 5)]
    seen: list[tuple[int, dict[str, float]]] = []
    history = featherfed.simulate(
        "mlp", clients=[(s.images, s.labels) for s in shards], test=(test.images, test.labels),
        rounds=3, seed=5, callbacks=[lambda round, scores: seen.append((round, dict(scores)))],
        **training,
    )  # fmt: skip
    assert [r.digest for r in history.rounds] == [r["digest"] for r in swept["rounds"]]
    assert history.digest == swept["final"]["digest"]
    assert history.final == swept["final"]["scores"]
    assert seen == [(r["round"], r["scores"]) for r in swept["rounds"]]
    assert not history.stopped_early
    sent = swept["final"]["totals"]["uplink"]
    sizes = ("message_bytes", "control_bytes", "retry_bytes")
    assert history.bytes["uplink"] == sum(sent[size] for size in sizes)

    found = history.model().predict(test.images / 255, verbose=0).argmax(-1)
    assert np.mean(found == test.labels) == pytest.approx(history.final["accuracy"])
    assert (history.predict(test.images).argmax(-1) == found).all()
    assert "3 rounds, accuracy 0." in repr(history)
    history.save(tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8"))["final"] == {
        **history.metrics["final"]
    }


def test_clients_that_evaluate_and_standardise_by_themselves() -> None:
    history = sensors(rounds=5, epochs=5)
    assert history.task == TASK
    final = history.final["rmse"]
    assert final is not None
    assert final < 0.5 * float(np.std(clients_of_sensors()["a"][1]))
    x, y = clients_of_sensors()["b"]
    error = history.predict(x).ravel() - y
    assert float(np.sqrt(np.mean(error**2))) == pytest.approx(final, rel=0.4)
    assert history.scores["rmse"][-1] == final


def test_a_model_that_is_given_starts_from_its_weights_and_keeps_them() -> None:
    model = linear()
    before = [weight.copy() for weight in model.get_weights()]
    history = featherfed.simulate(
        model, TASK, clients=clients_of_sensors(), rounds=1, epochs=1, learning_rate=1e-12,
        uplink="float32",
    )  # fmt: skip
    for now, was, trained in zip(model.get_weights(), before, history.weights, strict=True):
        assert (now == was).all()
        np.testing.assert_allclose(trained, was, atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_model_of_keras_3_and_one_in_a_file(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", minversion="3")
    keras.utils.clear_session()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.save(tmp_path / "own.keras")
    options = {"clients": clients_of_sensors(), "rounds": 1, "epochs": 1}
    by_object = featherfed.simulate(model, TASK, **options)
    by_path = featherfed.simulate(tmp_path / "own.keras", TASK, **options)
    assert by_object.digest == by_path.digest


@pytest.mark.parametrize("way", ["true", "raised"])
def test_a_callback_ends_the_run_after_its_round(way: str) -> None:
    def enough(round: int, scores: Mapping[str, float]) -> bool | None:
        if round == 2 and way == "raised":
            raise featherfed.StopTraining
        return round == 2

    called: list[int] = []
    model = linear()
    options: dict[str, Any] = {"clients": clients_of_sensors(), "epochs": 1, "uplink": "float32"}
    both = [enough, lambda round, scores: called.append(round)]
    short = featherfed.simulate(model, TASK, rounds=6, callbacks=both, **options)
    assert (len(short.rounds), short.stopped_early, called) == (2, True, [1, 2])
    assert short.metrics["final"]["version"] == 2
    assert short.final["rmse"] is not None, "clients report on the final model after the end"
    whole = featherfed.simulate(model, TASK, rounds=6, **options)
    assert [r.digest for r in short.rounds] == [r.digest for r in whole.rounds[:2]]


def test_other_errors_of_a_callback_reach_the_caller() -> None:
    def broken(round: int, scores: Mapping[str, float]) -> None:
        raise KeyError("my own")

    with pytest.raises(KeyError, match="my own"):
        sensors(callbacks=[broken])


def test_a_training_loop_of_the_callers_own() -> None:
    seen: list[tuple[int, tuple[int, ...], float]] = []

    def loop(model: Any, inputs: Any, targets: Any, round: int) -> Any:
        seen.append((round, inputs.shape, float(np.abs(inputs.mean(axis=0)).max())))
        assert targets.shape == (180, 1)
        return model.fit(inputs, targets, epochs=3, batch_size=32, verbose=0)

    history = sensors(rounds=3, trainer=loop)
    assert [(r, s) for r, s, _ in seen] == [(r, (180, 2)) for r in (1, 1, 2, 2, 3, 3)]
    assert max(mean for *_, mean in seen) < 0.3, "standardised"
    assert history.scores["rmse"][-1] < history.scores["rmse"][0]  # type: ignore[operator]

    quiet = sensors(rounds=1, trainer=lambda model, *rest: None)
    measured = quiet.rounds[0].train_loss
    assert measured is not None
    assert measured > 0
    with pytest.raises(ClientError, match="the training loop returned str"):
        sensors(rounds=1, trainer=lambda *rest: "loss")
    with pytest.raises(ClientError, match="cannot do the method 'cluster'"):
        sensors(rounds=1, trainer=lambda *rest: 0, settings={"optimization": {"method": "cluster"}})


def test_a_loop_keeps_what_is_pruned_at_zero() -> None:
    train, test = load_train_test("digits")
    history = featherfed.simulate(
        "mlp", clients=[(train.images[:200], train.labels[:200])], rounds=2, uplink="float32",
        test=(test.images, test.labels),
        trainer=lambda model, x, y, round: model.fit(x, y, verbose=0),
        settings={"optimization": {"method": "prune", "begin_round": 1, "end_round": 2}},
    )  # fmt: skip
    largest = max(history.weights, key=np.size)
    assert np.mean(largest == 0) > 0.7


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"clients": []}, DatasetError, "clients: there are none"),
        ({"clients": [3]}, DatasetError, "client 'client-0': int is no data set"),
        ({"clients": {"a": (np.zeros((4, 3)), np.zeros(4))}}, DatasetError, "client 'a': input"),
        ({"test": (np.zeros((4, 2)),)}, DatasetError, "test: tuple is no data set"),
        ({"optimizer": "lion"}, ServerError, "training.optimizer"),
        ({"settings": {"trainig": {}}}, ServerError, "did you mean 'training'"),
        ({"uplink": "gzip"}, ServerError, "compression.uplink"),
        ({"model": 3}, ModelError, "int is no model"),
        ({"model": "resnet"}, ServerError, "takes pictures"),
        ({"task": None}, DatasetError, "images"),
    ],
)
def test_what_cannot_be_simulated(change: dict[str, Any], kind: type, message: str) -> None:
    options = {"model": linear(), "task": TASK, "clients": clients_of_sensors(), **change}
    with pytest.raises(kind, match=message):
        featherfed.simulate(options.pop("model"), options.pop("task"), **options)


# ---- tables and pictures ----


def test_a_table_and_a_picture() -> None:
    history = sensors(rounds=2)
    figure = history.plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["rmse", "kB sent so far"]
    pytest.importorskip("pandas")
    frame = history.to_pandas()
    assert list(frame.index) == [1, 2]
    assert frame.index.name == "round"
    assert list(frame["rmse"]) == history.scores["rmse"]
    assert frame["uplink_bytes"].sum() == sum(r.uplink_bytes for r in history.rounds)


def test_what_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    history = sensors(rounds=1)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] in ("pandas", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'featherfed\[pandas\]'"):
        history.to_pandas()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'featherfed\[report\]'"):
        history.plot()


@pytest.mark.parametrize(
    ("module", "use", "wanted"),
    [
        ("tensorflow", "serve", "server,tensorflow"),
        ("pydantic", "serve", "server,tensorflow"),
        ("dp_accounting", "serve", "server,tensorflow,privacy"),
        ("tensorflow", "join", "tensorflow"),
        ("ai_edge_litert", "join", "edge"),
        ("PIL.Image", "join", "images"),
        ("matplotlib", "sweep", "sweep"),
        ("sklearn", "demo", "demo"),
        ("sklearn", "serve", "server,tensorflow,demo"),
        ("cryptography", "certs_init", "server"),
        ("pandas", "to_pandas", "pandas"),
    ],
)
def test_the_smallest_extra(module: str, use: str, wanted: str) -> None:
    assert extras.how_to_install(module, use) == f"pip install 'featherfed[{wanted}]'"


def test_each_extra_brings_what_it_is_named_for() -> None:
    import tomllib

    text = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    project = tomllib.loads(text)["project"]
    listed = project["optional-dependencies"]
    distributions = {
        **packages_distributions(), "PIL": ["pillow"], "h5py": ["tensorflow"],
        "pandas": ["pandas"], "constriction": ["constriction"],
    }  # fmt: skip
    for module, extra in extras.EXTRAS.items():
        names = {name.lower().replace("_", "-") for name in distributions.get(module, [])}
        brought = " ".join(listed[extra]).lower()
        assert not names or any(name in brought for name in names), module
    for command, needed in extras.WHOLE.items():
        assert set(needed) <= set(listed), command


# ---- a server and clients ----

RUN = """
output = "{folder}/out"
rounds = 2
server = {{ port = 0, linger = 20 }}
clients = {{ minimum = 2, quorum = 1.0, deadline = 120 }}
model = {{ name = "{folder}/model.keras" }}
training = {{ epochs = 2, learning_rate = 0.05 }}

[task]
inputs = [{{ name = "sensors", dtype = "float32", shape = [2], standardize = true }}]
target = {{ kind = "values", standardize = true }}
metrics = ["rmse", "mae"]
"""


class LinearTrainer:
    """A whole trainer without Keras: gradient descent in numpy."""

    def __init__(self, data: Data) -> None:
        self.x, self.y = data[0], data[1]
        self.rounds: list[int] = []

    def set_scaling(self, scaling: Any) -> None:
        (self.x,) = scaling.prepare([self.x])
        self.y = scaling.prepare_target(self.y)

    def train(self, weights: Sequence[Array], task: pb.Train) -> featherfed.TrainingResult:
        self.rounds.append(task.round)
        kernel, bias = (weight.copy() for weight in weights)
        for _ in range(10):
            error = self.x @ kernel + bias - self.y[:, None]
            kernel -= np.float32(0.1) * (self.x.T @ error / np.float32(len(self.x)))
            bias -= np.float32(0.1) * error.mean(axis=0)
        return featherfed.TrainingResult([kernel, bias], float(np.square(error).mean()))

    def evaluate(self, weights: Sequence[Array]) -> None:
        return None


async def listening(run: featherfed.Run) -> str:
    for _ in range(1200):
        if run.address is not None:
            return run.address
        await asyncio.sleep(0.05)
    raise AssertionError("the server does not listen")


def run_of(folder: Path) -> featherfed.Run:
    linear().save(folder / "model.keras")
    (folder / "run.toml").write_text(RUN.format(folder=folder), "utf-8")
    return featherfed.Run.from_toml(folder / "run.toml")


def test_server_and_clients_inside_of_a_running_loop(tmp_path: Path) -> None:
    run, data = run_of(tmp_path), clients_of_sensors()
    rounds: list[int] = []

    def loop(model: Any, inputs: Any, targets: Any, round: int) -> Any:
        rounds.append(round)
        return model.fit(inputs, targets, verbose=0)

    trainer = LinearTrainer(data["b"])

    async def notebook() -> tuple[featherfed.Outcome, list[featherfed.HeldModel]]:
        serving = asyncio.create_task(asyncio.to_thread(run.serve))
        address = await listening(run)
        both = [
            featherfed.Client(
                address, data=data[name], name=name, trainer=own, state_dir=tmp_path / name
            )
            for name, own in (("a", loop), ("b", trainer))
        ]
        held = await asyncio.gather(*(asyncio.to_thread(client.run) for client in both))
        return await serving, list(held)

    outcome, held = asyncio.run(notebook())
    assert outcome is featherfed.Outcome.FINISHED
    assert run.address is None
    assert rounds == trainer.rounds == [1, 2]
    told = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert {h.digest.hex() for h in held} == {told["final"]["digest"]}
    assert {c["runtime"] for c in told["rounds"][0]["clients"]} == {"keras", "own"}
    assert (tmp_path / "out" / "report.html").exists()


def test_serve_where_a_loop_runs_in_this_very_thread(tmp_path: Path) -> None:
    run, data = run_of(tmp_path), clients_of_sensors()
    errors: list[BaseException] = []

    def take_part(name: str) -> None:
        try:
            address = asyncio.run(listening(run))
            client = featherfed.Client(
                address, data=data[name], name=name, state_dir=tmp_path / name
            )
            client.run(progress=False)
        except BaseException as error:
            errors.append(error)

    async def cell() -> featherfed.Outcome:
        return run.serve()

    threads = [threading.Thread(target=take_part, args=(name,)) for name in data]
    for thread in threads:
        thread.start()
    assert asyncio.run(cell()) is featherfed.Outcome.FINISHED
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_run_is_stopped_and_goes_on(tmp_path: Path) -> None:
    run = run_of(tmp_path)

    async def stopped() -> featherfed.Outcome:
        serving = asyncio.create_task(asyncio.to_thread(run.serve))
        await listening(run)
        run.stop()
        return await serving

    assert asyncio.run(stopped()) is featherfed.Outcome.STOPPED
    assert asyncio.run(stopped()) is featherfed.Outcome.STOPPED
    run.stop()
    assert run.serve() is featherfed.Outcome.STOPPED, "told before it has started"


def test_a_run_file_and_data_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("rouns = 3", "utf-8")
    with pytest.raises(ServerError, match="did you mean 'rounds'"):
        featherfed.Run.from_toml(tmp_path / "run.toml")
    with pytest.raises(DatasetError, match="data: set is no data set"):
        featherfed.Client("127.0.0.1:1", data={1, 2})


# ---- bars ----


def test_a_bar_is_where_somebody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.progress_bar("rounds", " rounds", 3) as bar:
        assert bar.disable, "no terminal here"
    with progress.progress_bar("rounds", " rounds", 3, shown=True) as bar:
        assert not bar.disable

    class ZMQInteractiveShell: ...

    kernel = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert progress.in_notebook()
    with progress.progress_bar("rounds", " rounds", 3) as bar:
        assert not bar.disable
    with progress.progress_bar("rounds", " rounds", 3, shown=False) as bar:
        assert bar.disable


# ---- lightness ----


def fresh(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_alone_loads_nothing() -> None:
    code = """
import sys
before = set(sys.modules)
import time
began = time.perf_counter()
import featherfed
seconds = time.perf_counter() - began
heavy = ("numpy", "tensorflow", "pydantic", "grpc", "click", "tqdm", "importlib.metadata")
print([name for name in heavy if name in sys.modules], seconds < 0.2)
print(set(featherfed.__all__) <= set(dir(featherfed)), featherfed.__version__)
featherfed.Task, featherfed.Client
print("tensorflow" in sys.modules, "pydantic" in sys.modules)
try:
    featherfed.nonsense
except AttributeError as error:
    print(error)
"""
    lines = fresh(code).splitlines()
    assert lines[0] == "[] True"
    assert lines[1].startswith("True 0.")
    assert lines[2] == "False False", "a client has neither"
    assert lines[3] == "module 'featherfed' has no attribute 'nonsense'"


def test_every_name_is_there() -> None:
    assert {name for name in featherfed.__all__ if not hasattr(featherfed, name)} == set()
