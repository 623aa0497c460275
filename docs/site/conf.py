"""Sphinx's configuration of the documentation's site: `make docs` builds it from docs/*.md.

Files at the root of the project, such as SECURITY.md, are pages of the site too: ROOT_PAGES.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

project = PROJECT["name"]
version = release = PROJECT["version"]
author = "featherfed's authors"
language = "en"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "site"]
html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["static"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other packages have no page here
myst_enable_extensions = ["attrs_inline", "attrs_block", "html_image"]
myst_heading_anchors = 4
suppress_warnings = ["myst.strikethrough"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}

ROOT_PAGES = {
    "threat-model": "SECURITY.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "examples": "examples/README.md",
}
"""Page of the site -> the file that it shows; on its own the page is a link to the file."""
PAGES = {file: f"{page}.md" for page, file in ROOT_PAGES.items()} | {"README.md": "index.md"}
EXAMPLES = sorted(path.parent.name for path in (ROOT / "examples").glob("*/README.md"))
"""Their own pages are sections of the page of all examples."""
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]*)(#[^)\s]*)?\)")


def read_page(_app: Any, page: str, source: list[str]) -> None:
    """Put a root file's text into its page, and turn links to files into links to pages."""
    if page == "examples":
        source[0] = "\n\n".join([_text(ROOT / ROOT_PAGES[page]), *map(_section, EXAMPLES)])
    else:
        source[0] = _text(ROOT / ROOT_PAGES.get(page, f"docs/{page}.md"))


def _section(example: str) -> str:
    """Return the text of an example's page as a section with a name."""
    text = _text(ROOT / "examples" / example / "README.md")
    return f"(example-{example})=\n{re.sub('^#', '##', text, flags=re.MULTILINE)}"


def _text(file: Path) -> str:
    """Return a file's text with links as they are seen from docs/."""
    text = re.sub(r"^```mermaid$", "```text", file.read_text("utf-8"), flags=re.MULTILINE)
    return _LINK.sub(lambda found: f"]({_target(file, found[1], found[2] or '')})", text)


def _target(file: Path, link: str, anchor: str) -> str:
    """Return a link of `file` as it is seen from docs/: to a page where there is one."""
    path = (file.parent / link).resolve()
    inside = path.relative_to(ROOT).as_posix()
    if inside in PAGES:
        return PAGES[inside] + anchor
    if inside.startswith("examples/") and (path.is_dir() or path.name == "README.md"):
        return f"#example-{inside.split('/')[1]}"
    if path.is_dir():  # a room of the code
        return PAGES["examples/README.md"] if inside == "examples" else "design.md"
    inside += anchor
    return inside.removeprefix("docs/") if inside.startswith("docs/") else f"../{inside}"


def plain_names(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]
) -> None:
    """Let `name` in a docstring be code, as in Markdown, and a star be a star."""
    text = inspect.cleandoc("\n".join(lines))
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", text)
    parts = re.split(r"(``.*?``)", text, flags=re.DOTALL)  # every other one is code
    parts[::2] = [part.replace("*", "\\*") for part in parts[::2]]
    lines[:] = "".join(parts).splitlines()


def setup(app: Any) -> None:
    """Connect the above."""
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", plain_names)
