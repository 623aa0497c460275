"""The section "Robustness" of docs/results.md, from what `make robustness` has measured so far."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "robustness"


def robustness_section() -> Iterator[str]:
    """Yield the faults that were injected, and how the run ended."""
    yield (
        "Made by `make robustness` (`benchmarks/robustness`). Every run here ended, and with the "
        "digests, round by round, of the same run left in peace; otherwise there would be no row."
    )
    for name, part in _PARTS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            yield ""
            yield from part(json.loads(path.read_text("utf-8")))


def _faults(found: Any) -> Iterator[str]:
    yield (
        f"**Faults**, each against a running round with four honest clients and a deadline of "
        f"{found['deadline']:g} s. Seconds are from the round's opening to its close, which waits "
        "for the one in its cohort who sends nothing right; there are none where the attacker is "
        "in no cohort. The honest clients end with the model of the undisturbed run, bit for bit, "
        "in every row."
    )
    yield from _head("fault", "told", "seconds", "peers, as far as it was measured or read")
    for row in found["faults"]:
        code = row["told"].isupper()
        told = f"`{row['told']}`" if code else row["told"]
        yield _row(row["fault"], told, row["seconds"] or "", row["peers"])


def _storms(found: Any) -> Iterator[str]:
    yield (
        "**Kill storm**, light processes (a numpy trainer; server, store, session and gRPC are the "
        "real ones): 5 clients, 10 rounds, SIGKILL at random moments. Every acknowledgement that a "
        "client had written down is in the journal, and the ledger counts each update once."
    )
    yield from _head("codec", "kills: server", "clients", "seconds", "acks", "updates", "retries")
    for codec in ("sketch", "error feedback"):
        yield _storm_row(codec, found[codec])


def _real(found: Any) -> Iterator[str]:
    yield (
        "**Kill storm**, `featherfed serve` and 5 `featherfed join --runtime litert` on digits, 10 "
        "rounds."
    )
    yield from _head("codec", "kills: server", "clients", "seconds", "acks", "updates", "retries")
    yield _storm_row("sketch", found)


def _storm_row(codec: str, row: Any) -> str:
    kills = row["kills"]
    return _row(
        codec, kills["server"], kills["clients"], row["seconds"], row["acknowledged"],
        row["updates"], f"{row['retry_bytes']:,} bytes",
    )  # fmt: skip


def _links(found: Any) -> Iterator[str]:
    yield (
        f"**Thin links**: 4 clients, {found['rounds']} rounds, 225,034 parameters; each connection "
        "has 64 kbit/s each way and a round trip of 100 to 500 ms through a TCP proxy. A lost "
        "segment (1,460 bytes) is sent again after 0.6 s, 1.2 s, ..., and holds up all behind it; "
        "one in 20 cuts the connection. Payload and retries are the ledger's, uplink payload and "
        "messages of both ways; the wire is what the proxy carried both ways, lost segments too."
    )
    yield from _head("uplink", "loss", "seconds", "cuts", "payload", "retries", "wire")
    for row in found["runs"]:
        yield _row(
            f"`{row['uplink']}`", f"{row['loss']:.0%}", row["seconds"], row["cuts"],
            f"{row['payload_bytes']:,}", f"{row['retry_bytes']:,}", f"{row['bytes']:,}",
        )  # fmt: skip


def _load(found: Any) -> Iterator[str]:
    yield (
        "**Load**: each client has its own connection, and in each round all send at the same "
        "moment. Seconds of a round, and the server's processor time for each client in it, "
        "joining left out; the clients, all in one process, share the two cores. Memory is the "
        "server's peak (VmHWM, 10^6 bytes); its growth is told from 10 clients on. Calls that were "
        "turned away (more than 4,096 at once, no room for the bytes) are tried again. The server "
        "evaluates with a stand-in that takes no time; where Keras is said, it is `featherfed "
        "serve`, which evaluates the model and those of ten clients on Fashion-MNIST's 10,000 test "
        "images."
    )
    yield from _head(
        "parameters", "uplink", "clients", "rounds", "s/round", "CPU/client", "ack p50", "ack p99",
        "tried again", "peak", "growth/client",
    )  # fmt: skip
    base: dict[tuple[int, str, str], Any] = {}
    for row in found["runs"]:
        first = base.setdefault((row["parameters"], row["uplink"], row["evaluator"]), row)
        more = row["clients"] - first["clients"]
        growth = 1e6 * (row["peak_mb"] - first["peak_mb"]) / more if more else None
        told = "" if growth is None else _growth(growth, row)
        yield _row(
            f"{row['parameters']:,}", f"`{row['uplink']}`" + _keras(row), f"{row['clients']:,}",
            row["rounds"], row["seconds_a_round"], f"{row['server_cpu_ms_a_client_and_round']} ms",
            f"{row['ack_p50_ms']:,.0f} ms", f"{row['ack_p99_ms']:,.0f} ms",
            f"{sum(row['retries'].values()):,}",
            f"{row['peak_mb']:.0f} MB", told,
        )  # fmt: skip


def _keras(row: Any) -> str:
    return ", Keras" if row["evaluator"] == "keras" else ""


def _growth(growth: float, row: Any) -> str:
    updates = growth / row["update_bytes"]
    return f"{growth / 1000:,.0f} kB, {updates:,.1f} updates of {row['update_bytes']:,} bytes"


def _service(found: Any) -> Iterator[str]:
    codes = ", ".join(f"{code} {count:,}" for code, count in found["codes"].items())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found["refused_updates"].items())
    yield (
        f"**Hostile calls**: {found['calls']:,} on a live server by one of the round's cohort "
        "(bytes that are no message, hostile values in every field, spoilt updates, streams broken "
        f"off, methods that there are not), {found['seconds']:.0f} s. Answers: {codes}. Never "
        f"UNKNOWN or INTERNAL, no traceback. Updates refused: {reasons}. The slowest answer took "
        f"{found['slowest_seconds']} s; the server's memory was {found['before_mb']} MB after a "
        f"fifth of the calls and {found['after_mb']} MB after all."
    )


def _decoder(found: Any) -> Iterator[str]:
    yield (
        f"**Fuzzing**: {found['inputs']:,} inputs on everything that decodes a peer's bytes, "
        f"guided by coverage (Atheris), {found['seconds']:,} s: no crash; the slowest took less "
        f"than {found['slowest_seconds'] + 1} s, memory never exceeded {found['peak_mb']} MB, the "
        "fuzzer's included."
    )


def _simulator(found: Any) -> Iterator[str]:
    names = {
        "kill": "kills", "power": "losses of power", "cut": "cut connections",
        "silence": "silent links", "slow": "slow links", "repeat": "repeated calls",
        "full": "full disks", "clock": "clock jumps", "freeze": "frozen processes",
        "restore": "restores of a backup", "lose": "lost client states", "stop": "stops",
    }  # fmt: skip
    met = ", ".join(
        f"{found['faults'][kind]:,} {name}"
        for kind, name in names.items()
        if kind in found["faults"]
    )
    yield (
        f"**Simulation** (`featherfed-simulate`): {found['runs']:,} runs of {found['rounds']} "
        f"rounds on a simulated clock, network and disks, each from a seed, {found['seconds']:,} s "
        f"on {found['processes']} cores ({found['runs_an_hour']:,} runs an hour): {met}. No "
        "invariant was broken; the longest that a run needed to end after its last fault was "
        f"{found['slowest_recovery_seconds']} simulated seconds."
    )


def _planted(found: Any) -> Iterator[str]:
    yield (
        f"**Bugs of the past, planted again** (`tests/support/planted_bugs.py`): the simulator "
        f"finds {found['found']} of {found['bugs']}, in runs of {found['rounds']} rounds."
    )
    yield from _head("bug", "mended by", "runs until found", "CPU seconds", "what broke")
    for row in found["each"]:
        runs = row["runs"] if row["found_by_seed"] is not None else f"not in {row['runs']}"
        yield _row(
            row["bug"], f"`{row['mended_by']}`", runs, row["cpu_seconds"],
            row.get("violation", "").split("\n")[0].replace("|", "\\|")[:120],
        )  # fmt: skip


def _damage(found: Any) -> Iterator[str]:
    yield (
        "**Damage** (`benchmarks/damage.py`): one flipped byte at a time, 1,000 for each kind of "
        "file. Noticed at the start or while serving; harmless where the run then ends the same; "
        "silent where it does not. In brackets the code of before there were checksums."
    )
    yield from _head("file", "bytes", "noticed", "harmless", "silent", "silent to `check` as well")
    before, after = found["before"], found["after"]
    for name, row in after.items():
        if name != "cost":
            was = before[name]
            yield _row(
                name, f"{row['bytes']:,}",
                f"{_noticed(row)} ({_noticed(was)})", f"{row['harmless']} ({was['harmless']})",
                f"{row['silent']} ({was['silent']})",
                f"{_unseen(row)} ({_unseen(was)})",
            )  # fmt: skip
    key = "updates_per_second_in_memory_cpu_ms_per_update"
    now, was = after["cost"], before["cost"]
    yield ""
    yield (
        f"It costs {now[key] - was[key]:.2f} ms of processor time an update, and "
        f"{now['large_run_start_cpu_seconds']:g} s ({was['large_run_start_cpu_seconds']:g} s) at "
        f"the start of a run of {now['large_run_rows']:,} rows."
    )


def _noticed(row: Any) -> int:
    return int(row["found_by_start"] + row["found_while_serving"])


def _unseen(row: Any) -> int:
    return int(row["silent"] - row["silent_but_found_by_check"])


_PARTS = {
    "faults": _faults,
    "light_storms": _storms,
    "real_storm": _real,
    "links": _links,
    "load": _load,
    "service": _service,
    "simulator": _simulator,
    "planted_bugs": _planted,
    "decoder": _decoder,
    "damage": _damage,
}


def _head(*cells: str) -> Iterator[str]:
    yield ""
    yield _row(*cells)
    yield "|" + "---|" * len(cells)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
