"""The choice of what a client trains with."""

from __future__ import annotations

import builtins
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import run

from featherfed.api.runtime import choose_runtime
from featherfed.cli.demo import DemoOptions, client_runtimes
from featherfed.edge_client.errors import ClientError


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make packages look as if they were not installed."""
    find, load = importlib.util.find_spec, builtins.__import__

    def hide(*names: str) -> None:
        def absent(name: str) -> bool:
            return name.split(".")[0] in names

        def imported(name: str, *rest: Any, **more: Any) -> Any:
            if absent(name):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return load(name, *rest, **more)

        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if absent(name) else find(name)
        )
        monkeypatch.setattr(builtins, "__import__", imported)

    return hide


def test_keras_is_chosen_where_it_is_installed() -> None:
    assert choose_runtime("auto", 0).name == "keras"


@pytest.mark.parametrize("absent", ["tensorflow", "tf_keras"])
def test_litert_is_chosen_where_there_is_no_tensorflow(
    without: Callable[..., None], absent: str
) -> None:
    without(absent)
    chosen = choose_runtime("auto", 0)
    assert chosen.name == "litert"
    assert "cluster" not in chosen.methods


def demo_options(tmp_path: Path, **chosen: Any) -> DemoOptions:
    options: dict[str, Any] = {
        "dataset": "digits", "clients": 3, "rounds": 1, "epochs": 1, "batch_size": 32,
        "learning_rate": None, "uplink": "exact", "downlink": "zstd", "optimize": "none",
        "partition": "iid", "model": "cnn", "runtime": "auto", "seed": 0, "page": "off",
        "output": tmp_path,
    }  # fmt: skip
    return DemoOptions(**{**options, **chosen})


@pytest.mark.parametrize(
    ("chosen", "runtime", "said"),
    [
        ({}, "litert", "clients train with LiteRT"),
        ({"optimize": "prune+qat"}, "litert", "clients train with LiteRT"),
        ({"optimize": "cluster"}, "keras", "clients train with Keras: LiteRT cannot cluster"),
        ({"model": "own.json"}, "keras", "clients train with Keras: own.json may have layers"),
        ({"runtime": "keras"}, "keras", ""),
        ({"runtime": "litert", "optimize": "cluster"}, "litert", ""),
    ],
)
def test_the_demo_takes_litert_where_it_can(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    chosen: dict[str, Any],
    runtime: str,
    said: str,
) -> None:
    assert client_runtimes(demo_options(tmp_path, **chosen)) == [runtime] * 3
    assert capsys.readouterr().out.startswith(said)


def test_the_demo_says_that_litert_is_missing(
    tmp_path: Path, without: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    without("ai_edge_litert")
    assert client_runtimes(demo_options(tmp_path)) == ["keras"] * 3
    assert "pip install 'featherfed[edge]'" in capsys.readouterr().out
    assert client_runtimes(demo_options(tmp_path, runtime="mixed")) == ["keras", "litert", "keras"]


def test_a_device_without_any_runtime_gets_a_plain_error(without: Callable[..., None]) -> None:
    without("tensorflow", "ai_edge_litert")
    with pytest.raises(ClientError, match=r"neither LiteRT nor TensorFlow.*featherfed\[edge\]"):
        choose_runtime("auto", 0)


BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
def data():
    from featherfed.datasets.sources import load_train_test
    return load_train_test("digits")[1]
"""


@pytest.mark.parametrize(
    ("chosen", "package", "extra"),
    [("litert", "ai_edge_litert", "edge"), ("keras", "tensorflow", "tensorflow")],
)
def test_a_runtime_that_is_not_installed_is_named(
    tmp_path: Path, chosen: str, package: str, extra: str
) -> None:
    (tmp_path / "blocked.py").write_text(BLOCK.format(names=[package]), "utf-8")
    done = run(
        "join", "127.0.0.1:1", "--data", "blocked:data", "--runtime", chosen, "--state-dir", "s",
        "--name", "a", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"{package} is not installed; pip install 'featherfed[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
