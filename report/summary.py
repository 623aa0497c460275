"""Means and ratios of a run, and numbers as texts, shared by page, plots and terminal."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from featherfed.report.schema import NOTHING_SENT, RoundReport, RunReport, Traffic

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Flow:
    """Bytes of ``count`` transfers in one direction, added up."""

    count: int
    total: Traffic

    @property
    def payload(self) -> float | None:
        """Mean payload bytes of a transfer."""
        return self.total.payload / self.count if self.count else None

    @property
    def message(self) -> float | None:
        """Mean message bytes of a transfer."""
        return self.total.message / self.count if self.count else None

    @property
    def sent(self) -> float | None:
        """Mean bytes of a transfer as sent: message, control and retries."""
        return self.total.sent / self.count if self.count else None

    def ratio(self, float32_bytes: int) -> float | None:
        """How many times smaller than float32 weights the payloads are."""
        return self.count * float32_bytes / self.total.payload if self.total.payload else None

    def sent_ratio(self, float32_bytes: int) -> float | None:
        """How many times smaller than float32 weights everything sent is."""
        return self.count * float32_bytes / self.total.sent if self.total.sent else None


def flow(transfers: Iterable[Traffic]) -> Flow:
    """Add up transfers."""
    items = list(transfers)
    if not items:
        return Flow(0, NOTHING_SENT)
    # One object for all: a run of hundreds of clients has tens of thousands of transfers.
    total = Traffic(
        payload_bytes=sum(item.payload for item in items),
        message_bytes=sum(item.message for item in items),
        control_bytes=sum(item.control for item in items),
        retry_bytes=sum(item.retry for item in items),
    )
    return Flow(len(items), total)


def round_flows(rounds: Sequence[RoundReport]) -> tuple[Flow, Flow]:
    """Return uplink and downlink of the given rounds, all clients together."""
    updates = [update for entry in rounds for update in entry.updates]
    return flow(u.uplink for u in updates), flow(u.downlink for u in updates)


def run_flows(run: RunReport, client: str | None = None) -> tuple[Flow, Flow]:
    """Return uplink and downlink of the run or of one client, the final delivery included."""
    if client is not None:
        return client_flows(run).get(client, (flow(()), flow(())))
    updates = [u for r in run.rounds for u in r.updates]
    last = [d.downlink for d in run.final.deliveries] if run.final else []
    return flow(u.uplink for u in updates), flow([*(u.downlink for u in updates), *last])


def client_flows(run: RunReport) -> dict[str, tuple[Flow, Flow]]:
    """Return uplink and downlink of every client that sent or got anything, as `run_flows`."""
    up: dict[str, list[Traffic]] = defaultdict(list)
    down: dict[str, list[Traffic]] = defaultdict(list)
    for entry in run.rounds:
        for update in entry.updates:
            up[update.client].append(update.uplink)
            down[update.client].append(update.downlink)
    for delivery in run.final.deliveries if run.final else ():
        down[delivery.client].append(delivery.downlink)
    return {client: (flow(up[client]), flow(found)) for client, found in down.items()}


def spent(run: RunReport) -> list[tuple[int, float]]:
    """Return round numbers with the mean payload of a client, both ways, up to the round's version.

    What brings a client to a version is known when the next round has closed, or at the end.
    """
    downs = [round_flows([entry])[1].payload for entry in run.rounds]
    if run.final is not None:
        downs.append(flow(d.downlink for d in run.final.deliveries).payload)
    total = (downs[0] if downs else None) or 0.0
    found = []
    for entry, down in zip(run.rounds, downs[1:], strict=False):
        total += (round_flows([entry])[0].payload or 0.0) + (down or 0.0)
        found.append((entry.number, total))
    return found


def newest_scored(run: RunReport) -> RoundReport | None:
    """Return the newest round whose leading metric is known; None if there is none."""
    known = (r for r in reversed(run.rounds) if run.metric.of(r.scores) is not None)
    return next(known, None)


def measured_text(run: RunReport) -> str:
    """Return on what the run's model was measured; empty if nobody has measured it."""
    if run.evaluated_by == "server":
        return f"on {count_text(run.num_test_examples)} test examples of {run.dataset}"
    return "on examples that clients held out" if run.evaluated_by == "clients" else ""


def all_clients(run: RunReport) -> tuple[str, ...]:
    """Every client the run mentions, those that only failed included."""
    failed = [
        name for r in run.rounds for name in (*r.missing, *(entry.client for entry in r.refused))
    ]
    delivered = [d.client for d in run.final.deliveries] if run.final else []
    return tuple(dict.fromkeys([*run.client_names, *failed, *delivered]))


def refusals_text(rounds: Iterable[RoundReport]) -> str:
    """Count refusals by reason, the most frequent first: "LATE 12, NON_FINITE 1"."""
    counts: Counter[str] = Counter()
    for entry in rounds:
        for item in entry.refused:
            counts[item.reason] += item.count
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())


def discarded_text(rounds: Iterable[RoundReport]) -> str:
    """List rounds whose model was not adopted, and why: "3 (none of its updates counts)"."""
    return ", ".join(f"{entry.number} ({entry.discarded})" for entry in rounds if entry.discarded)


def short(text: str, limit: int = 18) -> str:
    """Cut a name to ``limit`` characters so that it fits beside a plot."""
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def bytes_text(value: float | None) -> str:
    """1012 -> "1,012 B", 900136 -> "900.1 kB" (1 kB is 1000 bytes, used from 10 kB on)."""
    if value is None:
        return NONE
    if value < 9999.5:
        return f"{value:,.0f} B"
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        # From here on it would round to 1000.0 of this unit.
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"


def count_text(value: float | None) -> str:
    """900136.4 -> "900,136"."""
    return _if_not_finite(value) or f"{value:,.0f}"


def percent_text(value: float | None) -> str:
    """0.778 -> "77.80 %"."""
    return _if_not_finite(value) or f"{value:.2%}".replace("%", " %")


def number_text(value: float | None) -> str:
    """0.60123 -> "0.6012", 1234.56 -> "1,234.56", 0.000123 -> "0.000123"."""
    if text := _if_not_finite(value):
        return text
    assert value is not None
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.{4 if size < 100 else 2 if size < 1e5 else 0}f}"


def ratio_text(value: float | None) -> str:
    """1038.2 -> "1,038x", 3.96 -> "4.0x" with a multiplication sign."""
    if value is None:
        return NONE
    return f"{value:,.{0 if value >= 100 else 1}f}\N{MULTIPLICATION SIGN}"


def times_text(value: float | None) -> str:
    """4.2 -> "4.2", 1038.2 -> "1,038", 0.0123 -> "0.012", 0 -> "0": how many times something."""
    if not value:
        return NONE if value is None else "0"
    return f"{value:,.{0 if value >= 100 else 1 if value >= 1 else 3}f}"


def seconds_text(value: float | None) -> str:
    """93.14 -> "93.1 s", 700 -> "11 min 40 s"."""
    if text := _if_not_finite(value):
        return text
    assert value is not None
    if value < 120:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def latency_text(milliseconds: float | None) -> str:
    """0.0023 -> "2.3 µs", 0.117 -> "117 µs", 12.34 -> "12.3 ms"."""
    if text := _if_not_finite(milliseconds):
        return text
    assert milliseconds is not None
    value, unit = (
        (milliseconds, "ms") if milliseconds >= 1 else (1000 * milliseconds, "\N{MICRO SIGN}s")
    )
    return f"{value:.{1 if value < 100 else 0}f} {unit}"


def privacy_text(run: RunReport) -> str:
    """Return the differential privacy a run has spent; empty if it is not private."""
    if run.final is None or run.final.privacy is None:
        epsilons = [entry.epsilon for entry in run.rounds if entry.epsilon is not None]
        if not epsilons:
            return ""
        return f"differential privacy of clients: epsilon {epsilons[-1]:.3g} so far"
    spent = run.final.privacy
    return (
        f"differential privacy of clients: epsilon {spent.epsilon:.3g} at delta {spent.delta:g}, "
        f"noise multiplier {spent.noise_multiplier:g}"
    )


def _if_not_finite(value: float | None) -> str:
    """Return what stands for a missing or infinite number; empty for any other."""
    if value is None:
        return NONE
    return "" if math.isfinite(value) else "not finite"
