"""Make a sample of an earlier version's files: a run and a client that died in mid-round.

Run in a work tree of that version (`.links` as its `make dev` made it):

    PYTHONPATH=.links:tests python make_sample.py FOLDER

Three clients train for three rounds; c2 dies in round 2 with an update made, saved and not sent,
and so does the server. FOLDER gets run.db, c2/ (its state) and expected.json: what the same version
ends with if nobody dies. Nothing of it uses TensorFlow.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

try:
    import support.federation as harness
    from support.clients import Pull
except ImportError:
    import conftest as harness
    from conftest import Pull
try:
    from featherfed.compression.manifest import Manifest, Role, TensorSpec, Uniform
except ImportError:
    from featherfed.compression.exchange.manifest import Manifest, Role, TensorSpec, Uniform

SMALL = Manifest((
    TensorSpec("kernel", (12, 16), initial=Uniform(0.1), prunable=True),
    TensorSpec("bias", (16,)),
    TensorSpec("variance", (16,), Role.NONNEGATIVE),
))  # fmt: skip
CODECS = {"uplink": "topk(0.1) | quantize(4)", "downlink": "quantize(8) | zstd"}
CLIENTS = {"minimum": 3, "quorum": 1.0, "deadline": 3600, "patience": 30}
harness.MANIFEST = SMALL


def federation(directory: Path) -> Any:
    """Return a started federation of three rounds in `directory`."""
    directory.mkdir(parents=True)
    changes = {"output": "run", "compression": CODECS, "clients": CLIENTS}
    settings = harness.settings(directory, **changes)
    try:
        return harness.Federation(directory, settings, manifest=SMALL).start()
    except TypeError:  # older ones take the module's
        return harness.Federation(directory, settings).start()


def clients(server: Any, dies: bool) -> list[Any]:
    """Return the sessions of c0 to c2; the last one may die before it sends its second update."""
    told = threading.Semaphore(0)
    sessions = []
    for number in range(3):
        transport = server.transport()
        submit = transport.submit_update

        def send(header: Any, payload: bytes, number: int = number, submit: Any = submit) -> Any:
            if dies and header.round == 2 and number == 2:
                told.acquire()
                told.acquire()
                os._exit(0)
            reply = submit(header, payload)
            if header.round == 2:
                told.release()
            return reply

        transport.submit_update = send
        trainer = Pull(number / 3)
        sessions.append(server.client(f"c{number}", trainer=trainer, transport=transport))
    return sessions


def digests(path: Path) -> list[str]:
    """Return the digests of a run's versions."""
    with closing(sqlite3.connect(path)) as db:
        return [row[0].hex() for row in db.execute("SELECT digest FROM versions ORDER BY version")]


def main() -> None:
    """Make the sample."""
    target, scratch = Path(sys.argv[1]), Path(tempfile.mkdtemp())
    if os.fork() == 0:
        server = federation(scratch / "killed")
        server.run_clients(*clients(server, dies=True))
        os._exit(1)
    assert os.wait()[1] == 0
    server = federation(scratch / "whole")
    server.run_clients(*clients(server, dies=False))
    server.join()
    target.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(scratch / "killed" / "run.db")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("PRAGMA page_size = 1024")  # most pages are nearly empty
        db.execute("VACUUM")
    shutil.copy(scratch / "killed" / "run.db", target)
    (target / "c2").mkdir(exist_ok=True)
    for path in (scratch / "killed" / "clients" / "c2").iterdir():
        if path.name != ".lock":
            shutil.copy(path, target / "c2")
    expected = {"digests": digests(scratch / "whole" / "run.db")}
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    server.close()


if __name__ == "__main__":
    main()
