"""Finding the server on the local network: the choice, the announcement, and both for real."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import struct
import sys
import time
from collections.abc import Iterator

import pytest

from featherfed.api import join
from featherfed.api.announce import Announcement, is_local_only, label, reachable
from featherfed.cli import follow, main
from featherfed.edge_client import discovery
from featherfed.edge_client.discovery import AnnouncedServer, answers, browse, choose_server
from featherfed.edge_client.errors import ClientError

DIGITS = AnnouncedServer("digits", ("192.168.1.5:8765", "[fd00::5]:8765"))
PHOTOS = AnnouncedServer("photos", ("192.168.1.6:8765",))


def test_the_only_server_is_taken_at_the_first_address_that_answers() -> None:
    assert choose_server([DIGITS], 5, lambda address: True) == "192.168.1.5:8765"
    assert choose_server([DIGITS], 5, lambda address: address.startswith("[")) == "[fd00::5]:8765"


@pytest.mark.parametrize(
    ("offers", "reached", "says"),
    [
        ([], True, ["no server", "5 s", 'host = "0.0.0.0"', "HOST:PORT"]),
        ([DIGITS, PHOTOS], True, ["digits at 192.168.1.5:8765 or", "photos at", "HOST:PORT"]),
        ([DIGITS], False, ["digits", "nothing answers", "firewall", "HOST:PORT"]),
    ],
)
def test_without_a_choice_it_says_what_to_do(
    offers: list[AnnouncedServer], reached: bool, says: list[str]
) -> None:
    with pytest.raises(ClientError) as raised:
        choose_server(offers, 5, lambda address: reached)
    for part in says:
        assert part in str(raised.value)


def test_what_a_server_says_of_itself_is_escaped_and_cut() -> None:
    zeroconf = pytest.importorskip("zeroconf")
    service = discovery.SERVICE_TYPE
    info = zeroconf.ServiceInfo(
        service, f"x.{service}", addresses=[bytes([127, 0, 0, n]) for n in range(1, 100)],
        port=1, properties={"run": "photos at 10.0.0.1:1\n  digits\x1b[2J" + "y" * 100},
    )  # fmt: skip
    server = discovery._announced_server(info)
    assert server.run == r"photos at 10.0.0.1:1\n  digits\x1b[2J" + "y" * 31 + (
        "... (69 characters more)"
    )
    assert len(server.addresses) == discovery.MAX_SERVERS
    with pytest.raises(ClientError) as raised:
        choose_server([server, server], 5, lambda address: True)
    assert len(str(raised.value).split("\n")) == 3


def test_answers_knows_an_open_port() -> None:
    with listening() as port:
        assert answers(f"127.0.0.1:{port}")
    assert not answers(f"127.0.0.1:{port}")


def test_a_loopback_server_is_for_this_machine() -> None:
    assert is_local_only("127.0.0.1")
    assert is_local_only("localhost")
    assert is_local_only("[::1]")
    assert not is_local_only("0.0.0.0")
    assert not is_local_only("192.168.1.5")


def test_a_wildcard_stands_for_every_address_that_others_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = ["127.0.0.1", "192.168.1.5", "::1", "fe80::5", "fd00::5"]
    monkeypatch.setattr(
        "featherfed.api.announce.own_addresses", lambda: [ipaddress.ip_address(a) for a in own]
    )
    assert [str(a) for a in reachable("0.0.0.0")] == ["192.168.1.5"]
    assert [str(a) for a in reachable("::")] == ["192.168.1.5", "fd00::5"]
    assert [str(a) for a in reachable("10.0.0.7")] == ["10.0.0.7"]


def test_the_name_in_the_network_fits_and_tells_servers_apart() -> None:
    names = {label("r" * 64, "m" * 64, port) for port in (1, 65535)}
    assert len(names) == 2
    assert all(len(name) <= 63 for name in names)
    assert label("digits", "pi.local", 8765) == "digits-pi-8765"


def test_without_the_library_the_server_goes_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    announcement = Announcement("digits", "127.0.0.1", 8765)
    with caplog.at_level(logging.WARNING):
        announcement.start()
        announcement.close()
    assert "pip install zeroconf" in caplog.text
    with pytest.raises(ClientError, match="pip install zeroconf; or give the server's address"):
        discovery.find_server(0.1)


@pytest.fixture
def multicast() -> None:
    """Skip where a multicast packet does not come back on the loopback interface."""
    pytest.importorskip("zeroconf")
    group, here = socket.inet_aton("224.0.0.251"), socket.inet_aton("127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("", 0))
        receiver.settimeout(1)
        try:
            receiver.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4s", group, here)
            )
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
            receiver.sendto(b"x", ("224.0.0.251", receiver.getsockname()[1]))
            receiver.recv(1)
        except OSError as error:
            pytest.skip(f"no multicast on the loopback interface here: {error}")


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def announced(run: str, port: int) -> Iterator[None]:
    announcement = Announcement(run, "127.0.0.1", port)
    announcement.start()
    try:
        yield
    finally:
        announcement.close()


@pytest.mark.usefixtures("multicast")
def test_a_client_finds_the_server_that_announces_itself() -> None:
    with listening() as port:
        offer = AnnouncedServer("digits", (f"127.0.0.1:{port}",))
        with announced("digits", port):
            assert discovery.find_server(10, loopback_only=True) == offer.addresses[0]
        assert offer not in browse(1, loopback_only=True), "taken back"


@pytest.mark.usefixtures("multicast")
def test_two_servers_are_two_offers() -> None:
    with (
        listening() as one,
        listening() as two,
        announced("digits", one),
        announced("photos", two),
    ):
        until = time.monotonic() + 20
        while len(browse(5, loopback_only=True)) < 2:  # the second may be heard a little later
            assert time.monotonic() < until
        with pytest.raises(ClientError, match="several servers") as raised:
            discovery.find_server(10, loopback_only=True)
    assert f"digits at 127.0.0.1:{one}" in str(raised.value)
    assert f"photos at 127.0.0.1:{two}" in str(raised.value)


@pytest.mark.parametrize("command", ["join", "follow"])
def test_the_commands_look_for_the_server_if_they_are_given_none(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(discovery, "find_server", lambda: "10.0.0.7:8765")
    monkeypatch.setattr(join, "join_run", lambda options: seen.append(options.address))
    monkeypatch.setattr(follow, "follow_run", lambda address, *rest: seen.append(address))
    needed = {"join": ["--data", "photos"], "follow": ["--model-dir", "models"]}[command]
    for given in ([], ["10.0.0.8:1"]):
        main.app([command, *given, *needed], standalone_mode=False)
    assert seen == ["10.0.0.7:8765", "10.0.0.8:1"]
