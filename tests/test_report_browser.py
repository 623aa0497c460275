"""The run page in a real browser: on a phone and a desk, light and dark, as WCAG wants it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("playwright", reason="needs playwright: make dev")
pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python: make dev")

from axe_playwright_python.sync_playwright import Axe
from playwright import sync_api
from test_report import FORECAST, HOSTILE, metrics, of_task, pictures
from test_report_sections import snapshot

from featherfed.report.pictures import read_pictures
from featherfed.report.sections import RunPage, shell

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt install chromium (playwright's own is not used)"
)
PHONE, DESK = 390, 1280


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # In a container there are no rights for the sandbox; the pages are our own.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run of pictures, a live one, one with hostile names, and a forecast by clients."""
    folder = tmp_path_factory.mktemp("pages")
    np.savez(folder / "pictures.npz", **pictures())
    whole = metrics(5, 7)
    whole["final"]["confusion"] = (np.eye(10, dtype=int) * 30 + 2).tolist()
    for entry in whole["rounds"]:
        entry.update(opened="2026-11-28T08:10:00+00:00", asked=6)
        for number, client in enumerate(entry["clients"], 1):
            client["arrived"] = 15.0 * number
    hostile = metrics(2, 3)
    for entry in hostile["rounds"]:
        name = "<script>document.body.remove()</script>" + "x" * 200
        entry["clients"][0].update(client=name)
        entry["missing"] = [HOSTILE]
    made = {
        "finished": RunPage.of(whole, read_pictures(folder / "pictures.npz")).sections(),
        "live": RunPage.of(metrics(8, 2, final=False)).sections(snapshot(8)),
        "hostile": RunPage.of(hostile).sections(snapshot()),
        "forecast": RunPage.of(of_task(FORECAST, clients=8, rounds=15)).sections(),
        "empty": RunPage.of(metrics(0, 0, final=False)).sections(),
    }
    for name, parts in made.items():
        (folder / f"{name}.html").write_text(shell(name, parts), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a page: (file, width, color scheme) -> the page; fails if the console has an error."""
    contexts, said = [], []

    def open_(path: Path, width: int, scheme: str) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.extend(_foreign(request.url)))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert said == []


def _foreign(url: str) -> list[str]:
    return [] if url.startswith(("file:", "data:")) else [f"loads {url}"]


NAMES = ["finished", "live", "hostile", "forecast", "empty"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_violation_of_accessibility_rules(
    opened: Any, pages: dict[str, Path], name: str, scheme: str
) -> None:
    for width in (PHONE, DESK):
        page = opened(pages[name], width, scheme)
        assert _violations(page) == []


def _violations(page: Any) -> list[tuple[str, list[str]]]:
    """Return the rules that axe finds broken seriously, and where."""
    found = Axe().run(page).response
    assert "color-contrast" in {rule["id"] for rule in found["passes"] + found["violations"]}
    return [
        (rule["id"], [node["html"][:200] for node in rule["nodes"]])
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


def test_the_check_sees_what_is_hard_to_read(opened: Any, pages: dict[str, Path]) -> None:
    page = opened(pages["finished"], DESK, "light")
    page.evaluate("document.documentElement.style.setProperty('--muted', '#999')")
    assert [rule for rule, _ in _violations(page)] == ["color-contrast"]


@pytest.mark.parametrize("name", NAMES)
def test_a_phone_scrolls_the_page_down_only(opened: Any, pages: dict[str, Path], name: str) -> None:
    page = opened(pages[name], PHONE, "light")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE
    assert page.evaluate("document.body.scrollWidth") <= PHONE


@pytest.mark.parametrize("name", ["finished", "forecast"])
def test_no_text_is_smaller_than_11_pixels_on_a_phone(
    opened: Any, pages: dict[str, Path], name: str
) -> None:
    page = opened(pages[name], PHONE, "light")
    sizes = page.evaluate(
        """() => [...document.querySelectorAll('body *')]
            .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
            .filter(e => !['SCRIPT', 'STYLE', 'title', 'desc'].includes(e.tagName))
            .map(e => parseFloat(getComputedStyle(e).fontSize))"""
    )
    assert len(sizes) > 100
    assert min(sizes) >= 11
    # A text of 12 px is that high on the screen too: no chart is scaled.
    heights = page.evaluate(
        """() => [...document.querySelectorAll('.chart text')]
            .map(e => e.getBoundingClientRect().height)"""
    )
    assert min(heights) >= 11


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_labels_of_a_chart_do_not_cover_each_other(
    opened: Any, pages: dict[str, Path], width: int
) -> None:
    page = opened(pages["finished"], width, "light")
    covered = page.evaluate(
        """() => [...document.querySelectorAll('.chart')].flatMap(chart => {
            const boxes = [...chart.querySelectorAll('text:not(.end)')].map(
                e => [e.textContent, e.getBoundingClientRect()]);
            return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
                .filter(([b, q]) => p.left < q.right && q.left < p.right
                    && p.top + 3 < q.bottom && q.top + 3 < p.bottom)
                .map(([b]) => `${chart.querySelector('title').textContent}: ${a} / ${b}`));
        })"""
    )
    assert covered == []
    beyond = page.evaluate(
        """() => [...document.querySelectorAll('.chart text')]
            .filter(e => e.getBoundingClientRect().left < 0
                || e.getBoundingClientRect().right > innerWidth)
            .map(e => e.textContent)"""
    )
    assert beyond == []


def test_dark_is_dark_and_light_is_light(opened: Any, pages: dict[str, Path]) -> None:
    def brightness(scheme: str) -> dict[str, float]:
        page = opened(pages["finished"], DESK, scheme)
        colors = page.evaluate(
            """() => ({
                page: getComputedStyle(document.body).backgroundColor,
                card: getComputedStyle(document.querySelector('#curve')).backgroundColor,
                text: getComputedStyle(document.body).color,
                line: getComputedStyle(document.querySelector('.chart .line')).stroke,
                label: getComputedStyle(document.querySelector('.chart text')).fill,
            })"""
        )
        return {
            name: np.mean([float(n) for n in color[4:-1].split(",")[:3]])
            for name, color in colors.items()
        }

    dark, light = brightness("dark"), brightness("light")
    assert max(dark["page"], dark["card"]) < 50
    assert min(light["page"], light["card"]) > 240
    assert min(dark["text"], dark["label"], dark["line"]) > 140
    assert max(light["text"], light["label"], light["line"]) < 110


def test_the_keyboard_reaches_links_and_tables_and_shows_where_it_is(
    opened: Any, pages: dict[str, Path]
) -> None:
    page = opened(pages["finished"], DESK, "light")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => { const e = document.activeElement; const s = getComputedStyle(e);
                    return [e.tagName, s.outlineStyle, parseFloat(s.outlineWidth)]; }"""
            )
        )
    assert {"A", "DIV"} <= {tag for tag, _, _ in reached}
    assert all(style == "solid" and width >= 2 for tag, style, width in reached if tag != "BODY")


def test_links_lead_to_the_parts(opened: Any, pages: dict[str, Path]) -> None:
    page = opened(pages["finished"], PHONE, "light")
    page.click("nav a[href='#versions']")
    page.wait_for_function("scrollY > 1000")
    top = page.evaluate("document.querySelector('#versions').getBoundingClientRect().top")
    nav = page.evaluate("document.querySelector('nav').getBoundingClientRect().bottom")
    assert 0 <= nav <= top + 1, "the part's head is not below the links"


def test_a_script_in_a_name_does_not_run(opened: Any, pages: dict[str, Path]) -> None:
    page = opened(pages["hostile"], DESK, "light")
    assert "<script>document.body.remove()</script>" in page.inner_text("#clients")
