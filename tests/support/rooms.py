"""The rooms of the project and which of them import which, read from the imports.

`python tests/support/rooms.py` prints the picture of the server's rooms in docs/design.md.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE_ROOMS = {"server/errors.py", "server/loop.py", "compression/registry.py"}
"""Files beside the sub-folders that are rooms of their own."""


def modules(folder: str) -> Iterator[Path]:
    """Yield the Python files of a folder, without generated ones."""
    return (p for p in sorted((ROOT / folder).glob("**/*.py")) if "_pb2" not in p.name)


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def relative(path: Path) -> str:
    """Return a file's path inside the project."""
    return path.relative_to(ROOT).as_posix()


def room_of(file: str) -> str:
    """Return the room of a file, by its path inside the project."""
    if file in FILE_ROOMS:
        return file.removesuffix(".py")
    return file.rpartition("/")[0]


def file_of(name: str) -> str | None:
    """Return the file that defines an imported name of ours, None for other packages' names."""
    first, *parts = name.split(".")
    while first == "featherfed" and parts:
        file = "/".join(parts) + ".py"
        if (ROOT / file).exists():
            return file
        parts.pop()
    return None


def arrows(folders: Iterable[str]) -> dict[str, set[str]]:
    """Return room -> the other rooms that its files import, for the rooms of some folders."""
    found: dict[str, set[str]] = {}
    for folder in folders:
        for path in modules(folder):
            room = room_of(relative(path))
            files = {file for name in imports(path) if (file := file_of(name))}
            found.setdefault(room, set()).update(room_of(file) for file in files)
    return {room: targets - {room} for room, targets in found.items()}


def reduced(graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return a graph without circles and without the arrows that follow from others."""
    below: dict[str, set[str]] = {}
    for room in TopologicalSorter(graph).static_order():
        targets = graph.get(room, set())
        below[room] = targets.union(*(below[target] for target in targets))
    return {
        room: {t for t in targets if not any(t in below[other] for other in targets)}
        for room, targets in graph.items()
    }


def diagram() -> str:
    """Return the server's rooms as a Mermaid flowchart, each arrow from importer to imported."""
    graph = {
        room: {target for target in targets if target.startswith("server/")}
        for room, targets in arrows(["server"]).items()
    }
    files = sorted(f for f in FILE_ROOMS if f.startswith("server/"))
    lines = [f'    {_node(room_of(f))}["{f.removeprefix("server/")}"]' for f in files]
    shown = reduced(graph)
    order = TopologicalSorter({room: sorted(graph[room]) for room in sorted(graph)})
    for room in reversed([*order.static_order()]):
        lines += [f"    {_node(room)} --> {_node(target)}" for target in sorted(shown[room])]
    return "\n".join(["flowchart TD", *lines])


def _node(room: str) -> str:
    return room.removeprefix("server/")


if __name__ == "__main__":
    print(diagram())
