"""Figures of a history: its curves, its clients, and how its final model answers to data.

Which of them fit a task follows from the kind of its target; the numbers are those of
assessment.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from featherfed.api import assessment
from featherfed.api.extras import explained
from featherfed.datasets.dataset import Dataset
from featherfed.tasks.records import fields
from featherfed.tasks.scaling import Scaling
from featherfed.tasks.scoring import both_classes
from featherfed.tasks.task import TargetKind, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PlotKind = Literal["curves", "clients", "confusion", "calibration", "residuals", "errors"]
"""What `History.plot` can show."""
Values = npt.NDArray[Any]
Panel = Callable[["Axes"], None]
"""Draws one part of a figure."""

_FITTING: dict[TargetKind, tuple[PlotKind, ...]] = {
    TargetKind.CLASS: ("confusion", "calibration"),
    TargetKind.LABELS: ("confusion", "calibration"),
    TargetKind.VALUES: ("residuals",),
    TargetKind.INPUT: ("errors",),
}
"""The plots of answers that fit a target, all of which are shown if none is named."""
_WITHOUT_DATA = ("curves", "clients")
_MOST_NUMBERS = 12
"""Classes whose counts are written into the confusion matrix."""
_MOST_NAMES = 40
"""Classes that have their names beside it."""
_MOST_ROWS = 4
"""Values of a target that have residuals of their own."""
_MOST_DOTS = 5000
"""Answers that are drawn one by one."""


class PlotError(ValueError):
    """A plot that does not fit the task or the data; the message says which do."""


@dataclass(frozen=True)
class Answers:
    """Answers to one target, and what is true, as they are compared.

    `task` is that of the target alone. Classes: `given` are probabilities [..., classes], `true`
    integers [...]. Labels: probabilities and integers [N, labels]. Values: both [N, ...]. Inputs:
    both as the model sees them. `name`: of one of several targets.
    """

    name: str
    task: Task
    given: Values
    true: Values

    def titled(self, text: str) -> str:
        """Return a heading, with the target's name where there are several."""
        return f"{self.name}: {text}" if self.name else text[:1].upper() + text[1:]


def answers_to(task: Task, data: Dataset, answers: Values, scaling: Scaling) -> list[Answers]:
    """Return a model's answers, as `History.predict` gives them, and what is true, by target.

    `data` fit the task. Raises PlotError for answers that are not finite.
    """
    names = task.target.names
    given = fields(answers, names)
    if not all(np.isfinite(part).all() for part in given):
        raise PlotError("the model's answers to these data are not all finite; train it otherwise")
    if task.target.kind is TargetKind.INPUT:
        seen = task.inputs[0].seen(scaling.prepare(data.inputs)[0])
        return [Answers("", task, answers.reshape(seen.shape), seen)]
    assert data.targets is not None, "data that fit a task have its targets"
    return [
        Answers(name, part, _comparable(part, own, true), true)
        for name, part, own, true in zip(
            names or ("",), task.parts, given, fields(data.targets, names), strict=True
        )
    ]


def _comparable(task: Task, answers: Values, true: Values) -> Values:
    """Return answers to a single target in the shape that `Answers` says."""
    if task.target.kind is not TargetKind.CLASS:
        return answers.reshape(true.shape)
    answers = answers.reshape(*true.shape, -1)
    return both_classes(answers) if answers.shape[-1] == 1 else answers


def check_kind(kind: object, has_data: bool) -> PlotKind | None:
    """Return the kind of plot that was asked for; raise PlotError if there is none such."""
    if kind is None:
        return None
    known = get_args(PlotKind)
    if not isinstance(kind, str):
        raise PlotError("the first argument names the plot; give data as data=(x, y)")
    if kind not in known:
        raise PlotError(f"no plot {kind!r:.60}; use one of {', '.join(known)}")
    if kind in _WITHOUT_DATA and has_data:
        raise PlotError(f"{kind} shows the run, not data; leave data out, or name another plot")
    if kind not in _WITHOUT_DATA and not has_data:
        raise PlotError(f"{kind} needs data that the model answers to: plot({kind!r}, (x, y))")
    return cast(PlotKind, kind)


def answer_panels(
    kind: PlotKind | None, answers: Sequence[Answers], target: str | None = None
) -> list[list[Panel]]:
    """Return the rows of a figure of answers; without a kind, all that fit each target.

    Raises PlotError if the kind fits no target, or there is no such target.
    """
    if target is not None:
        names = ", ".join(part.name for part in answers if part.name)
        answers = [part for part in answers if part.name == target]
        if not answers:
            known = f"there are {names}" if names else "the task has one without a name"
            raise PlotError(f"no target {target!r:.60}; {known}")
    rows = []
    for part in answers:
        kinds = [own for own in _FITTING[part.task.target.kind] if kind in (None, own)]
        if kinds:
            rows += _rows(part, kinds)
    if not rows:
        there = dict.fromkeys(str(part.task.target.kind) for part in answers)
        fitting = dict.fromkeys(k for part in answers for k in _FITTING[part.task.target.kind])
        raise PlotError(
            f"{kind} does not fit a target of kind {', '.join(there)}; use "
            f"{', '.join([*fitting, *_WITHOUT_DATA])}"
        )
    return rows


def _rows(part: Answers, kinds: Sequence[PlotKind]) -> list[list[Panel]]:
    """Return rows of panels for answers to one target."""
    if part.task.target.kind is TargetKind.VALUES:
        return _residual_rows(part)
    if part.task.target.kind is TargetKind.INPUT:
        return [_error_row(part)]
    return [[_OF_CLASSES[kind](part) for kind in kinds]]


def draw(rows: Sequence[Sequence[Panel]]) -> Figure:
    """Return a figure of rows of panels. Raises ModuleNotFoundError without matplotlib."""
    figure = _figure()
    from featherfed.report.style import styled

    width = max(map(len, rows))
    with styled():
        made = figure(figsize=(5.2 * width, 4.2 * len(rows)))
        grid = made.add_gridspec(len(rows), width)
        for y, row in enumerate(rows):
            for x, panel in enumerate(row):
                panel(made.add_subplot(grid[y, x]))
    return made


def _figure() -> type[Figure]:
    """Return matplotlib's class; raise ModuleNotFoundError that says how to install it."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise explained(error, "plot") from error
    return Figure


# ---- of the run ----


def curves(
    leading: str, scores: Sequence[float | None], sent: Mapping[str, Sequence[int]]
) -> Figure:
    """Return a figure of the leading metric by round, and of the bytes of each side so far."""
    figure = _figure()(figsize=(8, 3.2), layout="constrained")
    quality, traffic = figure.subplots(1, 2)
    numbers = range(1, len(scores) + 1)
    quality.plot(numbers, [np.nan if s is None else s for s in scores], marker="o")
    quality.set(xlabel="round", ylabel=leading)
    for side, counts in sent.items():
        traffic.plot(numbers, np.cumsum(counts) / 1000, marker="o", label=side)
    traffic.set(xlabel="round", ylabel="kB sent so far")
    traffic.legend()
    return figure


def client_panels(rounds: Sequence[Mapping[str, Any]], leading: str) -> list[list[Panel]]:
    """Return a row of panels of how the clients' values are distributed in each round.

    `rounds`: as in metrics.json. Raises PlotError if no client told or was measured.
    """
    numbers = [entry["round"] for entry in rounds]
    wanted: list[tuple[str, str, Callable[[Mapping[str, Any]], float | None]]] = [
        (
            "Before local training, on own held-out examples",
            leading,
            lambda client: (client["before"] or {}).get(leading),
        ),
        (
            "After local training, on own held-out examples",
            leading,
            lambda client: (client["after"] or {}).get(leading),
        ),
        (
            "After local training, on test examples",
            leading,
            lambda client: (client["scores"] or {}).get(leading),
        ),
        ("Loss of local training", "loss", lambda client: client["train_loss"]),
    ]
    found = []
    for heading, name, of in wanted:
        values = [[v for c in entry["clients"] if (v := of(c)) is not None] for entry in rounds]
        if any(values):
            found.append((heading, name, values))
    scores = [v for _, name, values in found if name == leading for own in values for v in own]
    panels = [
        _spread_panel(heading, name, numbers, values, scores if name == leading else ())
        for heading, name, values in found
    ]
    if not panels:
        raise PlotError(
            "no client was measured or told its loss, so there is nothing to show; leave `test` "
            "out, and clients evaluate on a share of their data"
        )
    return [panels]


def _spread_panel(
    heading: str,
    name: str,
    numbers: Sequence[int],
    values: Sequence[Sequence[float]],
    beside: Sequence[float],
) -> Panel:
    """`beside`: all values of the panels that have the same scale; none if it is alone."""
    spread = assessment.client_spread(values)

    def panel(axes: Axes) -> None:
        from featherfed.report.style import BLUE, round_axis, score_axis

        low, first, median, third, high = spread.T
        axes.fill_between(
            numbers, low, high, color=BLUE, alpha=0.12, linewidth=0, label="all clients"
        )
        axes.fill_between(
            numbers, first, third, color=BLUE, alpha=0.25, linewidth=0, label="half of them"
        )
        axes.plot(numbers, median, color=BLUE, linewidth=2, label="median")
        if max(map(len, values)) <= 12:
            places = np.repeat(numbers, list(map(len, values)))
            axes.scatter(places, np.concatenate(values), s=14, color=BLUE, alpha=0.7, linewidths=0)
        if beside and min(beside) < max(beside):
            margin = 0.06 * (max(beside) - min(beside))
            axes.set_ylim(min(beside) - margin, max(beside) + margin)
        axes.set_title(heading)
        axes.set_ylabel(name)
        score_axis(axes, name)
        round_axis(axes, numbers)
        axes.legend()

    return panel


# ---- of answers to classes and labels ----


def _confusion_panel(part: Answers) -> Panel:
    target = part.task.target
    if target.kind is TargetKind.LABELS:
        counts = assessment.label_confusion(part.given > 0.5, part.true > 0)
        columns = ["given,\nrightly", "missed", "given,\nwrongly", "not given,\nrightly"]
        return _matrix_panel(part, counts, columns, "label", "")
    number = len(target.class_names)
    counts = assessment.confusion(part.given.argmax(axis=-1), part.true, number)
    return _matrix_panel(part, counts, list(target.class_names), "true class", "answer")


def _matrix_panel(
    part: Answers, counts: Values, columns: Sequence[str], of_rows: str, of_columns: str
) -> Panel:
    names = part.task.target.class_names
    total, right = counts.sum(), np.trace(counts)

    def panel(axes: Axes) -> None:
        from featherfed.report.summary import short

        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        if len(names) <= _MOST_NUMBERS:
            for (y, x), count in np.ndenumerate(counts):
                color = "white" if shares[y, x] > 0.5 else "black"
                text = f"{count:,}" if count else ""
                axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)
        axes.grid(False)
        if len(names) <= _MOST_NAMES:
            size = 8 if len(names) <= _MOST_NUMBERS else 6
            axes.set_yticks(range(len(names)), [short(n, 18) for n in names], fontsize=size)
            texts = [short(name, 18) for name in columns] if of_columns else list(columns)
            upright = of_columns and sum(map(len, texts)) * size > 400
            axes.set_xticks(range(len(texts)), texts, fontsize=size, rotation=90 if upright else 0)
        axes.set_ylabel(of_rows)
        axes.set_xlabel(of_columns)
        told = f": {right:,} of {total:,} right" if of_columns else ""
        axes.set_title(part.titled(f"confusion{told}"))

    return panel


def _calibration_panel(part: Answers) -> Panel:
    given = part.given
    if given.size and not (given.min() >= -1e-6 and given.max() <= 1 + 1e-6):
        raise PlotError(
            f"the answers go from {given.min():.3g} to {given.max():.3g}, and calibration needs "
            "probabilities; end the model in a softmax or sigmoid"
        )
    if part.task.target.kind is TargetKind.LABELS:
        found = assessment.calibration(given, part.true > 0)
        below, beside = "probability of a label", "share of answers where it is true"
    else:
        found = assessment.calibration(given.max(axis=-1), given.argmax(axis=-1) == part.true)
        below, beside = "probability of the class that was chosen", "share that is right"

    def panel(axes: Axes) -> None:
        from matplotlib.ticker import PercentFormatter

        from featherfed.report.style import BLUE, GRID, MUTED

        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="dashed", zorder=1)
        many = found.counts > 0
        sizes = 20 + 230 * found.counts[many] / found.counts.max()
        x, y = found.confidence[many], found.share[many]
        axes.vlines(x, x, y, color=GRID, linewidth=3, zorder=1)
        axes.plot(x, y, color=BLUE, linewidth=1.4, zorder=2)
        axes.scatter(x, y, s=sizes, color=BLUE, alpha=0.75, linewidths=0, zorder=3, clip_on=False)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel=below, ylabel=beside)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_title(
            part.titled(f"calibration: off by {100 * found.error:.1f} points in the mean")
        )

    return panel


_OF_CLASSES: dict[PlotKind, Callable[[Answers], Panel]] = {
    "confusion": _confusion_panel,
    "calibration": _calibration_panel,
}


# ---- of answers in numbers ----


def _residual_rows(part: Answers) -> list[list[Panel]]:
    """Return a row for each value of the target if they are few; else one for all together."""
    given, true = (values.reshape(len(values), -1) for values in (part.given, part.true))
    count = true.shape[1]
    if count > _MOST_ROWS:
        return [[_against_panel(part, given, true, ""), _positions_panel(part, given, true)]]
    target = part.task.target
    names = list(target.columns) if len(target.columns) == count else [str(i) for i in range(count)]
    return [
        [
            _against_panel(part, given[:, i], true[:, i], names[i] if count > 1 else ""),
            _residuals_panel(part, given[:, i], true[:, i], names[i] if count > 1 else ""),
        ]
        for i in range(count)
    ]


def _against_panel(part: Answers, given: Values, true: Values, of: str) -> Panel:
    def panel(axes: Axes) -> None:
        from featherfed.report.style import BLUE, MUTED

        low = float(min(true.min(), given.min()))
        high = float(max(true.max(), given.max()))
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle="dashed", zorder=3)
        if true.size <= _MOST_DOTS:
            alpha = 0.6 if true.size <= 500 else 0.25
            axes.scatter(true, given, s=12, color=BLUE, alpha=alpha, linewidths=0, zorder=2)
        else:
            axes.hexbin(
                true.ravel(), given.ravel(), gridsize=45, cmap="Blues", bins="log", mincnt=1
            )
        axes.set(xlabel="true", ylabel="predicted")
        axes.set_title(part.titled(f"predicted against true{_of(of)}"))

    return panel


def _residuals_panel(part: Answers, given: Values, true: Values, of: str) -> Panel:
    found = assessment.residuals(given, true)

    def panel(axes: Axes) -> None:
        from featherfed.report.style import BLUE, MUTED, VERMILLION

        axes.hist(found.values.ravel(), bins=_bins(found.values), color=BLUE, alpha=0.75)
        axes.axvline(0, color=MUTED, linewidth=1, linestyle="dashed")
        axes.axvline(found.mean, color=VERMILLION, linewidth=1.6)
        axes.set(xlabel="predicted minus true", ylabel="examples")
        told = f"mean {found.mean:.3g}, deviation {found.deviation:.3g}"
        axes.set_title(part.titled(f"residuals{_of(of)}: {told}"))

    return panel


def _positions_panel(part: Answers, given: Values, true: Values) -> Panel:
    found = assessment.position_quantiles(assessment.residuals(given, true).values)

    def panel(axes: Axes) -> None:
        from featherfed.report.style import BLUE, MUTED

        places = range(1, found.shape[1] + 1)
        low, first, median, third, high = found
        axes.axhline(0, color=MUTED, linewidth=1, linestyle="dashed")
        axes.fill_between(places, low, high, color=BLUE, alpha=0.12, linewidth=0, label="90 %")
        axes.fill_between(places, first, third, color=BLUE, alpha=0.25, linewidth=0, label="50 %")
        axes.plot(places, median, color=BLUE, linewidth=1.6, label="median")
        axes.set(xlabel="value of the target, in order", ylabel="predicted minus true")
        axes.legend()
        axes.set_title(part.titled("residuals by value"))

    return panel


def _of(name: str) -> str:
    return f" ({name})" if name else ""


def _bins(values: Values) -> int:
    """Return how many bars show so many values."""
    return int(np.clip(np.sqrt(values.size), 8, 60))


# ---- of inputs that are answered ----


def _error_row(part: Answers) -> list[Panel]:
    panels = [_errors_panel(part)]
    if part.true.ndim > 1:
        panels.append(_places_panel(part))
    return panels


def _errors_panel(part: Answers) -> Panel:
    errors = assessment.example_errors(part.given, part.true)

    def panel(axes: Axes) -> None:
        from featherfed.report.style import BLUE, ORANGE, VERMILLION
        from featherfed.report.summary import number_text

        axes.hist(errors, bins=_bins(errors), color=BLUE, alpha=0.75)
        for share, color in ((0.95, ORANGE), (0.99, VERMILLION)):
            place = float(np.quantile(errors, share))
            text = f"{100 * share:.0f} % are below {number_text(place)}"
            axes.axvline(place, color=color, linewidth=1.6, label=text)
        axes.set(xlabel="mean squared error of an example", ylabel="examples")
        axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor="none")
        axes.set_title("Reconstruction errors")

    return panel


def _places_panel(part: Answers) -> Panel:
    """Draw where in an example the errors are: a picture, a table, or bars."""
    found = assessment.position_errors(part.given, part.true)
    given = part.task.inputs[0]
    if found.ndim == 3 and found.shape[-1] in (1, 3):  # a picture's colours together
        found = np.sqrt(np.square(found).mean(axis=-1))

    def panel(axes: Axes) -> None:
        from featherfed.report.style import BLUE
        from featherfed.report.summary import short

        if found.ndim == 2:
            image = axes.imshow(found, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
            axes.grid(False)
            axes.figure.colorbar(image, ax=axes, label="root mean squared error")
            is_series = len(given.shape) == 2
            axes.set(
                xlabel="feature" if is_series else "column", ylabel="step" if is_series else "row"
            )
        else:
            flat = found.ravel()
            axes.bar(range(1, flat.size + 1), flat, color=BLUE, alpha=0.75)
            axes.set(xlabel="value of the input, in order", ylabel="root mean squared error")
            if len(given.columns) == flat.size <= _MOST_NUMBERS:
                names = [short(name, 14) for name in given.columns]
                axes.set_xticks(range(1, flat.size + 1), names, rotation=30, ha="right")
        axes.set_title("Where they are")

    return panel
