"""A PostgreSQL server of the tests' own, which they may stop as a crash would."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from support.ports import free_port

ACCOUNTS = ("postgres", "nobody")
"""Whose processes PostgreSQL's may be where the tests run as root, which it refuses."""


def programs() -> Path | None:
    """Return the folder with the newest PostgreSQL's programs; None if there is none."""
    found = shutil.which("initdb")
    debian = Path("/usr/lib/postgresql")
    packaged = sorted(debian.glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    paths = [*([Path(found)] if found else []), *packaged]
    return paths[-1].parent if paths else None


class PostgresServer:
    """A server on a loopback port and a socket, with its files in a new folder below /tmp."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._account: pwd.struct_passwd | None = None
        if os.geteuid() == 0:
            accounts = {entry.pw_name: entry for entry in pwd.getpwall()}
            self._account = next(accounts[name] for name in ACCOUNTS if name in accounts)
        self.folder = Path(tempfile.mkdtemp(prefix="featherfed-postgres-"))
        if self._account:
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
        self.port, self._databases = free_port(), 0
        self.dsn = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._run(
            "initdb", "--username=postgres", "--auth=trust", "--data-checksums", "--encoding=UTF8",
            "--locale=C.UTF-8", "--no-instructions",
        )  # fmt: skip
        self.start()

    def start(self, **settings: str) -> None:
        """Start the server; `settings` as in postgresql.conf."""
        given = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),
            **settings,
        }
        options = " ".join(f"-c {name}={value}" for name, value in given.items())
        self._run("pg_ctl", "--wait", f"--log={self.folder}/log", f"--options={options}", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server; `immediate`: as a crash, with recovery at the next start."""
        self._run("pg_ctl", "--wait", f"--mode={mode}", "stop")

    def new_database(self) -> str:
        """Create a database; return its address."""
        import psycopg  # not in every installation

        self._databases += 1
        name = f"test{self._databases}"
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        """Stop the server, and delete its files."""
        self.stop()
        shutil.rmtree(self.folder)

    def _run(self, name: str, *arguments: str) -> None:
        command = [str(self._programs / name), f"--pgdata={self.folder / 'data'}", *arguments]
        account: dict[str, Any] = {}
        if self._account:
            ids = {"user": self._account.pw_uid, "group": self._account.pw_gid}
            account = {**ids, "extra_groups": []}
        with (self.folder / "out").open("ab") as out:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=self.folder,
                check=False, **account,
            )  # fmt: skip
        assert done.returncode == 0, (self.folder / "out").read_text("utf-8")
