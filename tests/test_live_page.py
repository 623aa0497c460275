"""The live page over HTTP: what it shows, what can be done on it, and requests that mean harm."""

from __future__ import annotations

import importlib.util
import logging
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clients import join_request
from support.federation import Federation, settings
from support.live_page import FACTS, PAGE, Shown, empty, page_of, served
from support.models import MANIFEST, TASK
from support.processes import wait_until

from featherfed.api.live_page import ADDRESS_FILE, TOKEN_FILE, LivePage, check_page
from featherfed.api.serve_settings import serve_settings
from featherfed.page import feed, stream
from featherfed.page.access import Access
from featherfed.page.server import Keys, PageSocket
from featherfed.page.source import Action
from featherfed.report.sections import RunPage
from featherfed.server.access.authority import Authority
from featherfed.server.errors import CannotStore, NotNow, ServerError
from featherfed.server.observability.metrics_json import collect

SCRIPT = "<script>alert(1)</script>"


def test_readers_follow_a_run(federation: Callable[..., Federation]) -> None:
    server = federation(rounds=3, server=PAGE)
    with page_of(server) as page:
        first = page.run()
        assert (first["schema"], first["phase"], first["waiting_for"]) == (1, "waiting", 3)
        assert first["join"] == f"featherfed join {server.address} --data FILE"
        with page.events() as events, page.events("api/page") as changes:
            assert next(events)[1]["phase"] == "waiting"
            parts = next(changes)[1]
            assert {"header", "nav", "clients", "log"} <= parts.keys()
            thread = threading.Thread(
                target=server.run_clients, args=[server.client(name) for name in "abc"]
            )
            thread.start()
            begin, count = time.monotonic(), 0
            for name, seen in events:
                assert name == "run"
                count += 1
                if seen["phase"] == "finished" and len(seen["points"]) == 3:
                    break
            assert count <= 2 + 2 * (time.monotonic() - begin), "at most twice a second"
            for name, changed in changes:
                assert name == "sections"
                assert {id_: html for id_, html in changed.items() if parts[id_] == html} == {}
                parts |= changed
                if "Finished" in parts["header"]:
                    break
            thread.join()
        assert seen["best"] is not None
        assert {client["state"] for client in seen["clients"]} == {"present"}
        assert page.run()["points"] == seen["points"]
        assert "version 3" in parts["header"]


def test_the_page_is_whole_and_names_no_other_host(federation: Callable[..., Federation]) -> None:
    server = federation(rounds=1, server=PAGE)
    with page_of(server) as page:
        answer = page.http.get("")
        assert answer.status_code == 200
        assert 'id="controls"' in answer.text
        assert "api/page" in answer.text
        found = set(re.findall(r"https?://[^\s\"'<)]+", answer.text))
        assert found <= {"http://www.w3.org/2000/svg"}, "nothing is loaded from elsewhere"
        headers = answer.headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "connect-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        (digest,) = re.findall(r"script-src '(sha256-[^']+)'", policy)
        assert digest in answer.text.replace("&#43;", "+"), "the page's own policy says the same"
        for path in ("", "api/run", "nothing", "favicon.ico"):
            got = page.http.get(path).headers
            assert got["x-content-type-options"] == "nosniff"
            assert got["content-security-policy"] == policy
            assert got["cache-control"] == "no-store"
            assert got["referrer-policy"] == "no-referrer"
            assert not [name for name in got if name.startswith("access-control")]
            assert "server" not in got


def test_decisions_reach_the_run(
    federation: Callable[..., Federation], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    server = federation(rounds=3, server=PAGE)
    exported = threading.Event()

    def export() -> Path:
        assert exported.wait(20)
        return tmp_path / "versions" / "0"

    with page_of(server, export) as page:
        server.transport().join(join_request("a"))
        with page.events() as events:
            next(events)
            assert page.act("pause").json() == {"done": "paused: no round opens"}
            assert next(events)[1]["phase"] == "paused"
        again = page.act("pause")
        assert (again.status_code, again.text) == (409, "the run is paused already\n")
        assert page.act("resume").json() == {"done": "resumed"}
        assert page.act("extend", rounds=2).json() == {"done": "the run has 5 rounds"}
        assert page.act("exclude", client="a").json() == {"done": "a is excluded"}
        wait_until(lambda: [c["state"] for c in page.run()["clients"]] == ["excluded"], 10)
        assert page.act("include", client="a").status_code == 200
        assert page.act("include", client="nobody").status_code == 409
        assert page.act("end").json() == {"done": "the run ends after round 1"}
        assert page.act("export").status_code == 200
        assert "an export is being made" in page.act("export").text
        exported.set()
        wait_until(lambda: any("exported: " in e["text"] for e in page.run()["log"]), 10)
        texts = [line["text"] for line in page.run()["log"]]
        for text in ("is paused", "is resumed", "a is excluded", "a is included again", "to end"):
            assert any(text in line for line in texts), text


@pytest.mark.parametrize("name", ["pause", "end", "export", "nothing"])
@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", "Basic {}", "{}", "Bearer {}x"])
def test_nobody_acts_without_the_token(name: str, given: str) -> None:
    done: list[str] = []
    actions = {"pause": Action(lambda: done.append("x") or "")}  # type: ignore[func-returns-value]
    with served(Shown(empty()), actions=actions) as page:
        headers = {"Authorization": given.format(page.token)} if given else {}
        for more in ("", f"?token={page.token}"):
            answer = page.http.post(f"api/actions/{name}{more}", json={}, headers=headers)
            assert answer.status_code == 401
        assert not done


def test_the_cookie_lets_read_and_not_act() -> None:
    access = Access.of(False, ())
    done: list[str] = []
    actions = {"pause": Action(lambda: done.append("x") or "")}  # type: ignore[func-returns-value]
    with served(Shown(empty()), access, actions) as page:
        for path in ("", "api/run", "api/events", "api/page"):
            assert page.http.get(path).status_code == 401
            assert page.http.get(path, headers={"Cookie": "featherfed=x"}).status_code == 401
        assert page.http.get("?token=wrong").status_code == 401
        answer = page.http.get(f"?token={access.token}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert access.token not in cookie
        assert page.http.get("").status_code == 200  # the client keeps the cookie
        assert page.http.get("api/run").status_code == 200
        assert page.http.post("api/actions/pause", json={}).status_code == 401
        assert not done
        page.http.cookies.clear()
        bearer = {"Authorization": f"Bearer {access.token}"}
        assert page.http.get("api/run", headers=bearer).status_code == 200
        with page.events(f"api/events?token={access.token}") as events:  # of `featherfed watch`
            assert next(events)[0] == "run"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True), ("localhost", True), ("LOCALHOST:1234", True), ("[::1]:80", True),
        ("localhost.", True), ("page.example", True), ("evil.example", False), ("", False),
        ("127.0.0.1.evil.example", False), ("localhost.evil.example", False), ("[::1", False),
        ("192.168.0.1", False), ("localhost:80:90", False), ("0.0.0.0", False), ("127.1", False),
    ],
)  # fmt: skip
def test_only_names_of_the_page_are_answered(host: str, allowed: bool) -> None:
    """An attacker's name that leads here (DNS rebinding) is not answered, whatever it asks."""
    access = Access.of(True, ["page.example"])
    assert access.knows_host(host, "127.0.0.1") is allowed
    with served(Shown(empty()), access) as page:
        for method, path in (("GET", ""), ("GET", "api/run"), ("POST", "api/actions/pause")):
            answer = page.http.request(method, path, headers={"Host": host})
            assert (answer.status_code == 403) is not allowed


def test_a_request_with_two_hosts_is_refused() -> None:
    with served(Shown(empty())) as page:
        port = int(page.url.rsplit(":")[-1].strip("/"))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /api/run HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n")
            assert connection.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "https://127.0.0.1:{}", "x"]
)
def test_another_page_cannot_act_through_a_browser(origin: str) -> None:
    """Not even if it knew the token."""
    done: list[str] = []
    actions = {"pause": Action(lambda: done.append("x") or "")}  # type: ignore[func-returns-value]
    with served(Shown(empty()), actions=actions) as page:
        port = page.url.rsplit(":")[-1].strip("/")
        headers = {"Authorization": f"Bearer {page.token}", "Origin": origin.format(port)}
        answer = page.http.post("api/actions/pause", json={}, headers=headers)
        assert answer.status_code == 403
        assert not done
        headers["Origin"] = page.url.strip("/")
        assert page.http.post("api/actions/pause", json={}, headers=headers).status_code == 200
        assert done == ["x"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"rounds": 1}', "application/json; charset=utf-8", 200),
        (b'{"rounds": 1}', "text/plain", 415),
        (b'{"rounds": 1}', "application/x-www-form-urlencoded", 415),
        (b'{"rounds": 1}' + b" " * 5000, "application/json", 413),
        (b"x" * 50_000_000, "application/json", 413),
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[" * 4000, "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"{}", "application/json", 400),
        (b'{"rounds": true}', "application/json", 400),
        (b'{"rounds": 1.5}', "application/json", 400),
        (b'{"rounds": "1"}', "application/json", 400),
        (b'{"rounds": 1, "x": 2}', "application/json", 400),
        (b'{"rounds": ' + b"9" * 4000 + b"}", "application/json", 400),
    ],
)
def test_bodies_are_small_json_of_the_right_form(content: bytes, kind: str, status: int) -> None:
    done: list[int] = []

    def extend(rounds: int) -> str:
        done.append(rounds)
        return "done"

    with served(Shown(empty()), actions={"extend": Action(extend, {"rounds": int})}) as page:
        headers = {"Authorization": f"Bearer {page.token}", "Content-Type": kind}
        try:
            answer = page.http.post("api/actions/extend", content=content, headers=headers)
        except httpx.WriteError:  # it did not read what is too large
            assert status == 413
        else:
            assert answer.status_code == status
        assert done == ([1] if status == 200 else [])
        assert page.run()["run"] == "test"


def test_why_an_action_is_not_done() -> None:
    def now(error: Exception) -> Callable[[], str]:
        def work() -> str:
            raise error

        return work

    actions = {
        "later": Action(now(NotNow("not now"))),
        "full": Action(now(CannotStore("the disk is full"))),
        "bug": Action(now(RuntimeError("a secret"))),
    }
    with served(Shown(empty()), actions=actions) as page:
        assert (page.act("later").status_code, page.act("later").text) == (409, "not now\n")
        assert page.act("full").status_code == 503
        assert (page.act("bug").status_code, "secret" in page.act("bug").text) == (500, False)
        assert page.act("nothing").status_code == 404
        assert page.http.get("api/actions/later").status_code == 405
        assert page.http.put("api/run").status_code == 405
        assert page.http.get("../../etc/passwd").status_code == 404


def test_texts_of_others_are_never_markup(federation: Callable[..., Federation]) -> None:
    """A client's name cannot be that; older servers took any, and log lines may hold anything."""
    server = federation(rounds=1, server=PAGE)
    row = {
        "name": SCRIPT, "state": SCRIPT, "heard_ago": 1.0, "examples": 1, "seconds": None,
        "runtime": SCRIPT, "temperature": None, "battery": None, "score": None,
    }  # fmt: skip
    refusal = {"time": SCRIPT, "client": SCRIPT, "reason": SCRIPT, "text": SCRIPT}
    hostile = empty(
        SCRIPT, phase=SCRIPT, join=SCRIPT, clients=[row], refusals=[refusal],
        log=[{"time": SCRIPT, "level": SCRIPT, "text": SCRIPT}],
    )  # fmt: skip
    metrics = collect(server.store, server.settings, TASK, MANIFEST, FACTS)

    class Hostile(Shown):
        def sections(self, snapshot: Any) -> dict[str, str]:
            return RunPage.of(metrics).sections(snapshot)

    with served(Hostile(hostile)) as page, page.events("api/page") as changes:
        parts = "".join(next(changes)[1].values())
        whole = page.http.get("").text
        assert "&lt;script&gt;alert(1)" in parts
        for text in (parts, whole):
            assert SCRIPT not in text
            assert "<script>alert" not in text


def test_what_is_sent_is_made_once_for_all_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "REFRESH_SECONDS", 60.0)
    source = Shown(empty())
    made = 0
    sections = source.sections

    def counted(snapshot: Any) -> dict[str, str]:
        nonlocal made
        made += 1
        return sections(snapshot)

    source.sections = counted  # type: ignore[method-assign]
    with served(source) as page:
        page.run()
        asked, begin = source.made, time.monotonic()
        for _ in range(20):
            page.run()
        most = 1 + 2 * (time.monotonic() - begin)
        assert source.made <= asked + most, "not once for each that reads"
        time.sleep(1.2)
        asked = source.made
        time.sleep(1.2)
        assert source.made == asked, "nobody watches"
        threads, got = [], []

        def watch() -> None:
            with page.events("api/page") as changes:
                for _, parts in changes:
                    if parts and "second" in parts.get("header", ""):
                        got.append(parts)
                        return

        threads = [threading.Thread(target=watch) for _ in range(10)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        before = made
        source.now = empty("second")
        for thread in threads:
            thread.join(20)
        assert len(got) == 10
        assert made <= before + 1
        assert all(parts.keys() == {"header"} for parts in got), "only what changed"


def test_a_page_is_new_where_only_the_json_was_watched_before() -> None:
    source = Shown(empty("first"))
    with served(source) as page, page.events() as events:
        assert "<h1>first" in page.http.get("").text
        time.sleep(0.6)
        source.now = empty("second")
        while next(events)[1]["run"] != "second":
            pass
        assert "<h1>second" in page.http.get("").text
        with page.events("api/page") as changes:
            assert "second" in next(changes)[1]["header"]


def test_who_asks_and_goes_away_makes_no_more_work() -> None:
    source, going_on, most = Shown(empty()), 0, 0
    original = source.snapshot

    def slow() -> Any:
        nonlocal going_on, most
        going_on += 1
        most = max(most, going_on)
        time.sleep(0.3)
        going_on -= 1
        return original()

    source.snapshot = slow  # type: ignore[method-assign]
    with served(source) as page:
        port = int(page.url.rsplit(":")[-1].strip("/"))
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"GET /api/run HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(1.0)
        assert page.run()["run"] == "test"
        assert most == 1
        assert source.made <= 4


def test_there_are_only_so_many_watchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MOST_WATCHERS", 3)
    with served(Shown(empty())) as page:
        streams = [page.events(path) for path in ("api/events", "api/page", "api/events")]
        events = [each.__enter__() for each in streams]
        assert [next(each)[0] for each in events] == ["run", "sections", "run"]
        answer = page.http.get("api/events")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert page.http.get("api/run").status_code == 200
        for each in streams:
            each.__exit__(None, None, None)

        def free() -> bool:
            with page.http.stream("GET", "api/page") as again:
                return again.status_code == 200

        wait_until(free, 10)


def test_who_reads_slowly_gets_the_newest_and_who_does_not_read_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "STALL_SECONDS", 1.0)
    monkeypatch.setattr(feed, "SHORTEST_SECONDS", 0.02)
    monkeypatch.setattr(feed, "REFRESH_SECONDS", 0.0)
    source = Shown(empty(log=[{"time": "", "level": "INFO", "text": "x" * 2_000_000}]))
    with served(source) as page:
        port = int(page.url.rsplit(":")[-1].strip("/"))
        with socket.create_connection(("127.0.0.1", port)) as sleepy, page.events() as events:
            sleepy.sendall(b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            begin = time.monotonic()
            for number in range(30):
                source.now = empty(f"run-{number}", log=source.now["log"])
                next(events)
            assert time.monotonic() - begin < 20, "nobody waits for who does not read"
            time.sleep(2.5)
            received = 0
            sleepy.settimeout(10)
            while piece := sleepy.recv(2**20):
                received += len(piece)
            assert received < 20_000_000, "dropped, and little was kept for it"


def test_a_failure_of_what_is_shown_ends_no_page(caplog: pytest.LogCaptureFixture) -> None:
    source = Shown(empty())
    with served(source) as page, page.events() as events:
        next(events)
        good = source.snapshot

        def fails() -> Any:
            raise ServerError("damaged")

        source.snapshot = fails  # type: ignore[method-assign]
        time.sleep(1.5)
        assert page.run()["run"] == "test"
        source.snapshot = good  # type: ignore[method-assign]
        source.now = empty("again")
        assert next(events)[1]["run"] == "again"
    assert caplog.text.count("the live page shows what was before") == 1


def test_a_page_that_has_nothing_to_show_says_so() -> None:
    class Broken(Shown):
        def snapshot(self) -> Any:
            raise ServerError("damaged")

    with served(Broken(empty())) as page:
        assert page.http.get("api/run").status_code == 503
        assert page.http.get("").status_code == 503


def test_the_end_of_the_page_ends_all_streams() -> None:
    with served(Shown(empty())) as page:
        with page.http.stream("GET", "api/events") as answer:
            lines = answer.iter_lines()
            next(lines)
            url = page.url
            begin = time.monotonic()
            ended = threading.Event()

            def read() -> None:
                for _ in lines:
                    pass
                ended.set()

            threading.Thread(target=read, daemon=True).start()
            page.end()
            assert ended.wait(5)
            assert time.monotonic() - begin < 5
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


def test_token_and_address_are_there_while_the_page_is(
    federation: Callable[..., Federation],
) -> None:
    server = federation(rounds=1, server=PAGE)
    folder = Path(server.settings.output)
    with page_of(server) as page:
        first = page.token
        assert len(first) >= 40
        assert stat.S_IMODE((folder / TOKEN_FILE).stat().st_mode) == 0o600
    assert not (folder / TOKEN_FILE).exists()
    assert not (folder / ADDRESS_FILE).exists()
    (folder / TOKEN_FILE).write_text("old")  # of a server that was killed, readable for all
    with page_of(server) as page:
        assert page.token not in (first, "old")
        assert stat.S_IMODE((folder / TOKEN_FILE).stat().st_mode) == 0o600


def test_an_address_that_is_taken_is_said_before_the_start(tmp_path: Path) -> None:
    with PageSocketOf("127.0.0.1:0") as taken:
        taken.socket.listen()
        address = f"127.0.0.1:{taken.port}"
        with pytest.raises(ServerError, match=r"cannot serve the live page at .* choose another"):
            LivePage(settings(tmp_path, server={**PAGE, "page": address}))
    with pytest.raises(ServerError, match=r"cannot serve the live page at no.such.host.invalid:1"):
        PageSocket("no.such.host.invalid:1")


class PageSocketOf:
    def __init__(self, address: str) -> None:
        self.taken = PageSocket(address)

    def __enter__(self) -> PageSocket:
        return self.taken

    def __exit__(self, *exc: object) -> None:
        self.taken.close()


def test_settings_of_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = settings(tmp_path)
    assert serve_settings(plain, None, None, None, False).server.page is None
    local = serve_settings(plain, None, None, None, False, "127.0.0.1:8780")
    assert local.server.page == "127.0.0.1:8780"
    assert local.fingerprint == plain.fingerprint
    with pytest.raises(ServerError, match=r"--page '8780': use HOST:PORT"):
        serve_settings(plain, None, None, None, False, "8780")
    with pytest.raises(ServerError, match=r"others can reach a live page at 0.0.0.0:1"):
        serve_settings(plain, None, None, None, False, "0.0.0.0:1")
    assert serve_settings(plain, None, None, None, True, "0.0.0.0:1").server.page == "0.0.0.0:1"
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "uvicorn" else found(name)
    )
    with pytest.raises(ModuleNotFoundError, match="uvicorn is not installed") as raised:
        check_page(local)
    assert raised.value.name == "uvicorn"
    check_page(plain)


def test_a_page_for_others_is_encrypted(tmp_path: Path) -> None:
    Authority(tmp_path / "certs").create(["127.0.0.1", "localhost"], 10, 5)
    keys = Keys(tmp_path / "certs" / "server.pem", tmp_path / "certs" / "server-key.pem")
    access = Access.of(False, ())
    with served(Shown(empty()), access, keys=keys) as page:
        assert page.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=tmp_path / "certs" / "ca.pem")
        with httpx.Client(base_url=page.url, verify=trusted) as client:
            answer = client.get(f"?token={access.token}")
            assert "Secure" in answer.headers["set-cookie"]
            assert client.get("api/run").json()["run"] == "test"
        with pytest.raises(httpx.HTTPError):
            httpx.get(page.url.replace("https", "http"))
