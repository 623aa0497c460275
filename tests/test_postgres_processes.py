"""`featherfed serve --postgres`: a standby, a kill, and the commands that read a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ports import free_port
from support.postgres import PostgresServer
from support.processes import Processes, run, save_digits, status, wait_until

RUN = """
name = "shared"
output = "out"
rounds = 3
server = {{ port = {port}, linger = 5 }}
model = {{ name = "mlp" }}
training = {{ epochs = {epochs}, learning_rate = 0.1 }}
evaluation.dataset = "digits"
clients = {{ minimum = 2, quorum = 1.0, deadline = 600, patience = 600 }}
"""


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    save_digits(tmp_path, 2)
    yield made
    made.end()


@pytest.mark.slow  # two servers with TensorFlow
@pytest.mark.timeout(1800)
def test_a_second_server_goes_on_with_the_run(
    processes: Processes, postgres: PostgresServer
) -> None:
    folder, port = processes.directory, free_port()
    (folder / "run.toml").write_text(RUN.format(port=port, epochs=150), "utf-8")
    serve = ("serve", "run.toml", "--postgres", postgres.new_database())
    address = f"127.0.0.1:{port}"
    processes.start("first", *serve)
    wait_until((folder / "out" / "server.address").is_file, 400)
    processes.start("second", *serve)
    wait_until(lambda: "this one is a standby" in processes.log("second"), 400)
    for number in range(2):
        processes.join(f"c{number}", address, f"data-{number}.npz", "--runtime", "litert")
    wait_until(lambda: status(address).version >= 1, 400)
    processes.kill("first")
    assert processes.wait("second", 400) == 0, processes.log("second")
    for number in range(2):
        assert processes.wait(f"c{number}") == 0, processes.log(f"c{number}")
    assert "taking over the run" in processes.log("second")
    metrics = json.loads((folder / "out" / "metrics.json").read_text("utf-8"))
    assert [row["round"] for row in metrics["rounds"]] == [1, 2, 3]
    assert "repeated_rounds" not in metrics or not metrics["repeated_rounds"]
    assert not (folder / "out" / "run.db").exists()
    for command in (
        ("export", "out", "--version", "1", "--kind", "float32"),
        ("backup", "out", "backup"),
        ("check", "backup"),
    ):
        done = run(*command, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    done = run("serve", "run.toml", cwd=folder)
    assert "is in PostgreSQL: serve it with --postgres" in done.stderr
