"""The run page's headline tiles and table rows, as finished texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from featherfed.report.metric import range_text, title, value_text, word
from featherfed.report.schema import NO_SCORES, RoundReport, RunReport, Scores, UpdateReport
from featherfed.report.summary import (
    NONE,
    Flow,
    all_clients,
    bytes_text,
    client_flows,
    count_text,
    flow,
    latency_text,
    measured_text,
    newest_scored,
    number_text,
    percent_text,
    privacy_text,
    ratio_text,
    round_flows,
    run_flows,
    seconds_text,
    times_text,
)


@dataclass(frozen=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str


def tiles(run: RunReport) -> list[Tile]:
    """Return the headline numbers in rows of four."""
    up, down = run_flows(run)
    sent = up.total.sent + down.total.sent
    if run.final:
        sent = run.final.totals.uplink.sent + run.final.totals.downlink.sent
    return [
        _score_tile(run),
        total_tile(sent, (up.count + down.count) * run.float32_bytes),
        _ratio_tile("up", up, run),
        _ratio_tile("down", down, run),
        Tile("Rounds", str(len(run.rounds)), _rounds_note(run)),
        Tile("Clients", str(len(all_clients(run))), _clients_note(run)),
        _bytes_tile("Up", up),
        _bytes_tile("Down", down),
    ]


def total_tile(sent: int, plain: int) -> Tile:
    """Return all bytes of the run, and how many times fewer they are than `plain`, as float32."""
    ratio = ratio_text(plain / sent if sent else None)
    return Tile("All bytes", bytes_text(sent), f"{ratio} less than {bytes_text(plain)} as float32")


def _score_tile(run: RunReport) -> Tile:
    """Return the leading metric at the end, else the newest that is known."""
    name, where = word(run.metric.name), measured_text(run) or "nobody has measured it"
    if run.final and (score := run.metric.of(run.final.scores)) is not None:
        return Tile(f"Final {name}", value_text(run.metric.name, score), where)
    newest = newest_scored(run)
    if newest is None:
        return Tile(title(run.metric.name), NONE, where)
    text = value_text(run.metric.name, run.metric.of(newest.scores))
    where = f"after round {newest.number}, {where}"
    return Tile(f"{title(run.metric.name)} so far", text, where)


def _bytes_tile(direction: str, part: Flow) -> Tile:
    note = f"payload; {bytes_text(part.sent)} as sent"
    return Tile(f"{direction} per client and round", bytes_text(part.payload), note)


def _ratio_tile(direction: str, part: Flow, run: RunReport) -> Tile:
    sent = ratio_text(part.sent_ratio(run.float32_bytes))
    return Tile(
        f"Compression {direction}",
        ratio_text(part.ratio(run.float32_bytes)),
        f"less than float32; {sent} as sent",
    )


def _rounds_note(run: RunReport) -> str:
    if run.final:
        return f"in {seconds_text(run.final.seconds)}"
    return "so far; the run has not finished"


def _clients_note(run: RunReport) -> str:
    mean = sum(len(r.updates) for r in run.rounds) / max(1, len(run.rounds))
    return f"{mean:.1f} updates a round on average"


def score_rows(run: RunReport) -> list[dict[str, object]]:
    """Return how good the model was after each round, and at the end."""
    rows = [
        {
            "number": entry.number,
            **_scores(run, entry.scores),
            "spread": range_text(run.metric.name, entry.spread),
            "sparsity": percent_text(entry.sparsity) if entry.sparsity else NONE,
            "clients": len(entry.updates),
            "sum": False,
        }
        for entry in run.rounds
    ]
    if run.final is None:
        return rows
    final = {
        "number": "final",
        **_scores(run, run.final.scores),
        "spread": range_text(run.metric.name, _own_scores(run)),
        "sparsity": percent_text(run.final.sparsity) if run.final.sparsity else NONE,
        "clients": len(run.final.deliveries),
        "sum": True,
    }
    return [*rows, final]


def byte_rows(run: RunReport) -> list[dict[str, object]]:
    """Return the bytes of each round, means per client, and of the final delivery."""
    rows = [_byte_row(entry) for entry in run.rounds]
    if run.final is None:
        return rows
    down = flow(d.downlink for d in run.final.deliveries)
    nothing = {"payload": "", "sent": ""}
    final = {"number": "final", "up": nothing, "down": _flow_cells(down), "sum": True}
    return [*rows, {**final, "noise": "", "bytes_for_noise_1": "", "wasted": ""}]


def _byte_row(entry: RoundReport) -> dict[str, object]:
    up, down = round_flows([entry])
    return {
        "number": entry.number,
        "up": _flow_cells(up),
        "noise": times_text(entry.noise),
        "bytes_for_noise_1": count_text(entry.bytes_for_noise_1),
        "down": _flow_cells(down),
        "wasted": count_text(entry.wasted),
        "sum": False,
    }


def epsilon_rows(run: RunReport) -> list[tuple[int, str]]:
    """Return the differential privacy that was spent up to each round, where it is known."""
    return [(r.number, f"{r.epsilon:.3g}") for r in run.rounds if r.epsilon is not None]


def privacy_note(run: RunReport) -> str:
    """Return what the privacy figures of a run mean; empty without differential privacy."""
    text = privacy_text(run)
    if not text:
        return ""
    last = run.rounds[-1].clip
    return (
        f"{text[0].upper()}{text[1:]}, all rounds together, for the client that took part most "
        "often. It holds for what the model and the downloads tell, against anyone but the server, "
        "and counts a name as a client. Who took part and how many bytes each sent is not hidden. "
        f"In the newest round updates were clipped to a norm of {number_text(last)}."
    )


def noise_note(run: RunReport) -> str:
    """Return how noisy the newest round's mean was, and the bytes for less; empty if unknown."""
    known = [entry for entry in run.rounds if entry.noise is not None]
    if not known:
        return ""
    last = known[-1]
    text = (
        "Noise is what the clients' codec left in the mean of their updates, compared with an "
        "update by energy (sum of squares); it averages out further over the rounds. In round "
        f"{last.number}, noise: {times_text(last.noise)} times the update"
    )
    if last.bytes_for_noise_1 is None:
        return f"{text}."
    sent = round_flows([last])[0].payload
    text = (
        f"{text}, with {bytes_text(sent)} of payload up from a client. As much noise as update "
        f"would have taken about {bytes_text(last.bytes_for_noise_1)}: noise falls as bytes grow."
    )
    if (last.byte_factor or 1) == 1:
        return text
    return (
        f"{text} Clients sent {times_text(last.byte_factor)} times the preset's usual bytes, since "
        "the noise was large beside the weights, and would have broken what the preset promises."
    )


def _scores(run: RunReport, scores: Scores) -> dict[str, str]:
    return {
        "score": value_text(run.metric.name, run.metric.of(scores)),
        "loss": number_text(scores.get("loss")),
    }


def _own_scores(run: RunReport) -> list[float]:
    """Return the leading metric of the final model on each client's own examples."""
    deliveries = run.final.deliveries if run.final else ()
    found = [run.metric.of(delivery.scores) for delivery in deliveries]
    return [score for score in found if score is not None]


def score_table(run: RunReport) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of all metrics of rounds and files; no rows if there is but one."""
    names = list(dict.fromkeys((run.metric.name, *run.task.metrics, "loss")))
    if len(names) < 3:
        return [], []
    scored = [(f"round {entry.number}", entry.scores) for entry in run.rounds]
    if run.final:
        scored.append(("final", run.final.scores))
        scored += [(model.file, model.scores) for model in run.final.models]
    return [title(name) for name in names], [
        [label, *(value_text(name, scores.get(name)) for name in names)] for label, scores in scored
    ]


def own_rows(run: RunReport) -> list[dict[str, str]]:
    """Return a row per client with its newest scores on its own held-out examples.

    `before` and `after` local training in the last round in which it measured them, `final` of the
    final model.
    """
    newest: dict[str, tuple[int, UpdateReport]] = {
        u.client: (r.number, u) for r in run.rounds for u in r.updates if u.before or u.after
    }
    deliveries = run.final.deliveries if run.final else ()
    told = {d.client: d.scores for d in deliveries if d.scores}
    return [
        _own_row(run, client, newest.get(client), told.get(client))
        for client in dict.fromkeys((*newest, *told))
    ]


def _own_row(
    run: RunReport, client: str, newest: tuple[int, UpdateReport] | None, final: Scores | None
) -> dict[str, str]:
    number, update = newest or (None, None)
    before = (update.before if update else None) or NO_SCORES
    after = (update.after if update else None) or NO_SCORES
    name = run.metric.name
    return {
        "client": client,
        "round": NONE if number is None else str(number),
        "before": value_text(name, before.get(name)),
        "after": value_text(name, after.get(name)),
        "loss_before": number_text(before.get("loss")),
        "loss_after": number_text(after.get("loss")),
        "final": value_text(name, run.metric.of(final)),
    }


def _flow_cells(part: Flow) -> dict[str, str]:
    return {"payload": count_text(part.payload), "sent": count_text(part.sent)}


def byte_totals(run: RunReport) -> list[dict[str, object]]:
    """Return a row per client with the totals of both directions, and one for all clients."""
    flows, nothing = client_flows(run), (flow(()), flow(()))
    rows = [_total_row(run, n, flows.get(n, nothing)) for n in all_clients(run)]
    return [*rows, {**_total_row(run, "all clients", run_flows(run)), "sum": True}]


def _total_row(run: RunReport, label: str, flows: tuple[Flow, Flow]) -> dict[str, object]:
    up, down = flows
    return {
        "client": label,
        "sum": False,
        "up": _total_cells(up, run),
        "down": _total_cells(down, run),
    }


def _total_cells(part: Flow, run: RunReport) -> dict[str, str]:
    return {
        "count": str(part.count),
        "payload": count_text(part.total.payload),
        "message": count_text(part.total.message),
        "other": count_text(part.total.control + part.total.retry),
        "ratio": ratio_text(part.ratio(run.float32_bytes)),
        "sent_ratio": ratio_text(part.sent_ratio(run.float32_bytes)),
    }


def client_rows(run: RunReport) -> list[dict[str, str]]:
    """Return a row per client: what it trains with and on, and in how many rounds it counted."""
    newest = {u.client: u for r in run.rounds for u in r.updates}
    counted = Counter(u.client for r in run.rounds for u in r.updates)
    missed = Counter(name for r in run.rounds for name in r.missing)
    refused: Counter[str] = Counter()
    for entry in run.rounds:
        for item in entry.refused:
            refused[item.client] += item.count
    return [
        {
            "client": name,
            "runtime": newest[name].runtime or NONE if name in newest else NONE,
            "examples": count_text(newest[name].num_examples) if name in newest else NONE,
            "counted": str(counted[name]),
            "missed": str(missed[name]),
            "refused": count_text(refused[name]),
        }
        for name in all_clients(run)
    ]


def totals_text(run: RunReport) -> str:
    """Return a sentence on all bytes of the ledger, those of refused updates included."""
    if run.final is None:
        return ""
    up, down = run.final.totals.uplink, run.final.totals.downlink
    return (
        f"The server's ledger counted {count_text(up.sent)} bytes up and {count_text(down.sent)}"
        " bytes down in all, refused and late updates included, of which"
        f" {count_text(up.payload)} and {count_text(down.payload)} are payload."
        f"{_releases_text(run)}"
    )


def _releases_text(run: RunReport) -> str:
    count = len(run.releases)
    if not count:
        return ""
    who = "1 device that only infers" if count == 1 else f"{count} devices that only infer"
    up, down = flow(d.uplink for d in run.releases), flow(d.downlink for d in run.releases)
    return (
        f" Besides, {who} took {count_text(down.total.sent)} bytes down, of which"
        f" {count_text(down.total.payload)} are payload, and {count_text(up.total.sent)} bytes up."
    )


def model_rows(run: RunReport) -> list[dict[str, str]]:
    """Return a row per exported model."""
    return [
        {
            "file": model.file,
            "kind": model.kind,
            "size": count_text(model.size),
            "gzip": count_text(model.gzip_size),
            "ratio": ratio_text(run.float32_bytes / model.size if model.size else None),
            "score": value_text(run.metric.name, run.metric.of(model.scores)),
            "examples": count_text(model.num_examples),
            "latency": latency_text(model.latency_ms),
            "latency_p95": latency_text(model.latency_p95_ms),
            "memory": bytes_text(model.memory),
            "idle_memory": bytes_text(model.idle_memory),
        }
        for model in (run.final.models if run.final else ())
    ]


def refusal_rows(run: RunReport) -> list[dict[str, object]]:
    """Return a row per round, client and reason of the refusals."""
    return [
        {
            "round": r.number,
            "client": item.client,
            "reason": item.reason,
            "count": count_text(item.count),
            "detail": item.detail,
        }
        for r in run.rounds
        for item in r.refused
    ]


def best_version(run: RunReport) -> dict[str, object] | None:
    """Return the best version by the leading metric beside the last; None if no score is known."""
    scored = [
        (score, r)
        for r in run.rounds
        if (score := run.metric.of(r.scores)) is not None and math.isfinite(score)
    ]
    if not scored:
        return None
    sign = 1 if run.metric.larger_is_better else -1
    score, best = max(scored, key=lambda pair: (sign * pair[0], pair[1].version))
    last = run.rounds[-1]
    scores = run.final.scores if run.final and run.final.version == last.version else last.scores
    name, value = word(run.metric.name), value_text(run.metric.name, score)
    note = f"Version {best.version} has the best {name}, {value}."
    if best.version == last.version:
        note = f"The last version, {last.version}, is the best: {name} {value}."
    return {
        "note": note,
        "rows": [
            {"name": "best", **_version(best), **_scores(run, best.scores)},
            {"name": "last", **_version(last), **_scores(run, scores)},
        ],
    }


def _version(entry: RoundReport) -> dict[str, object]:
    return {"version": entry.version, "digest": entry.digest}


def confusion_table(run: RunReport) -> dict[str, object] | None:
    """Return the confusion matrix of the final model with shares of each row; None without one."""
    counts = run.final.confusion if run.final else None
    names = run.task.target.class_names
    if not counts or len(counts) != len(names) or any(len(row) != len(names) for row in counts):
        return None
    return {
        "names": names,
        "rows": [
            {
                "name": name,
                "cells": [
                    {
                        "text": count_text(count) if count else "\N{MIDDLE DOT}",
                        "share": f"{count / (sum(row) or 1):.2f}",
                        "miss": column != index,
                    }
                    for column, count in enumerate(row)
                ],
                "right": percent_text(row[index] / sum(row)) if sum(row) else NONE,
            }
            for index, (name, row) in enumerate(zip(names, counts, strict=True))
        ],
    }


def version_rows(run: RunReport, sizes: Mapping[int, int]) -> list[dict[str, object]]:
    """Return a row per version that a round made, newest first; `sizes` of those that are known."""
    return [
        {
            **_version(entry),
            **_scores(run, entry.scores),
            "size": bytes_text(sizes.get(entry.version)),
            "broadcast": entry.broadcast or NONE,
        }
        for entry in reversed(run.rounds)
    ]
