"""`featherfed watch`: a live page's events, as a screen of a terminal or as lines."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from support.fake_page import FakePage, snapshot

from featherfed.cli import page_source
from featherfed.cli.main import app
from featherfed.cli.page_source import Away, PageSource, run_events
from featherfed.cli.snapshot import PageError, Snapshot, parse
from featherfed.cli.watch_view import Screen, bytes_line, clock_text, sparkline

ESCAPE = "\x1b[31mred\x1b]0;title\x07\u202egnp"


@pytest.fixture
def page() -> Iterator[FakePage]:
    made = FakePage()
    yield made
    made.close()


def watch(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["watch", *arguments], catch_exceptions=False)


def parsed(**changes: Any) -> Snapshot:
    return parse(json.dumps(snapshot(**changes)).encode())


def screen(found: Snapshot, width: int = 80, height: int = 24) -> str:
    """What a terminal of that size shows, without colours."""
    shown = Screen("127.0.0.1:1")
    shown.take(found)
    out = io.StringIO()
    Console(file=out, width=width, height=height, force_terminal=True, no_color=True).print(shown)
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())


# ---- without a terminal ----


def test_each_change_is_a_line_and_the_end_of_the_run_is_status_0(page: FakePage) -> None:
    page.send(snapshot(phase="waiting", round=1, version=0, waiting_for=2, points=[], best=None))
    page.send(snapshot())
    page.send(snapshot(now="2026-03-01T10:01:02+00:00", deadline_in=93.0))  # no change to tell
    late = {"time": "2026-03-01T10:01:05Z", "client": "shed", "reason": "LATE", "text": "too late"}
    page.send(snapshot(refusals=[late, *snapshot()["refusals"]]))
    page.send(snapshot(phase="finished", round=7, version=7, clients=[]))
    done = watch(page.address)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines == [
        "digits: round 1 of 7, waiting; accuracy: not known yet; 1 reported, 1 training; waiting "
        "for 2 more clients, by: featherfed join 127.0.0.1:8765 --data FILE; 12.0 kB up, 34.5 kB "
        "down, 321 B in vain; float32: 9.0 MB (194×)",
        "digits: round 3 of 7, training; accuracy 93.33 % (best 93.33 %, version 2); 1 reported, "
        "1 training; 12.0 kB up, 34.5 kB down, 321 B in vain; float32: 9.0 MB (194×)",
        "refused at 10:01:05: shed too late",
        "digits: round 7 of 7, finished; accuracy 93.33 % (best 93.33 %, version 2); 12.0 kB up, "
        "34.5 kB down, 321 B in vain; float32: 9.0 MB (194×)",
    ]


def test_it_goes_on_after_the_server_restarts(
    page: FakePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_source, "FIRST_PAUSE", 0.01)
    page.send(snapshot(round=1))
    page.break_off()
    page.send(snapshot(round=2))
    page.break_off()
    page.send(snapshot(phase="finished"))
    done = watch(page.address)
    assert done.exit_code == 0
    assert done.output.count("it ended the connection") == 2
    assert [line.split(",")[0] for line in done.output.splitlines()][::2] == [
        "digits: round 1 of 7", "digits: round 2 of 7", "digits: round 3 of 7",
    ]  # fmt: skip


def test_a_server_that_ends_right_after_the_last_version_has_finished(page: FakePage) -> None:
    page.send(snapshot(phase="aggregating", round=7, version=7))
    page.break_off()
    assert watch(page.address).exit_code == 0


def test_nobody_there_is_looked_for_again_with_longer_pauses() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    slept: list[float] = []
    messages = PageSource(address, None, sleep=slept.append).messages()
    found = [next(messages) for _ in range(9)]
    assert all(isinstance(message, Away) and "refused" in message.why for message in found)
    assert len(slept) == 8
    assert slept[-1] <= 10.0
    assert slept[5] > slept[0]
    done = watch(address, "--give-up-after", "0.01")
    assert done.exit_code == 1
    assert "no live page for 0 seconds" in done.output


# ---- tokens and wrong addresses ----


def test_a_page_that_asks_for_a_token_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    page = FakePage(token="secret")
    try:
        refused = watch(page.address)
        assert refused.exit_code == 1
        assert "FEATHERFED_PAGE_TOKEN" in refused.output
        for arguments in (
            [page.address, "--token", "secret"],
            [f"http://{page.address}/?token=secret"],
        ):
            page.send(snapshot(phase="finished"))
            assert watch(*arguments).exit_code == 0
        monkeypatch.setenv("FEATHERFED_PAGE_TOKEN", "secret")
        page.send(snapshot(phase="finished"))
        done = watch(page.address)
        assert done.exit_code == 0
        assert "secret" not in done.output
        assert page.requests[-1][1]["Authorization"] == "Bearer secret"
    finally:
        page.close()


def test_a_page_may_give_a_cookie_for_the_token_and_leads_nowhere_else() -> None:
    page = FakePage(token="secret", redirects=True)
    try:
        page.send(snapshot(phase="finished"))
        assert watch(page.address, "--token", "secret").exit_code == 0
        path, headers = page.requests[-1]
        assert (path, headers["Cookie"]) == ("/api/events", "page=secret")
    finally:
        page.close()


@pytest.mark.parametrize("address", ["nowhere", "host:", "host:99999", "ftp://a:1", "a..b:1", ":1"])
def test_an_address_that_is_none_is_told(address: str) -> None:
    done = watch(address)
    assert done.exit_code == 1
    assert "HOST:PORT" in done.output


def test_a_token_that_would_break_the_request_is_refused() -> None:
    with pytest.raises(PageError, match="token"):
        PageSource("127.0.0.1:1", "a\r\nHost: b")


# ---- hostile pages ----


@pytest.mark.parametrize(
    "data",
    [
        b"no json",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"schema": 2}',
        b'{"schema": "' + b"x" * 1000 + b'"}',
        b'{"schema": 1' + b"0" * 5000 + b"}",
    ],
)
def test_what_is_no_snapshot_ends_with_an_error(page: FakePage, data: bytes) -> None:
    page.send_raw(b"event: run\ndata: " + data + b"\n\n")
    done = watch(page.address)
    assert done.exit_code == 1
    assert len(done.output) < 400


def test_values_of_wrong_kinds_are_unknown() -> None:
    odd = [None, True, "x", [], {}, -1, 1e999, float("nan"), 10**400]
    for value in odd:
        fields = {key: value for key in snapshot() if key != "schema"}
        found = parse(json.dumps({"schema": 1, **fields}).encode())
        assert (found.round, found.deadline_in, found.points) == (0, None, ())
        rows = [{key: value for key in row} for row in snapshot()["clients"]]
        found = parsed(clients=[*rows, value], points=[{"round": value, "score": value}])
        assert len(found.clients) == 2 + isinstance(value, dict)
        screen(found)


def test_an_endless_line_and_an_endless_event_are_cut_off(
    page: FakePage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_source, "MAX_EVENT_BYTES", 10_000)
    asked: list[int] = []

    def endless(size: int) -> bytes:
        asked.append(size)
        return b"x" * size

    with pytest.raises(PageError, match="more than 10,000 bytes"):
        list(run_events(endless))
    assert asked == [10_001]
    with pytest.raises(PageError, match="more than 10,000 bytes"):
        list(run_events(lambda size: b"data: " + b"y" * 90 + b"\n"))
    page.send_raw(b"event: run\ndata: " + b"z" * 20_000)
    assert watch(page.address).exit_code == 1


def test_comments_for_hours_are_no_long_event() -> None:
    lines = iter([b": alive\n"] * 50 + [b"event: run\n", b"data: 1\r\n", b"data:2\n", b"\n", b""])
    assert list(run_events(lambda size: next(lines))) == [b"1\n2"]
    lines = iter([b"event: sections\n", b"data: {}\n", b"\n", b""])
    assert list(run_events(lambda size: next(lines))) == []


def test_no_escape_sequence_of_a_page_reaches_the_terminal(page: FakePage) -> None:
    client = {**snapshot()["clients"][0], "name": ESCAPE, "state": ESCAPE, "runtime": ESCAPE}
    line = {"time": ESCAPE, "client": ESCAPE, "level": ESCAPE, "text": ESCAPE, "reason": ESCAPE}
    bad = snapshot(
        run=ESCAPE, phase=ESCAPE, join=ESCAPE, waiting_for=1, metric={"name": ESCAPE},
        clients=[client], refusals=[line], log=[line],
        points=[{"round": 1, "discarded": ESCAPE}],
    )  # fmt: skip
    shown = screen(parse(json.dumps(bad).encode()), height=40)
    assert not set(shown) & {"\x1b", "\x07", "\u202e"}
    assert "\\x1b" in shown
    page.send(bad)
    page.send(snapshot(phase="finished", clients=[client], refusals=[line, line]))
    done = watch(page.address)
    assert done.exit_code == 0
    assert not set(done.output) & {"\x1b", "\x07", "\u202e"}


# ---- the screen ----


def test_the_screen_has_all_of_it_in_80_columns() -> None:
    shown = screen(parsed())
    lines = shown.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert lines[0] == "digits  round 3 of 7  training  closes in 1:35"
    assert "accuracy 93.33 % (best 93.33 %, version 2)" in lines[1]
    assert "12.0 kB up, 34.5 kB down, 321 B in vain; float32: 9.0 MB (194×)" in lines[2]
    assert "▁█" in shown
    for words in (
        r"kitchen +training +2 s +287 +1.2 s +litert +61 +80 % +91.00 %",
        r"garden +reported +1:11 +290 +1.5 s +keras +- +- +-",
        r"2 +93.33 % +0.3000 +3.9 s +6,000 B +34.5 kB",
        "10:00:58 attic the round is closed",
        "10:00:59 INFO round 3: open",
    ):
        assert re.search(words, shown), f"{words}\n{shown}"


def test_what_waits_for_clients_says_how_one_joins() -> None:
    shown = screen(parsed(waiting_for=2, phase="waiting", points=[], best=None, deadline_in=None))
    assert "waiting for 2 more clients" in shown
    assert "join one: featherfed join 127.0.0.1:8765 --data FILE" in shown


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (200, 60), (20, 5)])
def test_a_thousand_clients_fit_any_terminal(width: int, height: int) -> None:
    rows = [{**snapshot()["clients"][0], "name": f"client-{i}" * 5} for i in range(1000)]
    found = parsed(
        clients=rows, log=snapshot()["log"] * 200, refusals=snapshot()["refusals"] * 50,
        points=snapshot()["points"] * 50,
    )  # fmt: skip
    lines = screen(found, width, height).splitlines()
    assert max(map(len, lines)) <= width
    if height >= 24:
        assert len(lines) <= height
        assert "1000 training" in "".join(lines)


def test_a_page_that_is_away_stands_beside_what_was_known() -> None:
    shown = Screen("127.0.0.1:1")
    shown.take(parsed())
    shown.take(Away("connection refused"))
    out = io.StringIO()
    Console(file=out, width=80, height=24).print(shown)
    assert "no answer (connection refused)" in out.getvalue()
    assert "kitchen" in out.getvalue()


def test_small_texts() -> None:
    assert [clock_text(s) for s in (8.4, 95, 7300)] == ["8 s", "1:35", "2:01:40"]
    assert sparkline([1.0, 1.0]) == "▄▄"
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert bytes_line(parsed(bytes={})) == "0 B up, 0 B down, 0 B in vain"


def in_terminal(page: FakePage, until: str, end: signal.Signals | None) -> tuple[int, str]:
    """Run the command in a terminal of 80 columns; return its exit status and all it wrote."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-m", "featherfed.cli.main", "watch", page.address],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**env, "PYTHONUTF8": "1"},
    )  # fmt: skip
    os.close(theirs)
    written, signalled, last = "", False, time.monotonic() + 60
    while time.monotonic() < last:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not data:
                break
            written += data.decode("utf-8", "replace")
        if end is not None and until in written and not signalled:
            process.send_signal(end)
            signalled = True
    os.close(ours)
    return process.wait(20), written


def test_in_a_terminal_it_ends_with_the_run_and_leaves_the_last_state(page: FakePage) -> None:
    page.send(snapshot())
    timer = threading.Timer(1.5, page.send, [snapshot(phase="finished", round=7, version=7)])
    timer.start()
    status, written = in_terminal(page, "", None)
    timer.join()
    assert status == 0, written
    assert "\x1b[?1049h" in written, "it takes the other screen"
    left = written.partition("\x1b[?1049l")[2]
    assert "round 7 of 7  finished" in left
    assert "kitchen" in left


def test_ctrl_c_ends_it_and_gives_the_screen_back(page: FakePage) -> None:
    page.send(snapshot())
    status, written = in_terminal(page, "kitchen", signal.SIGINT)
    assert status == 130, written
    assert "\x1b[?1049l" in written
    assert "Traceback" not in written
