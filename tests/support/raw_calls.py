"""Calls as bare HTTP/2 frames, for what no gRPC library sends: thousands that say nothing.

Opening a call costs the sender a hundred bytes, so one process can hold tens of thousands.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from featherfed.edge_client.credentials import SERVER_NAME

PER_CONNECTION = 1000
"""Calls on one connection; the server allows 1024."""
PER_SECOND = 1500
"""Calls begun in a second; gRPC itself turns away what more than 1000 calls wait in line."""

_DATA, _HEADERS, _SETTINGS, _PING = 0, 1, 4, 6
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
EMPTY_MESSAGE = bytes(5)


class RawConnection:
    """One HTTP/2 connection; its calls stay open until the server ends them or it is closed."""

    def __init__(self, address: str, proof: Path | None = None) -> None:
        """Connect; `proof`: the folder of an enrolled device, None for plaintext."""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), 10)
        self._headers = [(b":method", b"POST"), (b":authority", b"x"), (b"te", b"trailers")]
        self._headers += [(b":scheme", b"https" if proof else b"http")]
        self._headers += [(b"content-type", b"application/grpc")]
        if proof is not None:
            context = ssl.create_default_context(cafile=str(proof / "ca.pem"))
            context.load_cert_chain(proof / "client.pem", proof / "client-key.pem")
            context.set_alpn_protocols(["h2"])
            self._socket = context.wrap_socket(self._socket, server_hostname=SERVER_NAME)
            token = (proof / "token").read_text("utf-8").strip()
            self._headers.append((b"authorization", f"Bearer {token}".encode()))
        self.opened = 0
        self.ended = 0
        """Calls that the server has ended."""
        self.closed = False
        self._socket.settimeout(None)
        self._lock = threading.Lock()
        self._send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        threading.Thread(target=self._read, daemon=True).start()

    def open(self, paths: Sequence[str | bytes], message: bytes | None = None) -> None:
        """Begin a call of each path; with a message, it is sent and is the last."""
        out = bytearray()
        for path in paths:
            name = path if isinstance(path, bytes) else path.encode()
            stream = 2 * self.opened + 1
            self.opened += 1
            block = b"".join(_literal(*pair) for pair in [*self._headers, (b":path", name)])
            out += _frame(_HEADERS, _END_HEADERS, stream, block)
            if message is not None:
                out += _frame(_DATA, _END_STREAM, stream, message)
        self._send(bytes(out))

    def close(self) -> None:
        """Close the connection, and all its calls with it."""
        self.closed = True
        self._socket.close()

    def _send(self, data: bytes) -> None:
        with self._lock:
            self._socket.sendall(data)

    def _read(self) -> None:
        try:
            while head := self._exactly(9):
                size, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                data = self._exactly(size)
                if kind == _HEADERS and flags & _END_STREAM:
                    self.ended += 1
                if kind in (_SETTINGS, _PING) and not flags & _ACK:
                    self._send(_frame(kind, _ACK, 0, data if kind == _PING else b""))
        except OSError:
            pass
        self.closed = True

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                return b""
            data += piece
        return data


class RawCalls:
    """Calls of one peer over as many connections as they need."""

    def __init__(self, address: str, proof: Path | None = None) -> None:
        self._address, self._proof = address, proof
        self.connections: list[RawConnection] = []

    def open(self, path: str, count: int, message: bytes | None = None) -> None:
        """Begin `count` calls of a method."""
        for begin in range(0, count, PER_CONNECTION):
            self.connections.append(RawConnection(self._address, self._proof))
            paths = [path] * min(PER_CONNECTION, count - begin)
            for at in range(0, len(paths), 100):
                self.connections[-1].open(paths[at : at + 100], message)
                time.sleep(100 / PER_SECOND)

    def keep(self, path: str, count: int, end: threading.Event) -> None:
        """Begin calls of a method again and again until `end`, so that `count` are open."""
        while not end.wait(0.5):
            with suppress(OSError):  # the server may have closed a connection
                self.open(path, count - self.still_open)

    @property
    def still_open(self) -> int:
        """Calls that the server has not ended."""
        return sum(0 if one.closed else one.opened - one.ended for one in self.connections)

    def settle(self, seconds: float) -> int:
        """Wait until no more calls end for a while, `seconds` at most; return those open."""
        until, before = time.monotonic() + seconds, -1
        while time.monotonic() < until and before != self.still_open:
            before = self.still_open
            time.sleep(1)
        return self.still_open

    def close(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            connection.close()


def _frame(kind: int, flags: int, stream: int, data: bytes) -> bytes:
    return len(data).to_bytes(3) + struct.pack(">BBI", kind, flags, stream) + data


def _literal(name: bytes, value: bytes) -> bytes:
    """Return a header as HPACK's literal without indexing (RFC 7541, 6.2.2)."""
    return b"\0" + _text(name) + _text(value)


def _text(text: bytes) -> bytes:
    assert len(text) < 127 + 128, "one further byte of length is enough here"
    length = bytes([len(text)]) if len(text) < 127 else bytes([127, len(text) - 127])
    return length + text
