"""The timeline of each round: when it opened, when updates came in, when and how it closed."""

from __future__ import annotations

import math
from datetime import datetime

from featherfed.report.chart import Axis, Chart, Dots, Lanes, Mark, linear_axis
from featherfed.report.schema import RoundReport, RunReport
from featherfed.report.summary import NONE, refusals_text, seconds_text

_MOST_ROUNDS = 30
"""The newest are drawn; the table has all."""
_MOST_DOTS = 1500
_NAMES_IN_A_CELL = 3


def timeline_charts(run: RunReport) -> list[Chart]:
    """Return a lane per round from its opening to its close, with a dot for each update.

    Nothing if no round's time is known.
    """
    known = [r for r in run.rounds if r.seconds is not None and math.isfinite(r.seconds)]
    known = known[-_MOST_ROUNDS:]
    if not known:
        return []
    rows = {entry.number: float(row) for row, entry in enumerate(known)}
    adopted = [r for r in known if not r.discarded]
    arrived = [(u.arrived, rows[r.number]) for r in known for u in r.updates if u.arrived]
    marks: list[Mark] = [_lanes("open", adopted, rows, 0)]
    if len(adopted) < len(known):
        marks.append(_lanes("discarded", [r for r in known if r.discarded], rows, 1))
    if arrived:
        # Evenly chosen, if they are too many to tell apart.
        some = arrived[:: -(-len(arrived) // _MOST_DOTS)]
        marks.append(Dots("an update came in", some, 5))
    longest = max(known, key=lambda r: r.seconds or 0.0)
    ends = [r.seconds or 0.0 for r in known]
    chart = Chart(
        "timeline",
        f"The newest {len(known)} rounds" if len(known) < len(run.rounds) else "Every round",
        f"Seconds from opening to close of {len(known)} rounds; the longest, round "
        f"{longest.number}, took {seconds_text(longest.seconds)}.",
        linear_axis([0.0, *ends], _clock, "time since the round opened", from_zero=True, most=5),
        Axis(-0.6, len(known) - 0.4, [(row, str(number)) for number, row in rows.items()]),
        marks,
        height=26 * len(known) + 10,
        down=True,
    )
    return [chart]


def _lanes(name: str, entries: list[RoundReport], rows: dict[int, float], color: int) -> Lanes:
    return Lanes(name, [(rows[r.number], 0.0, r.seconds or 0.0) for r in entries], color)


def _clock(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def round_rows(run: RunReport) -> list[dict[str, object]]:
    """Return a row per round: who was asked, what came in when, who is missing, how it ended."""
    return [_row(entry) for entry in run.rounds]


def _row(entry: RoundReport) -> dict[str, object]:
    arrived = [u.arrived for u in entry.updates if u.arrived is not None]
    asked = len(entry.updates) + len(entry.missing) if entry.asked is None else entry.asked
    return {
        "number": entry.number,
        "opened": _time(entry.opened),
        "seconds": seconds_text(entry.seconds),
        "asked": asked,
        "clients": len(entry.updates),
        "first": seconds_text(min(arrived, default=None)),
        "last": seconds_text(max(arrived, default=None)),
        "missing": names_text(entry.missing),
        "refused": refusals_text([entry]) or NONE,
        "end": f"discarded: {entry.discarded}" if entry.discarded else f"version {entry.version}",
    }


def _time(text: str) -> str:
    """Return an ISO time as one to read: "2026-11-28 08:10:00"; empty as a dash."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M:%S") if text else NONE
    except ValueError:
        return text


def names_text(names: tuple[str, ...]) -> str:
    """Return the first names of a list, and how many more there are."""
    if len(names) <= _NAMES_IN_A_CELL:
        return ", ".join(names) or NONE
    return f"{', '.join(names[:_NAMES_IN_A_CELL])} and {len(names) - _NAMES_IN_A_CELL} more"
