"""Plots of a history: which fit a task, the numbers in them, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from featherfed.api import assessment, plots
from featherfed.api.history import History
from featherfed.datasets.dataset import Dataset, DatasetError
from featherfed.proto.plan_terms import Loss
from featherfed.tasks.records import records
from featherfed.tasks.scaling import FeatureScale, Scaling
from featherfed.tasks.task import Input, Target, TargetKind, Task

ROOT = Path(__file__).parent.parent
NAN = np.nan

# ---- numbers ----


def test_confusion_counts_true_classes_by_row() -> None:
    counts = assessment.confusion(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_confusion_takes_every_position() -> None:
    counts = assessment.confusion(np.array([[0, 1], [1, 1]]), np.array([[0, 0], [1, 0]]), 2)
    assert counts.tolist() == [[1, 2], [0, 1]]


def test_confusion_of_labels_counts_each_label() -> None:
    decided = np.array([[1, 0], [1, 1], [0, 0]], bool)
    true = np.array([[1, 1], [0, 1], [0, 0]], bool)
    assert assessment.label_confusion(decided, true).tolist() == [[1, 0, 1, 1], [1, 1, 0, 1]]


def test_calibration_compares_confidence_with_the_share_that_is_right() -> None:
    found = assessment.calibration(
        np.array([0.1, 0.2, 0.9, 1.0]), np.array([False, True, True, True]), bins=2
    )
    assert found.counts.tolist() == [2, 2]
    assert found.confidence == pytest.approx([0.15, 0.95])
    assert found.share == pytest.approx([0.5, 1.0])
    assert found.error == pytest.approx((2 * 0.35 + 2 * 0.05) / 4)


@pytest.mark.parametrize(
    ("confidence", "place"), [(0.0, 0), (0.1, 1), (0.3, 3), (0.7, 7), (0.999, 9), (1.0, 9)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_edge_is_in_the_upper_bin(confidence: float, place: int, dtype: Any) -> None:
    found = assessment.calibration(np.array([confidence], dtype), np.array([True]))
    assert np.flatnonzero(found.counts).tolist() == [place]


def test_an_empty_bin_has_no_confidence() -> None:
    found = assessment.calibration(np.array([0.9]), np.array([True]), bins=2)
    np.testing.assert_array_equal(found.confidence, [NAN, 0.9])
    assert found.error == pytest.approx(0.1)


def test_a_model_that_is_as_right_as_it_is_sure_is_calibrated() -> None:
    right = np.arange(10) < 7
    assert assessment.calibration(np.full(10, 0.7), right).error == pytest.approx(0.0)


def test_residuals_are_answers_minus_true_values() -> None:
    found = assessment.residuals(np.array([1, 5], np.float32), np.array([2, 2], np.float32))
    assert found.values.tolist() == [-1.0, 3.0]
    assert (found.mean, found.deviation) == (1.0, 2.0)


def test_quantiles_are_those_of_each_position() -> None:
    values = np.stack([np.arange(101), 2 * np.arange(101)], axis=1)
    found = assessment.position_quantiles(values)
    assert found.tolist() == [[5, 10], [25, 50], [50, 100], [75, 150], [95, 190]]


def test_errors_of_examples_and_of_positions() -> None:
    given, true = np.array([[1.0, 2.0], [3.0, 8.0]]), np.array([[1.0, 0.0], [0.0, 4.0]])
    assert assessment.example_errors(given, true).tolist() == [2.0, 12.5]
    assert assessment.position_errors(given, true) == pytest.approx([4.5**0.5, 10**0.5])


def test_the_spread_over_clients_is_by_round() -> None:
    found = assessment.client_spread([[1.0, 2.0, 3.0, 4.0, 5.0], [], [7.0]])
    np.testing.assert_array_equal(found, [[1, 2, 3, 4, 5], [NAN] * 5, [7] * 5])


# ---- a history whose model answers what a test says ----


class Fixed:
    """A model that answers the same, whatever the weights."""

    def __init__(self, task: Task, answers: Any) -> None:
        self.task, self.answers = task, answers
        self.asked: Any = None

    def set_weights(self, weights: Any) -> None:
        pass

    def predict(self, inputs: Any) -> Any:
        self.asked = inputs
        return self.answers


def client(name: str, **values: Any) -> dict[str, Any]:
    traffic = dict.fromkeys(("message_bytes", "control_bytes", "retry_bytes"), 10)
    told = {"scores": None, "before": None, "after": None, "train_loss": None, **values}
    return {"client": name, "num_examples": 5, "uplink": traffic, "downlink": traffic, **told}


def history(
    task: Task, answers: Any, scaling: Scaling | None = None, clients: Any = ((), ())
) -> History:
    scores = dict.fromkeys(("loss", *task.metrics), 0.5)
    rounds = [
        {"round": number, "scores": scores, "digest": "ab", "clients": list(own)}
        for number, own in enumerate(clients, 1)
    ]
    model: Any = Fixed(task, np.asarray(answers))
    return History({"rounds": rounds}, model, [], scaling)


SENSORS = Input("x", "float32", (2,))
X = np.arange(6, dtype=np.float32).reshape(3, 2)
CLASSES = Task((SENSORS,), Target(TargetKind.CLASS, class_names=("cold", "warm")))
LABELS = Task((SENSORS,), Target(TargetKind.LABELS, (2,), ("dry", "loud")))
VALUES = Task((SENSORS,), Target(TargetKind.VALUES))
INPUT = Task((SENSORS,), Target(TargetKind.INPUT))
PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], np.float32)


def titles(figure: Any) -> list[str]:
    figure.draw_without_rendering()
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def test_without_arguments_it_is_the_curves() -> None:
    for figure in (history(VALUES, [1]).plot(), history(VALUES, [1]).plot("curves")):
        assert [axes.get_ylabel() for axes in figure.axes] == ["mae", "kB sent so far"]


def test_classes_have_confusion_and_calibration() -> None:
    figure = history(CLASSES, PROBABILITIES).plot(data=(X, [0, 1, 1]))
    assert titles(figure) == [
        "Confusion: 2 of 3 right",
        "Calibration: off by 40.0 points in the mean",
    ]
    matrix = figure.axes[0]
    assert [text.get_text() for text in matrix.texts] == ["1", "", "1", "1"]
    assert [label.get_text() for label in matrix.get_yticklabels()] == ["cold", "warm"]
    np.testing.assert_array_equal(matrix.images[0].get_array(), [[1, 0], [0.5, 0.5]])


def test_the_probability_of_the_second_class_is_enough() -> None:
    task = Task(CLASSES.inputs, CLASSES.target, Loss.BINARY_CROSSENTROPY)
    figure = history(task, [[0.1], [0.6], [0.3]]).plot("confusion", (X, [0, 1, 1]))
    assert titles(figure) == ["Confusion: 2 of 3 right"]


def test_classes_of_positions_count_each() -> None:
    task = Task((SENSORS,), Target(TargetKind.CLASS, (2,), ("cold", "warm")))
    answers = np.stack([PROBABILITIES, PROBABILITIES], axis=1)
    figure = history(task, answers).plot("confusion", (X, [[0, 1], [1, 1], [1, 0]]))
    assert titles(figure) == ["Confusion: 4 of 6 right"]


def test_labels_are_counted_one_by_one() -> None:
    figure = history(LABELS, PROBABILITIES).plot(data=(X, [[1, 0], [1, 1], [0, 0]]))
    assert titles(figure)[0] == "Confusion"
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["1", "1", "1", "", "1", "", "", "2"]


def test_values_have_residuals_in_their_own_units() -> None:
    scale = FeatureScale(np.array([10], np.float32), np.array([2], np.float32))
    task = Task((SENSORS,), Target(TargetKind.VALUES, standardize=True))
    answers = np.array([[0.0], [1.0], [2.0]], np.float32)
    found = history(task, answers, Scaling((None,), scale)).plot(data=(X, [10, 11, 12]))
    assert titles(found) == ["Predicted against true", "Residuals: mean 1, deviation 0.816"]
    dots = found.axes[0].collections[0].get_offsets()
    assert np.asarray(dots).tolist() == [[10, 10], [11, 12], [12, 14]]


def test_a_few_values_have_a_row_each() -> None:
    target = Target(TargetKind.VALUES, (2,), columns=("power", "heat"))
    figure = history(Task((SENSORS,), target), X).plot("residuals", (X, X + 1))
    assert titles(figure) == [
        "Predicted against true (power)",
        "Residuals (power): mean -1, deviation 0",
        "Predicted against true (heat)",
        "Residuals (heat): mean -1, deviation 0",
    ]


def test_many_values_are_shown_together() -> None:
    task = Task((SENSORS,), Target(TargetKind.VALUES, (2, 4)))
    y = np.zeros((3, 2, 4), np.float32)
    figure = history(task, y).plot("residuals", (X, y))
    assert titles(figure) == ["Predicted against true", "Residuals by value"]


def test_more_answers_than_can_be_dots_are_counted() -> None:
    many = np.zeros((6000, 2), np.float32)
    y = np.random.default_rng(0).normal(size=6000).astype(np.float32)
    figure = history(VALUES, y[:, None]).plot("residuals", (many, y))
    assert len(figure.axes[0].collections[0].get_offsets()) < 6000


def test_inputs_have_reconstruction_errors_as_the_model_sees_them() -> None:
    scale = FeatureScale(np.array([1, 2], np.float32), np.array([1, 2], np.float32))
    task = Task((Input("x", "float32", (2,), standardize=True),), INPUT.target)
    seen = scale.apply(X)
    figure = history(task, seen, Scaling((scale,))).plot(data=X)
    assert titles(figure) == ["Reconstruction errors", "Where they are"]
    assert [bar.get_height() for bar in figure.axes[1].patches] == [0, 0]


@pytest.mark.parametrize("shape", [(), (2,), (3, 2), (4, 4, 1), (4, 4, 3), (2, 2, 2, 2)])
def test_inputs_of_any_shape_have_errors(shape: tuple[int, ...]) -> None:
    x = np.ones((3, *shape), np.float32)
    figure = history(Task((Input("x", "float32", shape),), INPUT.target), x * 0.5).plot("errors", x)
    assert titles(figure) == ["Reconstruction errors", "Where they are"][: 1 + bool(shape)]


def several() -> tuple[History, Any]:
    task = Task(
        (SENSORS,),
        Target.several(
            Target(TargetKind.CLASS, class_names=("cold", "warm"), name="state"),
            Target(TargetKind.VALUES, name="power"),
        ),
    )
    power = np.ones((3, 1), np.float32)
    data = (X, {"state": np.array([0, 1, 0]), "power": power[:, 0]})
    return history(task, records({"state": PROBABILITIES, "power": power})), data


def test_each_of_several_targets_has_what_fits_it() -> None:
    made, data = several()
    assert [text.split(":")[0] for text in titles(made.plot(data=data))] == [
        "state",
        "state",
        "power",
        "power",
    ]
    assert titles(made.plot("confusion", data)) == ["state: confusion: 3 of 3 right"]
    assert len(titles(made.plot(data=data, target="power"))) == 2


def test_a_target_that_is_not_there_is_refused() -> None:
    made, data = several()
    with pytest.raises(plots.PlotError, match="no target 'heat'; there are state, power"):
        made.plot(data=data, target="heat")
    with pytest.raises(plots.PlotError, match="one without a name"):
        history(VALUES, [[1]] * 3).plot(data=(X, [1, 2, 3]), target="heat")
    with pytest.raises(plots.PlotError, match="confusion does not fit a target of kind values"):
        made.plot("confusion", data, target="power")
    with pytest.raises(plots.PlotError, match="a target is of answers"):
        made.plot(target="power")


@pytest.mark.parametrize(
    ("task", "kind", "fitting"),
    [
        (CLASSES, "residuals", "class; use confusion, calibration, curves, clients"),
        (LABELS, "errors", "labels; use confusion, calibration, curves, clients"),
        (VALUES, "confusion", "values; use residuals, curves, clients"),
        (INPUT, "calibration", "input; use errors, curves, clients"),
    ],
)
def test_what_does_not_fit_the_task_says_what_does(task: Task, kind: Any, fitting: str) -> None:
    y = {"class": [0, 1, 1], "labels": [[0, 1]] * 3, "values": [1, 2, 3], "input": None}
    answers = X[:, :1] if task is VALUES else PROBABILITIES
    wanted = f"{kind} does not fit a target of kind {re.escape(fitting)}"
    with pytest.raises(plots.PlotError, match=wanted):
        history(task, answers).plot(kind, Dataset((X,), _array(y[task.target.kind])))


def _array(values: Any) -> Any:
    return None if values is None else np.asarray(values)


@pytest.mark.parametrize("kind", sorted({*get_args(plots.PlotKind)} - {"curves", "clients"}))
def test_plots_of_answers_need_data(kind: Any) -> None:
    with pytest.raises(plots.PlotError, match=f"{kind} needs data"):
        history(CLASSES, PROBABILITIES).plot(kind)


@pytest.mark.parametrize("kind", ["curves", "clients"])
def test_plots_of_the_run_take_none(kind: Any) -> None:
    with pytest.raises(plots.PlotError, match="leave data out"):
        history(CLASSES, PROBABILITIES).plot(kind, (X, [0, 1, 1]))


def test_an_unknown_plot_is_refused_with_those_there_are() -> None:
    made: Any = history(CLASSES, PROBABILITIES)
    with pytest.raises(plots.PlotError, match="no plot 'roc'; use one of curves, clients, conf"):
        made.plot("roc")
    with pytest.raises(plots.PlotError, match=r"give data as data=\(x, y\)"):
        made.plot((X, [0, 1, 1]))


def test_data_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DatasetError, match="targets go from 0 to 2"):
        history(CLASSES, PROBABILITIES).plot(data=(X, [0, 1, 2]))


def test_answers_that_are_no_probabilities_have_no_calibration() -> None:
    with pytest.raises(plots.PlotError, match="go from -3 to 9, and calibration needs prob"):
        history(CLASSES, [[-3, 9]] * 3).plot("calibration", (X, [0, 1, 1]))


def test_answers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(plots.PlotError, match="not all finite"):
        history(VALUES, [[np.inf]] * 3).plot(data=(X, [0, 1, 1]))


# ---- clients ----


def test_clients_show_all_that_is_known_of_them() -> None:
    rounds = [
        [
            client(name, before={"mae": 3.0 + i}, after={"mae": 2.0 - n}, train_loss=0.5 * i)
            for i, name in enumerate("abc")
        ]
        for n in range(2)
    ]
    figure = history(VALUES, [1], clients=rounds).plot("clients")
    assert titles(figure) == [
        "Before local training, on own held-out examples",
        "After local training, on own held-out examples",
        "Loss of local training",
    ]
    before, after, loss = figure.axes
    assert before.get_ylim() == after.get_ylim() != loss.get_ylim()
    median = next(line for line in before.lines if line.get_label() == "median")
    assert list(median.get_ydata()) == [4.0, 4.0]


def test_clients_that_the_server_measured_are_shown() -> None:
    rounds = [[client("a", scores={"mae": 1.0}), client("b")], [client("b")]]
    figure = history(VALUES, [1], clients=rounds).plot("clients")
    assert titles(figure) == ["After local training, on test examples"]


def test_clients_that_tell_nothing_are_no_plot() -> None:
    with pytest.raises(plots.PlotError, match="no client was measured"):
        history(VALUES, [1], clients=[[client("a")]]).plot("clients")


# ---- inputs and docs ----


def test_a_list_is_of_several_inputs() -> None:
    task = Task((SENSORS, Input("z", "float32", (1,))), Target(TargetKind.VALUES))
    made = history(task, [[1.0]] * 3)
    z = np.zeros((3, 1), np.float32)
    assert made.predict([X, z]).shape == (3, 1)
    model: Any = made._model
    np.testing.assert_array_equal(model.asked[0], X)
    assert titles(made.plot(data=([X, z], [1, 2, 3])))[0] == "Predicted against true"


def test_the_public_surface_is_documented() -> None:
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    public = {name for name in vars(History) if not name.startswith("_")}
    public |= {"metrics", "rounds", "weights"}
    missing = {name for name in public if f"`history.{name}" not in text}
    assert not missing
    for kind in get_args(plots.PlotKind):
        assert f'`"{kind}"`' in text


def test_a_real_run_is_shown() -> None:
    pytest.importorskip("tensorflow_model_optimization")
    import featherfed

    rng = np.random.default_rng(0)
    x = rng.random((120, 8, 8)).astype(np.float32)
    y = (x.mean(axis=(1, 2)) > 0.5).astype(int)
    made = featherfed.simulate(
        "mlp", clients=[(x[:40], y[:40]), (x[40:80], y[40:80])], rounds=2, epochs=1
    )
    assert len(titles(made.plot("clients"))) == 3
    (confusion,) = titles(made.plot("confusion", (x[80:], y[80:])))
    assert confusion.endswith("of 40 right")
