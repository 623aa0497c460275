"""The parts of a run's page, as HTML by name: of a finished run, and of one that goes on."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from markupsafe import Markup

from featherfed.report import live as snapshot
from featherfed.report import page, prediction, timeline
from featherfed.report.chart import Chart
from featherfed.report.curves import clients_charts, learning_charts, own_charts
from featherfed.report.live import Snapshot
from featherfed.report.metric import title, word
from featherfed.report.pictures import Pictures, png_uri, sample_columns
from featherfed.report.schema import ReportError, RunReport, parse_metrics
from featherfed.report.summary import discarded_text, measured_text
from featherfed.report.task_text import input_text, purpose, shape_text
from featherfed.report.template import fill, fill_block
from featherfed.report.traffic import bytes_charts

_TITLES = {
    "headline": "In short",
    "curve": "Learning",
    "clients": "Clients",
    "bytes": "Bytes",
    "rounds": "Rounds",
    "best": "Best version",
    "metrics": "Metrics",
    "confusion": "Confusion",
    "models": "Models",
    "privacy": "Privacy",
    "refusals": "Refused",
    "pictures": "Pictures",
    "versions": "Versions",
    "log": "Log",
    "settings": "Settings",
}
"""The parts in their order below the header, and what links to them are called."""
_CHANGING = ("header", "headline", "clients", "refusals", "versions", "log")
"""Parts that show the snapshot."""


class RunPage:
    """The page of one metrics.json: what follows from that alone is made once.

    So a server keeps one until a round closes, and each snapshot costs its own parts alone.
    """

    def __init__(self, run: RunReport, pictures: Pictures | None = None) -> None:
        self._run = run
        self._pictures = pictures
        self._frozen: dict[str, str] = {}

    @classmethod
    def of(cls, metrics: Mapping[str, Any], pictures: Pictures | None = None) -> RunPage:
        """Return the page of a metrics.json's object; raises ReportError naming a wrong key."""
        return cls(parse_metrics(metrics), pictures)

    def sections(self, live: Snapshot | None = None) -> dict[str, str]:
        """Return the parts in order: "header", "nav", then all others; "" where one has nothing.

        `live`: what the server says of the run as it is now.
        """
        now = None if live is None else self._now(live)
        names = ["header", *_TITLES]
        parts = {name: self._part(name, now) for name in names}
        links = [(name, _TITLES[name]) for name in names[1:] if parts[name]]
        nav = fill_block("run.html", "nav", links=links)
        return {"header": parts.pop("header"), "nav": nav, **parts}

    def _part(self, name: str, now: dict[str, Any] | None) -> str:
        if now is not None and name in _CHANGING:
            return fill_block("run.html", name, **{**self._values, **now})
        if name not in self._frozen:
            self._frozen[name] = fill_block("run.html", name, **self._values)
        return self._frozen[name]

    def _now(self, live: Snapshot) -> dict[str, Any]:
        """Return the values of `_values` that a snapshot changes."""
        rows = {**snapshot.client_rows(live), **self._client_rows}
        tiles, told = list(self._values["tiles"]), snapshot.all_bytes(live)
        if told is not None:
            tiles[1] = page.total_tile(*told)
        return {
            "live": {
                **snapshot.header(live),
                "clients": snapshot.clients(live, self._run.metric.name),
                "refusals": snapshot.refusals(live),
                "log": snapshot.log(live),
            },
            "clients": list(rows.values()),
            "runtimes": any(row["runtime"] != "\N{EN DASH}" for row in rows.values()),
            "tiles": tiles,
            "versions": page.version_rows(self._run, snapshot.sizes(live)),
        }

    @property
    def charts(self) -> list[Chart]:
        """All charts of the page."""
        return [chart for found in self._charts.values() for chart in found]

    @cached_property
    def _charts(self) -> dict[str, list[Chart]]:
        run = self._run
        return {
            "learning": learning_charts(run),
            "tested": clients_charts(run),
            "own_charts": own_charts(run),
            "traffic": bytes_charts(run),
            "timeline": timeline.timeline_charts(run),
        }

    @cached_property
    def _client_rows(self) -> dict[str, dict[str, str]]:
        return {row["client"]: row for row in page.client_rows(self._run)}

    @cached_property
    def _values(self) -> dict[str, Any]:
        """All that the templates show of metrics.json and the pictures."""
        run = self._run
        values = {
            "live": None,
            "run": run,
            "purpose": purpose(run.task),
            "metric": title(run.metric.name),
            "word": word(run.metric.name),
            "measured": measured_text(run),
            "one": "image" if run.task.is_images else "example",
            "failed": run.final.failed if run.final else (),
            "tiles": page.tiles(run),
            "inputs": [(i, shape_text(i.shape), input_text(i)) for i in run.task.inputs],
            **{part: [chart.html() for chart in found] for part, found in self._charts.items()},
            **self._quality(),
            "clients": list(self._client_rows.values()),
            "runtimes": bool(run.runtimes),
            "own": page.own_rows(run),
            **self._bytes(),
            "rounds": timeline.round_rows(run),
            "arrivals": any(u.arrived is not None for r in run.rounds for u in r.updates),
            "models": page.model_rows(run),
            "refusals": page.refusal_rows(run),
            "privacy": page.privacy_note(run),
            "epsilons": page.epsilon_rows(run),
            "versions": page.version_rows(run, {}),
            "pictures": None if self._pictures is None else _shown(self._pictures),
        }
        return {
            **values,
            "client_charts": Markup(fill_block("run.html", "client_charts", **values)),
        }

    def _quality(self) -> dict[str, Any]:
        run = self._run
        return {
            "scores": page.score_rows(run),
            "spread": any(entry.spread for entry in run.rounds),
            "discarded": discarded_text(run.rounds),
            "all_scores": page.score_table(run),
            "best": page.best_version(run),
            "confusion": page.confusion_table(run),
        }

    def _bytes(self) -> dict[str, Any]:
        run = self._run
        return {
            "noise": page.noise_note(run),
            "round_bytes": page.byte_rows(run),
            "client_bytes": page.byte_totals(run),
            "totals": page.totals_text(run),
        }


def _shown(pictures: Pictures) -> dict[str, Any]:
    return {
        "samples": sample_columns(pictures),
        "image": png_uri(pictures.image),
        "label": pictures.class_names[pictures.image_label],
        "bars": prediction.class_bars(pictures),
        "answers": prediction.answer_rows(pictures),
    }


def sections(
    metrics: Mapping[str, Any], live: Snapshot | None = None, pictures: Pictures | None = None
) -> dict[str, str]:
    """Return the HTML of a run page's parts by name, in order.

    `metrics` is the object of a metrics.json, `live` what GET /api/run of a server answers. Raises
    ReportError when `metrics` is not valid. For many snapshots of one run, keep a `RunPage`.
    """
    return RunPage.of(metrics, pictures).sections(live)


def shell(title: str, sections: Mapping[str, str], script: str = "") -> str:
    """Return the whole page around sections: one file that loads nothing, light and dark.

    Each part is the element of its name, so a script replaces its content by that id. `script` is
    JavaScript; without any the page allows none. Raises ReportError if it would end its element.
    """
    if "</script" in script.lower() or "<!--" in script:
        raise ReportError("the script of a page holds </script or <!--: write them another way")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return fill(
        "shell.html",
        title=title,
        sections={name: Markup(html) for name, html in sections.items()},
        script=Markup(script),
        script_hash=digest if script else "",
    )
