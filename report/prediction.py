"""Draws one test image and the class probabilities that every model gives it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from featherfed.report.pictures import Pictures, show_image
from featherfed.report.style import GREEN, MUTED, SKY, VERMILLION, WIDTH, short

_MAX_BAR_CLASSES = 12
_MAX_BAR_PANELS = 12


def prediction_figure(pictures: Pictures) -> Figure:
    """The test image, and beside it the class probabilities of clients and the global model.

    Bars per model up to 12 models, beyond that one heat map with a row per model. Of many classes
    the twelve that the global model finds likeliest are shown, the true one always.
    """
    chosen = _chosen_classes(pictures)
    if len(pictures.predictor_names) > _MAX_BAR_PANELS:
        return _heat_map(pictures, chosen)
    return _bars(pictures, chosen)


def _chosen_classes(pictures: Pictures) -> list[int]:
    if len(pictures.class_names) <= _MAX_BAR_CLASSES:
        return list(range(len(pictures.class_names)))
    likely = np.argsort(-pictures.predictions[-1])[: _MAX_BAR_CLASSES - 1].tolist()
    return sorted({*likely, pictures.image_label})


def _bars(pictures: Pictures, chosen: list[int]) -> Figure:
    models = len(pictures.predictor_names)
    columns = min(models + 1, 4)
    rows = -(-(models + 1) // columns)
    tall = 0.75 + 0.2 * len(chosen)
    figure = Figure(figsize=(WIDTH, rows * max(2.0, tall)))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    _image_panel(panels[0], pictures)
    for index in range(models):
        _bar_panel(panels[index + 1], pictures, index, chosen)
    for axes in panels[models + 1 :]:
        axes.set_axis_off()
    return figure


def _image_panel(axes: Axes, pictures: Pictures) -> None:
    show_image(axes, pictures.image)
    axes.set_title(f"this is: {short(pictures.class_names[pictures.image_label])}", loc="center")


def _bar_panel(axes: Axes, pictures: Pictures, index: int, chosen: list[int]) -> None:
    values = pictures.predictions[index]
    names = [short(pictures.class_names[c], 14) for c in chosen]
    axes.barh(range(len(chosen)), values[chosen], 0.72, color=_bar_colors(pictures, index, chosen))
    axes.set_yticks(range(len(chosen)), names, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.grid(False, axis="y")
    axes.set_title(_predictor(pictures, index))


def _bar_colors(pictures: Pictures, index: int, chosen: list[int]) -> list[str]:
    best = int(pictures.predictions[index].argmax())
    colors = []
    for c in chosen:
        if c == pictures.image_label:
            colors.append(GREEN)
        else:
            colors.append(VERMILLION if c == best else SKY)
    return colors


def _predictor(pictures: Pictures, index: int) -> str:
    last = index == len(pictures.predictor_names) - 1
    return "global model" if last else short(pictures.predictor_names[index])


def _heat_map(pictures: Pictures, chosen: list[int]) -> Figure:
    models = len(pictures.predictor_names)
    # The global model first: it is what the clients are compared with.
    order = [models - 1, *range(models - 1)]
    figure = Figure(figsize=(WIDTH, 1.6 + 0.19 * models))
    left, axes = figure.subplots(1, 2, width_ratios=[1, 3.2])
    _image_panel(left, pictures)
    left.set_anchor("N")
    picture = axes.imshow(
        pictures.predictions[np.ix_(order, chosen)], cmap="cividis", vmin=0, vmax=1, aspect="auto"
    )
    names = [short(pictures.class_names[c], 14) for c in chosen]
    axes.set_xticks(range(len(chosen)), names, rotation=35, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(models), [_predictor(pictures, i) for i in order], fontsize=8)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.axhline(0.5, color="white", linewidth=3)
    bar = figure.colorbar(picture, ax=axes, shrink=min(1.0, 12 / models), anchor=(0, 1))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    bar.outline.set_edgecolor(MUTED)
    return figure
