"""How every plot looks, and how it becomes a file."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, NullFormatter, PercentFormatter

from featherfed.compression.files import write_whole
from featherfed.report.metric import is_share

# Okabe and Ito's palette: distinct also for colour-blind eyes.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE = "#56B4E9", "#E69F00"
CLIENT_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
INK, MUTED, GRID = "#1B2430", "#667085", "#E4E7EC"

WIDTH = 10.0

_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": "#98A2B3",
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.color": INK,
    "text.parse_math": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


def styled() -> AbstractContextManager[None]:
    """Return a context in which figures are built and saved; names are never read as math."""
    return mpl.rc_context(_RC)


def save_png(figure: Figure, path: Path) -> str:
    """Write ``figure`` to ``path`` and return it as a data URI."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script the font lacks shows boxes; that is no reason to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="png", dpi=170, facecolor="white")
    write_whole(path, buffer.getvalue())
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def score_axis(axes: Axes, metric: str) -> None:
    """Label the y axis in a metric's unit: percent for shares, plain numbers for others."""
    if is_share(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))


def bytes_axis(axes: Axes, logarithmic: bool = True) -> None:
    """Count bytes on the x axis, from 0 on if it is not logarithmic."""
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    # Plain numbers: matplotlib writes powers of ten as math, which the style leaves unparsed.
    axes.xaxis.set_major_formatter(EngFormatter("B"))


def round_axis(axes: Axes, rounds: Sequence[int], final: bool = False) -> None:
    """Put at most about a dozen whole round numbers on the x axis, and "final" after the last."""
    step = max(1, -(-len(rounds) // 12))
    ticks = list(rounds[::step])
    labels = [str(number) for number in ticks]
    if final:
        # The word needs the room of its neighbours.
        while len(rounds) > 12 and ticks and rounds[-1] + 1 - ticks[-1] < 2 * step:
            ticks.pop(), labels.pop()
        ticks.append(rounds[-1] + 1)
        labels.append("final")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticks(ticks, labels)
    axes.set_xlim(rounds[0] - 0.6, rounds[-1] + (1.6 if final else 0.6))
    axes.grid(False, axis="x")
    axes.set_xlabel("round")
