"""The site builds without a warning, its links lead somewhere, and no page loads from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("sphinx", reason="needs featherfed[docs]")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Tags that make a browser load something, and the attribute that says what."""


@dataclass
class Page(HTMLParser):
    """What a page of the site says of itself: names inside of it, links, and what it loads."""

    names: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.names |= {value for key in ("id", "name") if (value := values.get(key))}
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        if tag in LOADED and values.get(LOADED[tag]):
            self.loads.append(str(values[LOADED[tag]]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [
            sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q",
            "-d", folder / "doctrees", "-c", DOCS / "site", DOCS, folder / "html",
        ],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Each page of the site, parsed."""
    found = {}
    for path in site.rglob("*.html"):
        found[path] = Page()
        found[path].feed(path.read_text("utf-8"))
    return found


def test_each_page_of_the_documentation_is_there(pages: dict[Path, Page]) -> None:
    built = {path.stem for path in pages}
    assert {path.stem for path in DOCS.glob("*.md")} <= built
    index = next(page for path, page in pages.items() if path.name == "index.html")
    linked = {urlsplit(link).path for link in index.links}
    missing = {path.stem for path in DOCS.glob("*.md")} - {Path(link).stem for link in linked}
    assert missing <= {"index"}, "every page is in the table of contents"


def test_all_links_and_anchors_lead_somewhere(pages: dict[Path, Page]) -> None:
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.name}: {link}"
            anchor = unquote(parts.fragment)
            if anchor and target in pages:
                assert anchor in pages[target].names, f"{path.name}: {link}"
            checked += 1
    assert checked > 1000


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for target in page.loads:
            parts = urlsplit(target)
            assert parts.scheme in ("", "data"), f"{path.name} loads {target}"
            assert not parts.netloc, f"{path.name} loads {target}"
            if not parts.scheme and parts.path:
                assert (path.parent / unquote(parts.path)).resolve().is_file(), target
    for path in site.rglob("*.css"):
        text = path.read_text("utf-8")
        loaded = re.findall(r"url\(\s*['\"]?([^)'\"]+)", text) + re.findall(
            r"@import\s+['\"]([^'\"]+)", text
        )
        assert not [target for target in loaded if re.match(r"(https?:)?//", target)], path.name


def test_a_link_out_of_the_pages_is_noticed(tmp_path: Path) -> None:
    page = Page()
    page.feed('<a href="x.html#y"></a><script src="https://example.org/a.js"></script><p id="z">')
    assert page.links == ["x.html#y"]
    assert page.loads == ["https://example.org/a.js"]
    assert page.names == {"z"}
