"""A sweep of 24 runs on a Ray cluster of two nodes, of which one is killed, and its driver too."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from support.processes import Processes, run, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SWEEP = """
name = "grid"
output = "out"

[grid]
codec = ["float32", "balanced", "extreme"]
model = ["mlp"]
clients = [2]
learning_rate = [0.05, 0.1]
seed = [0, 1, 2, 3]

[run]
rounds = 2
training.epochs = 1
"""


def digests(folder: Path) -> dict[str, str]:
    with (folder / "results.csv").open(encoding="utf-8") as file:
        return {
            "/".join([row["codec"], row["learning_rate"], row["seed"]]): row["digest"]
            for row in csv.DictReader(file)
        }


def test_killed_nodes_and_drivers_change_no_digest(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs featherfed's extra `cluster`")
    from ray.cluster_utils import Cluster

    (tmp_path / "sweep.toml").write_text(SWEEP, "utf-8")
    here = run("sweep", "sweep.toml", "--output", "here", cwd=tmp_path, timeout=600)
    assert here.returncode == 0, here.stderr
    processes = Processes(tmp_path)
    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1)
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        command = ("sweep", "sweep.toml", "--output", "there", "--ray", cluster.address)
        done = tmp_path / "there" / "cases"
        processes.start("driver", *command)
        wait_until(lambda: len(list(done.glob("*.json"))) >= 3, 240)
        processes.kill("driver")
        kept = {path: path.stat().st_mtime_ns for path in done.glob("*.json")}
        processes.start("driver", *command)
        wait_until(lambda: len(list(done.glob("*.json"))) >= len(kept) + 4, 240)
        cluster.remove_node(second, allow_graceful=False)
        assert processes.wait("driver", 400) == 0, processes.log("driver")
        assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    finally:
        processes.end()
        cluster.shutdown()
    assert len(digests(tmp_path / "here")) == 24
    assert digests(tmp_path / "there") == digests(tmp_path / "here")
