"""Sends a trace of each round to a collector of OpenTelemetry, by OTLP over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.trace import Status, StatusCode, set_span_in_context
from opentelemetry.util.types import AttributeValue

from featherfed.api.trackers.hook import RoundFacts, Setting

log = logging.getLogger(__name__)

SERVICE = "featherfed"


class OtelTracker:
    """Makes a span of each round, with the children open, train and aggregate."""

    def __init__(self, endpoint: str, processor: SpanProcessor | None = None) -> None:
        """`endpoint`: of the collector, as http://host:4318; "" is what the environment says.

        `processor`: takes the spans instead.
        """
        if processor is None:
            url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None
            processor = BatchSpanProcessor(_WarnsOnce(OTLPSpanExporter(endpoint=url)))
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: SERVICE}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SERVICE)
        self._run = ""

    def start(self, run: str, settings: Mapping[str, Setting]) -> None:
        """Take the run's name, which every span has."""
        self._run = run

    def on_round(self, facts: RoundFacts) -> None:
        """End a span of a round, and its children, at the times when they ended."""
        attributes: dict[str, AttributeValue] = {
            "featherfed.run": self._run,
            "featherfed.round": facts.version,
            "featherfed.clients": facts.clients,
            "featherfed.bytes.up": facts.up,
            "featherfed.bytes.down": facts.down,
            "featherfed.bytes.wasted": facts.wasted,
            **{f"featherfed.score.{name}": value for name, value in facts.scores.items()},
        }
        if facts.scored is not None:
            attributes["featherfed.scored_version"] = facts.scored
        span = self._tracer.start_span(
            "round", start_time=_nanoseconds(facts.began), attributes=attributes
        )
        context = set_span_in_context(span)
        for name, began, ended in (
            ("open", facts.began, facts.opened),
            ("train", facts.opened, facts.closed),
            ("aggregate", facts.closed, facts.made),
        ):
            child = self._tracer.start_span(name, context, start_time=_nanoseconds(began))
            child.end(_nanoseconds(ended))
        if facts.discarded is not None:
            span.set_status(Status(StatusCode.ERROR, facts.discarded))
        span.end(_nanoseconds(facts.made))

    def on_scores(self, version: int, scores: Mapping[str, float]) -> None:
        """Do nothing: a round's span has the scores that were known when it ended."""

    def end(self, finished: bool) -> None:
        """Send what is left."""
        self._provider.shutdown()


class _WarnsOnce(SpanExporter):
    """Says once that spans cannot be sent, instead of the exporter's own lines for each try."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._warned = False
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; return whether it worked."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS and not self._warned:
            log.warning("traces of rounds cannot be sent; the collector does not take them")
            self._warned = True
        return result

    def shutdown(self) -> None:
        """End."""
        self._exporter.shutdown()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
