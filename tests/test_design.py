"""The pictures of docs/design.md are what the code does."""

from __future__ import annotations

import re

from support import rooms, traces

DESIGN = (rooms.ROOT / "docs" / "design.md").read_text("utf-8")


def test_the_picture_of_the_rooms_is_made_from_their_imports() -> None:
    assert f"```mermaid\n{rooms.diagram()}\n```" in DESIGN


def test_a_graph_is_drawn_without_the_arrows_that_follow_from_others() -> None:
    whole = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}}
    assert rooms.reduced(whole) == {"a": {"b"}, "b": {"c"}, "c": {"d"}}


def test_an_update_and_a_broadcast_go_through_the_rooms_as_drawn() -> None:
    for picture in traces.diagrams():
        assert f"```mermaid\n{picture}\n```" in DESIGN


def tree() -> list[str]:
    """Return the paths in the tree, folders with a slash at the end."""
    text = DESIGN.split("## The house")[1].split("```")[1]
    paths: list[str] = []
    for line in text.strip().splitlines():
        found = re.fullmatch(r"(  )?(\S+) {2,}[A-Z].*\.", line)
        assert found, f"not a name and a sentence: {line!r}"
        top = [path for path in paths if path.count("/") == 1 and path.endswith("/")]
        paths.append((top[-1] if found[1] else "") + found[2])
    return paths


def test_the_tree_names_every_folder_and_the_files_beside_sub_folders() -> None:
    listed = tree()
    assert len(listed) == len(set(listed))
    assert all((rooms.ROOT / path).exists() for path in listed)
    folders = {f"{path.parent.name}/" for path in rooms.ROOT.glob("*/*.py")} | {
        "docs/",
        "deploy/",
        "src/",
    }
    assert {path for path in listed if path.count("/") == 1 and path.endswith("/")} == folders
    for folder in ("compression/", "server/"):
        beside = {rooms.relative(path) for path in (rooms.ROOT / folder).glob("*.py")}
        inside = {
            f"{rooms.relative(path.parent)}/" for path in (rooms.ROOT / folder).glob("*/*.py")
        }
        assert {p for p in listed if p.startswith(folder)} - {folder} == beside | inside
