"""The live page of the commands: `serve` with a real model, killed and started again; `demo`."""

from __future__ import annotations

import signal
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import tomli_w
from support.kills import free_port
from support.live_page import Page
from support.processes import Processes, run, wait_until


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.end()


def page_of(processes: Processes, output: Path) -> Page:
    """Start a server, and return its page once it listens."""
    for name in ("server.address", "page.address"):
        (output / name).unlink(missing_ok=True)
    server = processes.start("server", "serve", "run.toml", "--page", "127.0.0.1:0")
    wait_until(lambda: (output / "server.address").is_file() or server.poll() is not None, 120)
    assert server.poll() is None, processes.log("server")
    return Page((output / "page.address").read_text(), (output / "page.token").read_text())


@pytest.mark.slow  # starts of the server; test_operator.py restarts light ones
def test_a_served_run_is_exported_paused_killed_and_still_paused(
    tmp_path: Path, processes: Processes
) -> None:
    settings = {
        "name": "small", "output": "out", "rounds": 3, "server": {"port": free_port()},
        "model": {"name": "mlp"}, "evaluation": {"dataset": "digits"},
    }  # fmt: skip
    (tmp_path / "run.toml").write_text(tomli_w.dumps(settings), "utf-8")
    output = tmp_path / "out"
    with closing(page_of(processes, output)) as page:
        assert stat.S_IMODE((output / "page.token").stat().st_mode) == 0o600
        assert f"live page: {page.url}" in processes.log("server")
        assert page.token not in processes.log("server")
        assert page.run()["join"].startswith("featherfed join 127.0.0.1:")
        assert "small-" in page.http.get("").text
        assert page.act("export").status_code == 200
        assert page.act("pause").status_code == 200
        wait_until(lambda: any("exported: " in line["text"] for line in page.run()["log"]), 120)
        made = {path.name for path in (output / "versions" / "0").iterdir()}
        assert {"model_int8.tflite", "model_float32.tflite"} <= made
        processes.kill("server")
    with closing(page_of(processes, output)) as again:
        assert again.token != page.token
        assert (again.run()["phase"], again.act("resume").status_code) == ("paused", 200)
    server = processes.running["server"]
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 3
    assert not (output / "page.token").exists()


def test_what_cannot_be_served_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("", "utf-8")
    for page, message in (("8780", "use HOST:PORT"), ("0.0.0.0:8780", "others can reach")):
        done = run("serve", "run.toml", "--page", page, cwd=tmp_path)
        assert done.returncode == 1
        assert message in done.stderr


@pytest.mark.slow  # a whole demo; test_cli.py has another
def test_the_demo_says_where_its_page_is(tmp_path: Path) -> None:
    small = ("--clients", "2", "--rounds", "1", "--epochs", "1", "--model", "mlp")
    done = run("demo", *small, "--output", "demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "live page: http://127.0.0.1:" in done.stdout
    done = run("demo", *small, "--output", "demo", "--page", "off", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "live page" not in done.stdout
