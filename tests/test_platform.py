"""Machines that cannot train are told so before anything else."""

from __future__ import annotations

import platform

import pytest
from click.testing import CliRunner

from featherfed.cli.main import app
from featherfed.edge_client import platform as checked
from featherfed.edge_client.errors import ClientError
from featherfed.edge_client.platform import check_platform


@pytest.mark.parametrize(
    ("machine", "bits"), [("armv6l", 32), ("armv7l", 32), ("armv8l", 32), ("aarch64", 32)]
)
def test_32_bit_arm_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, machine: str, bits: int
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(checked, "_POINTER_BITS", bits)
    with pytest.raises(ClientError, match=rf"32-bit ARM \({machine}.*64-bit Raspberry Pi OS"):
        check_platform()


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "x86_64", "AMD64"])
def test_64_bits_are_welcome(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(checked, "_POINTER_BITS", 64)
    check_platform()


def test_join_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "armv7l")
    done = CliRunner().invoke(app, ["join", "127.0.0.1:1", "--data", "nowhere.npz"])
    assert done.exit_code == 1
    assert done.stderr.startswith("featherfed: this is 32-bit ARM (armv7l")
