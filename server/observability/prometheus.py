"""What Prometheus sees of a run; docs/observability.md lists it.

Counters come from the store at every scrape, so they survive a restart; only the histograms and the
open calls are this process's own. No label has a client's name: their number is not ours to bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from featherfed.proto import federation_pb2 as pb
from featherfed.server.coordinator.coordinator import Coordinator
from featherfed.server.errors import ServerError
from featherfed.server.rounds.transitions import Phase
from featherfed.server.storage.records import Totals

STATES = ("present", "training", "reported", "lost")
"""Of clients, as pb.ClientStatus tells them."""

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

    def watch(self, run: Coordinator) -> None:
        """Add what `run` knows to every scrape."""
        self.registry.register(_RunCollector(run))

    def listen(self, address: str) -> tuple[str, Callable[[], None]]:
        """Serve /metrics at HOST:PORT (0: any); return the URL, and what ends it.

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
    def __init__(self, run: Coordinator) -> None:
        self._run = run

    def describe(self) -> Iterator[Metric]:
        """Nothing is asked of the store before the first scrape."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        totals, status = self._run.store.totals(), self._run.status()
        yield from _traffic(totals)
        yield _counter(
            "featherfed_updates", "Updates of clients, by what became of them.", "outcome",
            {"accepted": totals.accepted, "duplicate": totals.duplicates},
        )  # fmt: skip
        yield _counter(
            "featherfed_refusals", "Calls and updates refused, by reason.", "reason",
            {**dict.fromkeys(pb.Reason.keys()[1:], 0), **totals.refusals},
        )  # fmt: skip
        yield from _state(status, totals)


def _traffic(totals: Totals) -> Iterator[Metric]:
    for place, (name, text) in enumerate(
        (
            ("featherfed_payload_bytes", "Bytes of compressed tensors and files alone."),
            ("featherfed_message_bytes", "Bytes of messages with payload and framing."),
        )
    ):
        family = CounterMetricFamily(name, text, labels=("direction", "kind"))
        for labels, counted in sorted(totals.bytes.items()):
            family.add_metric(labels, counted[place])
        yield family


def _state(status: pb.StatusReply, totals: Totals) -> Iterator[Metric]:
    yield _gauge("featherfed_round", "The round, from 1.", status.round)
    yield _gauge("featherfed_rounds", "Rounds that the run has.", status.rounds)
    yield _gauge("featherfed_model_version", "The newest model version.", status.version)
    yield _states(
        "featherfed_phase", "1 for the phase the run is in.", "phase",
        {str(phase): int(phase == status.phase) for phase in Phase},
    )  # fmt: skip
    states = Counter(client.state for client in status.clients)
    yield _states(
        "featherfed_clients", "Clients that have joined, by state.", "state",
        {**dict.fromkeys(STATES, 0), **states},
    )  # fmt: skip
    if status.HasField("accuracy"):
        text = "Test accuracy of the newest version, 0 to 1."
        yield _gauge("featherfed_accuracy_ratio", text, status.accuracy)
    if totals.loss is not None:
        yield _gauge("featherfed_loss", "Test loss of the newest version.", totals.loss)
    yield _gauge(
        "featherfed_storage_failing", "1 while the server cannot write.", totals.storage_failing
    )


def _counter(name: str, text: str, label: str, values: dict[Any, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _states(name: str, text: str, label: str, values: dict[Any, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
