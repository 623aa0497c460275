"""The metrics that Prometheus scrapes; docs/observability.md lists them.

Counters come from the store at every scrape, so they survive a restart; only the histograms and the
open calls are this process's own. No label holds a client's name: there may be too many of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from featherfed.proto import federation_pb2 as pb
from featherfed.server.errors import CannotStore, ServerError
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.records import TransferredBytes, VersionScores
from featherfed.server.storage.runs import DUPLICATE_UPDATES
from featherfed.server.storage.store import Store

# Upper bounds of histogram buckets, in seconds.
_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SLOW = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Telemetry:
    """The metrics of one server process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.acknowledged = Histogram(
            "featherfed_upload_acknowledgement_seconds",
            "From an update's last byte until it is checked and on disk.",
            buckets=_FAST,
            registry=self.registry,
        )
        self.aggregated = Histogram(
            "featherfed_aggregation_seconds",
            "From a closed round to the next model version, its evaluation included.",
            buckets=_SLOW,
            registry=self.registry,
        )
        self.open_calls = Gauge(
            "featherfed_open_calls",
            "Calls that clients wait for, long polls included.",
            registry=self.registry,
        )

    def watch(self, store: Store, status: Callable[[], pb.StatusReply]) -> None:
        """Add the run's counters and its status to every scrape."""
        self.registry.register(_RunCollector(store, status))

    def listen(self, address: str) -> tuple[str, Callable[[], None]]:
        """Serve /metrics at HOST:PORT (0: any port); return the URL and a function that ends it.

        Raises ServerError if the address cannot be listened on.
        """
        host, _, port = address.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host.strip("[]"), registry=self.registry)
        except (OSError, OverflowError) as error:
            raise ServerError(
                f"cannot serve metrics at {address}: {error}; choose another [server] metrics"
            ) from error

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return f"http://{host}:{server.server_port}/metrics", close


class _RunCollector(Collector):
    def __init__(self, store: Store, status: Callable[[], pb.StatusReply]) -> None:
        self._store = store
        self._status = status

    def describe(self) -> Iterator[Metric]:
        """Return no metric, so that registering this does not read the store."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        store, status = self._store, self._status()
        with suppress(CannotStore):  # a full disk is one of the things to report
            store.flush()
        yield from _traffic(store.ledger.totals())
        yield _counter(
            "featherfed_updates", "Updates of clients, by what became of them.", "outcome",
            {
                "accepted": store.journal.num_updates(),
                "duplicate": store.runs.counter(DUPLICATE_UPDATES),
            },
        )  # fmt: skip
        yield _counter(
            "featherfed_refusals", "Calls and updates refused, by reason.", "reason",
            {**dict.fromkeys(pb.Reason.keys()[1:], 0), **store.refusals.by_reason()},
        )  # fmt: skip
        yield from _state(status, store.versions.newest_evaluated())
        yield _gauge(
            "featherfed_storage_failing", "1 while the server cannot write.", store.failing
        )


def _traffic(totals: Mapping[tuple[str, str], TransferredBytes]) -> Iterator[Metric]:
    for place, (name, text) in enumerate(
        (
            ("featherfed_payload_bytes", "Bytes of compressed tensors and files alone."),
            ("featherfed_message_bytes", "Bytes of messages with payload and framing."),
        )
    ):
        family = CounterMetricFamily(name, text, labels=("direction", "kind"))
        for labels, counted in sorted(totals.items()):
            family.add_metric(labels, counted[place])
        yield family


def _state(status: pb.StatusReply, evaluated: VersionScores | None) -> Iterator[Metric]:
    yield _gauge("featherfed_round", "The round, from 1.", status.round)
    yield _gauge("featherfed_rounds", "Rounds that the run has.", status.rounds)
    yield _gauge("featherfed_model_version", "The newest model version.", status.version)
    text = "Rounds whose model was not adopted."
    yield _gauge("featherfed_discarded_rounds", text, status.discarded_rounds)
    yield _states(
        "featherfed_phase", "1 for the phase the run is in.", "phase",
        {str(phase): int(phase == status.phase) for phase in Phase},
    )  # fmt: skip
    counts = status.client_counts
    yield _states(
        "featherfed_clients", "Clients that have joined, by state.", "state",
        {state: getattr(counts, state) for state in counts.DESCRIPTOR.fields_by_name},
    )  # fmt: skip
    if evaluated is not None and evaluated.scores:
        scores = dict(evaluated.scores)
        loss = scores.pop("loss", None)
        text = "The task's metrics, of the newest version that was evaluated."
        yield _states("featherfed_score", text, "metric", scores)
        if loss is not None:
            yield _gauge("featherfed_loss", "The loss of that version.", loss)


def _counter(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    return _with_values(CounterMetricFamily(name, text, labels=(label,)), values)


def _states(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    return _with_values(GaugeMetricFamily(name, text, labels=(label,)), values)


def _with_values(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]
) -> Metric:
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
