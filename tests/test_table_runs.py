"""A run on tables by the real commands: no data on the server, Keras and LiteRT together."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.kills import free_port
from support.processes import Processes, run

from featherfed.datasets.sources import load_client_data, load_inputs
from featherfed.edge_client.examples import Examples
from featherfed.models.tflite import Predictor
from featherfed.server.settings.settings import Settings
from featherfed.tasks.scaling import Statistics, merge

MODEL = """
import tf_keras


def build():
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.InputLayer((12, 3)),
            layers.Conv1D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.Dense(4),
        ]
    )
"""
RUN = """
output = "runs/heat"
rounds = 6

[server]
port = {port}

[model]
name = "model:build"

[training]
epochs = 3
learning_rate = 0.02
batch_size = 16

[task]
metrics = ["mae", "rmse", "r2"]

[[task.inputs]]
name = "sensors"
dtype = "float32"
columns = ["temperature", "pressure", "load"]
standardize = true

[task.target]
kind = "values"
columns = ["temperature"]
standardize = true

[task.window]
length = 12
stride = 2
horizon = 4
group = "day"
"""
CLIENTS = {"kitchen": "keras", "garden": "litert"}


def write_table(path: Path, seed: int) -> None:
    """Write four days of a room; that of a higher seed is warmer."""
    draw = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["day", "load", "temperature", "pressure", "note"])
        for day in range(4):
            phase = draw.uniform(0, 6)
            for k in range(200):
                heat = 20 + 10 * seed + 5 * np.sin(phase + k / 10) + draw.normal(0, 0.1)
                pressure = 101_325 + 50 * np.cos(phase + k / 10)
                rows.writerow([f"2026-01-0{day + 1}", draw.random(), heat, pressure, "a, b"])


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.end()


@pytest.mark.slow  # a server and clients with tables, to the measured int8 file
def test_clients_with_tables_train_a_forecast(processes: Processes) -> None:
    folder = processes.directory
    (folder / "model.py").write_text(MODEL)
    text = RUN.format(port=free_port())
    (folder / "run.toml").write_text(text)
    for seed, name in enumerate(CLIENTS):
        write_table(folder / f"{name}.csv", seed)
    settings = Settings.model_validate(tomllib.loads(text))
    task = settings.explicit_task
    assert task is not None
    processes.start("server", "serve", "run.toml")
    address = f"127.0.0.1:{settings.server.port}"
    for name, runtime in CLIENTS.items():
        processes.join(name, address, f"{name}.csv", "--runtime", runtime)
    assert processes.wait("server", 200) == 0, processes.log("server")
    for name in CLIENTS:
        assert processes.wait(name, 60) == 0, processes.log(name)

    told = json.loads((folder / "runs/heat/metrics.json").read_text("utf-8"))
    final = told["final"]
    assert (told["evaluated_by"], told["dataset"]) == ("clients", None)
    assert {c["client"] for c in told["rounds"][0]["clients"]} == set(CLIENTS)
    assert told["rounds"][0]["scores"]["mae"] > 2 * final["scores"]["mae"]
    assert final["scores"]["r2"] > 0.8

    # The scaling in the files is that of both clients' training examples, as numpy has it.
    data = {
        name: Examples.of(task, load_client_data(str(folder / f"{name}.csv"), task), 0.1, name)
        for name in CLIENTS
    }
    predictor = Predictor(folder / "runs/heat/model_float32.tflite")
    assert predictor.task == task
    rows = np.concatenate([one.training.inputs[0] for one in data.values()]).astype(np.float64)
    mean, deviation = rows.mean(axis=(0, 1)), rows.std(axis=(0, 1))
    expected = merge(
        [Statistics.of(task, e.training.inputs, e.training.targets) for e in data.values()]
    )
    scale = expected.inputs[0]
    assert scale is not None
    np.testing.assert_allclose(scale.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(scale.deviation, deviation, rtol=1e-4)

    # What the float32 file answers in degrees has the very scores that the clients told.
    x, y = [], []
    for one in data.values():
        assert one.held_out is not None
        assert one.held_out.targets is not None
        x.append(one.held_out.inputs[0])
        y.append(one.held_out.targets)
    answers = predictor.predict(np.concatenate(x)).astype(np.float64)
    errors = answers - np.concatenate(y)
    assert answers.shape[1:] == (4,)
    assert 10 < answers.mean() < 40
    assert np.abs(errors).mean() == pytest.approx(final["scores"]["mae"], rel=1e-3)
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(final["scores"]["rmse"], rel=1e-3)

    # So does the Keras model by hand, standardised and back.
    from featherfed.models.export import load_keras

    keras = load_keras(folder / "runs/heat/model.keras")
    target = expected.target
    assert target is not None
    learned = keras.predict((np.concatenate(x) - scale.mean) / scale.deviation, verbose=0)
    by_hand = learned * target.deviation + target.mean
    np.testing.assert_allclose(answers, by_hand, atol=1e-3)

    # The int8 file has ranges of both clients, and the very scores that they told of it.
    assert final["failed"] == []
    counts = [(len(e.training), e.held_out) for e in data.values()]
    assert final["num_calibration_examples"] == sum(min(200, count) for count, _ in counts)
    row = next(row for row in final["models"] if row["kind"] == "int8")
    assert (row["evaluated_by"], row["num_examples"]) == ("clients", len(np.concatenate(x)))
    int8 = Predictor(folder / "runs/heat/model_int8.tflite").predict(np.concatenate(x))
    off = int8.astype(np.float64) - np.concatenate(y)
    assert np.abs(off).mean() == pytest.approx(row["scores"]["mae"], rel=1e-3)

    # It is about as good as one that is made with the clients' examples at hand.
    from featherfed.models.export import ModelFiles
    from featherfed.models.optimized import FederatedModel

    scaling = predictor.scaling
    model = FederatedModel(keras.to_json(), None, task)
    model.set_weights(keras.get_weights())
    shown = np.concatenate([one.training.inputs[0] for one in data.values()])
    (folder / "shown.tflite").write_bytes(
        ModelFiles(model, folder, scaling.prepare([shown]), scaling).tflite("int8")
    )
    with_data = Predictor(folder / "shown.tflite").predict(np.concatenate(x))
    mae = np.abs(with_data.astype(np.float64) - np.concatenate(y)).mean()
    print(f"mae: float {final['scores']['mae']:.4f}, int8 {row['scores']['mae']:.4f}, {mae:.4f}")
    assert row["scores"]["mae"] < 1.1 * mae + 0.05

    # `predict` reads the same table, and needs nothing after a window.
    done = run("predict", "runs/heat/model_float32.tflite", "garden.csv", cwd=folder)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    windows = load_inputs(str(folder / "garden.csv"), predictor.task)[0]
    assert len(lines) == len(windows) == 4 * 95
    first = [float(number) for number in lines[0].split()[1:]]
    np.testing.assert_allclose(first, predictor.predict(windows[:1])[0], rtol=1e-3)


@pytest.mark.slow  # a start of the command for each message
def test_a_table_that_does_not_fit_is_one_plain_message(processes: Processes) -> None:
    folder = processes.directory
    (folder / "model.py").write_text(MODEL)
    port = free_port()
    (folder / "run.toml").write_text(RUN.format(port=port))
    write_table(folder / "kitchen.csv", 0)
    text = (folder / "kitchen.csv").read_text()
    (folder / "wrong.csv").write_text(text.replace("temperature", "degrees", 1))
    lines = text.splitlines()
    lines[7] = "2026-01-01,0.5,warm,101325,-"
    (folder / "broken.csv").write_text("\n".join(lines))
    processes.start("server", "serve", "run.toml")
    for name, message in {
        "wrong": "wrong.csv: lacks the column temperature; it has day, load, degrees",
        "broken": "broken.csv: row 7, column 'temperature': 'warm' is no number; fill or drop",
        "nothing": "'nothing.csv': no such file or folder; give an .npz, .csv or .parquet",
    }.items():
        done = run(
            "join", f"127.0.0.1:{port}", "--data", f"{name}.csv", "--name", name,
            "--state-dir", name, "--runtime", "litert", cwd=folder,
        )  # fmt: skip
        assert done.returncode == 1
        assert f"featherfed: {message}" in done.stderr
        assert "Traceback" not in done.stderr
