"""The live page in a real browser: it follows a run and its server's restart, and stays smooth."""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.coordinator import CODEC, DirectRun
from support.federation import Federation
from support.kills import free_port
from support.live_page import PAGE, Shown, empty, page_of, served

from featherfed.report.sections import RunPage

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("needs a Chromium on the path: apt install chromium", allow_module_level=True)
for package in ("playwright", "axe_playwright_python"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}: pip install 'featherfed[dev]'", allow_module_level=True)

NARROW = {"width": 390, "height": 844}
AWAY = "ERR_CONNECTION_REFUSED"
SMOOTH_MILLISECONDS = 34.0


class Tab:
    """A browser's page, and what its console said."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._note)

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def wait(self, expression: str, seconds: float = 30) -> None:
        """Wait until a JavaScript expression is true."""
        # Polled from here: the page's own policy forbids to evaluate text inside of it.
        for _ in range(int(seconds * 10)):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{expression} stays false: {self.page.inner_text('body')[:500]}")

    def has(self, part: str, text: str, seconds: float = 30) -> None:
        """Wait until a part of the page holds a text."""
        self.wait(f"document.getElementById({part!r}).textContent.includes({text!r})", seconds)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield Tab(page)
    page.close()


def overflow(page: Any) -> int:
    """Return how many pixels the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


def test_a_page_follows_a_run_and_a_restart_of_its_server(
    federation: Callable[..., Federation], tab: Tab
) -> None:
    where = {"page": f"127.0.0.1:{free_port()}", "port": free_port()}
    changes = {"rounds": 4, "server": {**PAGE, **where}}
    first = federation(**changes)
    with page_of(first) as page:
        tab.page.goto(page.url)
        tab.has("connection", "Connected")
        tab.has("header", "3 more clients wanted")
        tab.page.click("summary")
        tab.page.fill("#token", page.token)
        tab.page.click("button[data-action=pause]")
        tab.has("said", "paused")
        tab.has("header", "Paused")
        assert tab.page.input_value("#token") == page.token, "what one types stays"
        assert not tab.errors
    first.close()
    tab.has("connection", "Not connected")
    assert tab.page.evaluate("document.documentElement.dataset.connected") == "false"
    again = federation(**changes)
    with page_of(again) as page:
        tab.has("connection", "Connected")
        tab.has("header", "Paused")
        tab.page.click("button[data-action=resume]")
        tab.has("said", "token is missing or wrong")
        tab.page.fill("#token", page.token)
        tab.page.click("button[data-action=resume]")
        tab.has("said", "resumed")
        clients = [again.client(name, value) for value, name in enumerate("abc", 1)]
        thread = threading.Thread(target=again.run_clients, args=clients)
        thread.start()
        tab.has("header", "Finished")
        tab.has("versions", "4")
        thread.join()
        assert not [text for text in tab.errors if AWAY not in text and "401" not in text]


class Crowd(Shown):
    """A run of 500 clients whose states and figures change with every snapshot."""

    def __init__(self, metrics: Any, clients: int) -> None:
        super().__init__(empty())
        self._page = RunPage.of(metrics)
        self._clients = clients

    def snapshot(self) -> Any:
        self.made += 1
        states = ("training", "reported", "present", "late", "lost")
        clients = [
            {
                "name": f"client-{number:03}", "state": states[(number + self.made) % 5],
                "heard_ago": float(self.made), "examples": 100, "seconds": self.made / 10,
                "runtime": "litert", "temperature": None, "battery": None, "score": 0.5,
            }
            for number in range(self._clients)
        ]  # fmt: skip
        log = [{"time": "", "level": "INFO", "text": f"line {self.made + n}"} for n in range(200)]
        return empty(clients=clients, log=log, phase="training", deadline_in=90.0)

    def sections(self, snapshot: Any) -> dict[str, str]:
        return self._page.sections(snapshot)


@pytest.fixture
def crowd(direct_run: Callable[..., DirectRun]) -> Crowd:
    one = direct_run(rounds=9, clients=3, compression=CODEC)
    small = [np.full(w.shape, 0.01, np.float32) for w in one.coordinator.newest_weights()]
    for _ in range(5):
        one.step(dict.fromkeys("abc", small))
    return Crowd(one.metrics(), 500)


FRAMES = """milliseconds => new Promise((done) => {
  const found = [];
  const begin = performance.now();
  let last = begin;
  requestAnimationFrame(function next(now) {
    found.push(now - last);
    last = now;
    if (now - begin < milliseconds) requestAnimationFrame(next);
    else done(found.slice(1));
  });
})"""


@pytest.mark.slow  # a measurement, with many frames
def test_500_clients_stay_smooth(crowd: Crowd, tab: Tab) -> None:
    with served(crowd) as page:
        tab.page.goto(page.url)
        tab.has("connection", "Connected")
        tab.has("clients", "client-499")
        made = crowd.made
        frames = tab.page.evaluate(FRAMES, 6000)
        assert crowd.made >= made + 3, "parts were replaced meanwhile"
        median, longest = statistics.median(frames), max(frames)
        print(f"{len(frames)} frames, median {median:.1f} ms, longest {longest:.1f} ms")
        assert median < SMOOTH_MILLISECONDS
        assert not tab.errors


def test_scrolling_and_open_parts_stay_while_parts_are_replaced(crowd: Crowd, tab: Tab) -> None:
    with served(crowd) as page:
        tab.page.goto(page.url)
        tab.has("clients", "client-499")
        tab.page.click("summary")
        box = "document.querySelector('#clients .scroll')"
        tab.page.evaluate(f"{box}.scrollTop = 700")
        tab.page.evaluate("window.scrollTo(0, 600)")
        tab.page.evaluate(f"{box}.focus({{preventScroll: true}})")
        made = crowd.made
        while crowd.made < made + 3:
            tab.page.wait_for_timeout(100)
        assert tab.page.evaluate(f"{box}.scrollTop") == 700
        assert tab.page.evaluate("window.scrollY") == 600
        assert tab.page.evaluate(f"document.activeElement === {box}")
        assert tab.page.evaluate("document.querySelector('details').open")


def test_texts_of_others_stay_texts(crowd: Crowd, tab: Tab) -> None:
    hostile = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
    original = crowd.snapshot

    def snapshot() -> Any:
        made = original()
        made["clients"][0]["name"] = made["join"] = hostile
        made["log"][0]["text"] = hostile
        return made

    crowd.snapshot = snapshot  # type: ignore[method-assign]
    with served(crowd) as page:
        tab.page.goto(page.url)
        tab.has("log", hostile)
        tab.has("clients", hostile)
        tab.page.wait_for_timeout(1500)
        assert tab.page.evaluate("window.hacked") is None
        # Even a hole in the escaping would run nothing: the page's policy allows its script alone.
        tab.page.evaluate(f"document.getElementById('said').innerHTML = {hostile!r}")
        tab.page.wait_for_timeout(500)
        assert tab.page.evaluate("window.hacked") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_fits_and_is_accessible(crowd: Crowd, browser: Any, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    crowd._clients = 20  # axe looks at each
    context = browser.new_context(viewport=NARROW, color_scheme=scheme, reduced_motion="reduce")
    try:
        tab = Tab(context.new_page())
        with served(crowd) as page:
            tab.page.goto(page.url)
            tab.has("connection", "Connected")
            tab.has("clients", "client-019")
            tab.page.click("summary")
            assert overflow(tab.page) <= 0
            found = Axe().run(tab.page).response["violations"]
            serious = [each for each in found if each["impact"] in ("serious", "critical")]
            told = [(each["id"], each["nodes"][0]["html"][:200]) for each in serious]
            assert not told
            assert not tab.errors
        tab.has("connection", "Not connected")
        assert overflow(tab.page) <= 0
    finally:
        context.close()
