"""The reference pages are those of the code, and name all of it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import featherfed
from featherfed.proto import federation_pb2 as pb
from featherfed.server.settings.section import Section
from featherfed.server.settings.settings import Settings

ROOT = Path(__file__).parent.parent
RUN_FILE = (ROOT / "docs" / "run-file.md").read_text("utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")
PYTHON = (ROOT / "docs" / "python-api.md").read_text("utf-8")


def test_no_page_is_stale() -> None:
    script = ROOT / "docs" / "site" / "reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}run `make reference`"


def sections(section: type[Section]) -> Iterator[type[Section]]:
    """Yield a section and all inside of it."""
    yield section
    for field in section.model_fields.values():
        for inner in parts(field.annotation):
            if isinstance(inner, type) and issubclass(inner, Section):
                yield from sections(inner)


def parts(annotation: Any) -> Iterator[Any]:
    """Yield a type, or those that it is made of."""
    inner = get_args(annotation)
    if not inner:
        yield annotation
    for part in inner:
        yield from parts(part)


def test_each_key_of_a_run_file_has_a_sentence() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", RUN_FILE, re.MULTILINE)
    told = {key: meaning for key, _, _, meaning in rows}
    headings = set(re.findall(r"^## `\[+([\w.]+)\]+`$", RUN_FILE, re.MULTILINE))
    inner = {heading.rpartition(".")[2] for heading in headings}
    for section in sections(Settings):
        assert section.__doc__
        for key in section.model_fields:
            assert told.get(key) or key in inner, f"{section.__name__}.{key}"
    assert all(meaning.strip().endswith((".", ")")) for meaning in told.values())


def test_each_call_message_and_field_of_the_protocol_is_named() -> None:
    calls = pb.DESCRIPTOR.services_by_name["Federation"].methods_by_name
    assert set(re.findall(r"^\| `(\w+)` \| (?:\[|stream)", PROTOCOL, re.MULTILINE)) == set(calls)
    described = dict(
        (text.partition("\n")[0].strip(), text)
        for text in re.split(r"^### ", PROTOCOL, flags=re.MULTILINE)[1:]
    )
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        rows = re.findall(r"^\| `([\w.]+)` \| (\d+) \|", described[name], re.MULTILINE)
        found = {key.rpartition(".")[2]: int(number) for key, number in rows if "Kind." not in key}
        wanted = {field.name: field.number for field in message.fields}
        assert found == wanted, name
    for name, kinds in pb.DESCRIPTOR.enum_types_by_name.items():
        rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", described[name], re.MULTILINE)
        assert {key: int(number) for key, number in rows} == dict(
            kinds.values_by_name and {value.name: value.number for value in kinds.values}
        )


def test_each_public_name_is_in_the_python_reference() -> None:
    named = set(re.findall(r"^\.\. auto\w+:: featherfed\.(\w+)$", PYTHON, re.MULTILINE))
    assert named == set(featherfed.__all__)
