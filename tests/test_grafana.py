"""deploy/grafana.json: every query is of metrics and labels that a server has, and it imports."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.federation import Federation

from featherfed.server.observability.prometheus import Telemetry

ROOT = Path(__file__).parent.parent
KNOWN_TYPES = {"stat", "timeseries"}
LABELS_OF_PROMETHEUS = {"job", "instance", "le"}
WORDS = {"sum", "by", "rate", "increase", "histogram_quantile", "label_values"}


@pytest.fixture(scope="module")
def dashboard() -> Any:
    return json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))


def queries(dashboard: Any) -> Iterator[str]:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["definition"]


@pytest.fixture
def scraped(federation: Callable[..., Federation]) -> dict[str, set[str]]:
    """Each sample that a server with a finished run gives -> its labels."""
    server = federation(rounds=1, clients={"minimum": 2, "patience": 1})
    server.run_clients(server.client("a"), server.client("b"))
    server.join()
    telemetry = Telemetry()
    telemetry.watch(server.store, server.coordinator.status)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(telemetry.registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_every_query_is_of_what_a_server_has(dashboard: Any, scraped: dict[str, set[str]]) -> None:
    for query in queries(dashboard):
        names = re.findall(r"featherfed_\w+", query)
        assert names, query
        assert set(names) <= scraped.keys(), f"{set(names) - scraped.keys()} in {query}"
        allowed = LABELS_OF_PROMETHEUS.union(*(scraped[name] for name in names))
        for inside in re.findall(r"\{([^}]*)\}", query):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", inside))
            assert labels <= allowed, query
        for by in re.findall(r"by \(([^)]*)\)", query):
            assert set(re.split(r",\s*", by)) <= allowed, query
        assert query.count("(") == query.count(")"), query
        assert query.count("{") == query.count("}"), query
        assert set(re.findall(r"(\w+)\s*\(", query)) <= WORDS, query


def test_legends_name_labels_that_the_query_keeps(
    dashboard: Any, scraped: dict[str, set[str]]
) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            kept = set().union(*(scraped[n] for n in re.findall(r"featherfed_\w+", query)))
            for by in re.findall(r"by \(([^)]*)\)", query):
                kept = set(re.split(r",\s*", by))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, query


def test_no_metric_is_left_out(dashboard: Any, scraped: dict[str, set[str]]) -> None:
    def family(name: str) -> str:
        return re.sub(r"_(bucket|sum|count|created)$", "", name)

    shown = {
        family(name) for query in queries(dashboard) for name in re.findall(r"feath\w+", query)
    }
    assert {family(name) for name in scraped} == shown


def test_grafana_can_import_it(dashboard: Any) -> None:
    assert dashboard["id"] is None, "Grafana gives it one"
    assert dashboard["uid"] == "featherfed"
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 36
    sources = [v for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
    assert [(v["name"], v["query"]) for v in sources] == [("datasource", "prometheus")]
    panels = dashboard["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in KNOWN_TYPES
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not taken & cells, f"{panel['title']} covers another panel"
        taken |= cells
