"""The installer and its services: what it refuses, what it writes, and a real installation."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INSTALL = ROOT / "deploy" / "install.sh"
UNITS = sorted((ROOT / "deploy").glob("*.service"))


class Machine:
    """A made-up machine: commands that stand in for the real ones, before those on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands = folder / "commands"
        self.commands.mkdir()
        self.prefix = folder / "opt"
        self.stage = folder / "stage"
        self.command("uname", '[ "$1" = -m ] && echo aarch64 || echo kitchen')
        self.command("dpkg", "echo arm64")
        # A virtual environment whose programs only write down what they were asked for.
        self.command(
            "python3",
            f"""case $1 in
-m) mkdir -p "$3/bin"
    for program in pip featherfed; do
        printf '#!/bin/sh\\necho "$(basename $0) $*" >>{folder}/asked\\n' >"$3/bin/$program"
        chmod +x "$3/bin/$program"
    done ;;
*) exec {sys.executable} "$@" ;;
esac""",
        )

    def command(self, name: str, body: str) -> None:
        path = self.commands / name
        path.write_text(f"#!/bin/sh\n{body}\n", "utf-8")
        path.chmod(0o755)

    def install(self, *options: str, script: Path = INSTALL) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.commands}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "PREFIX": str(self.prefix),
            "DESTDIR": str(self.stage),
        }
        return subprocess.run(
            ["sh", str(script), *options],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text("utf-8").splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_the_installer_is_good_shell() -> None:
    subprocess.run(["sh", "-n", str(INSTALL)], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")
    if shellcheck is None:
        pytest.skip("needs shellcheck for the rest")
    subprocess.run([shellcheck, "--severity=style", str(INSTALL)], check=True)


@pytest.mark.parametrize(
    ("kernel", "userland", "says"),
    [
        ("armv7l", "armhf", "install the 64-bit Raspberry Pi OS"),
        ("armv6l", "armhf", "Pi 1, Zero"),
        ("aarch64", "armhf", "32-bit system under a 64-bit kernel"),
        ("i686", "i386", "install the 64-bit"),
        ("riscv64", "riscv64", "no LiteRT build for riscv64"),
    ],
)
def test_a_machine_without_litert_is_told_what_to_do(
    machine: Machine, kernel: str, userland: str, says: str
) -> None:
    machine.command("uname", f"echo {kernel}")
    machine.command("dpkg", f"echo {userland}")
    done = machine.install()
    assert done.returncode == 1
    assert says in done.stderr
    assert not machine.prefix.exists()


def test_a_python_that_does_not_fit_is_refused(machine: Machine) -> None:
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        machine.command(name, "exit 1")
    done = machine.install()
    assert done.returncode == 1
    assert "Python 3.11 to 3.13" in done.stderr


def test_a_client_is_installed_kept_up_to_date_and_removed(machine: Machine) -> None:
    done = machine.install()
    assert done.returncode == 0, done.stderr
    lock = ROOT / "deploy" / "constraints.txt"
    assert machine.asked[-3] == f"pip install --quiet --require-hashes --requirement {lock}"
    assert machine.asked[-2].startswith("pip install --quiet --no-deps --no-build-isolation")
    assert machine.asked[-1] == "featherfed version"
    settings = machine.stage / "etc" / "featherfed" / "client.env"
    values = dict(
        line.split("=", 1)
        for line in settings.read_text("utf-8").splitlines()
        if line[:5] == "JOIN_"
    )
    assert values["JOIN_ADDRESS"] == ""
    assert values["JOIN_NAME"].startswith("kitchen-")
    service = machine.stage / "etc" / "systemd" / "system" / "featherfed-client.service"
    assert f"ExecStart={machine.prefix}/bin/featherfed join " in service.read_text("utf-8")

    settings.write_text("JOIN_ADDRESS=10.0.0.1:8765\n", "utf-8")
    assert machine.install().returncode == 0
    assert settings.read_text("utf-8") == "JOIN_ADDRESS=10.0.0.1:8765\n", "settings are kept"

    assert machine.install("--uninstall").returncode == 0
    assert settings.exists()
    assert not service.exists()
    assert not machine.prefix.exists()


def test_a_server_or_a_script_alone_installs_without_the_lock(machine: Machine) -> None:
    assert machine.install("--role", "server").returncode == 0
    assert machine.asked[-2].startswith("pip install --quiet --upgrade")
    assert machine.asked[-2].endswith("[demo]")
    alone = machine.folder / "alone"
    alone.mkdir()
    for name in ("install.sh", "featherfed-client.service"):
        shutil.copy(INSTALL.parent / name, alone)
    done = machine.install(script=alone / "install.sh")
    assert done.returncode == 0, done.stderr
    assert "not checked by hashes" in done.stdout
    assert machine.asked[-2] == "pip install --quiet --upgrade featherfed[edge,images]"


def environment_of(settings: Path) -> dict[str, str]:
    """What systemd makes of it: the last line counts."""
    lines = settings.read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def credentials(folder: Path, name: str) -> Path:
    made = folder / f"credentials-{name}"
    made.mkdir()
    for file in ("ca.pem", "client.pem", "client-key.pem"):
        (made / file).write_text(f"{file} of {name}", "utf-8")
    (made / "token").write_text(f"{name}.c0ffee\n", "utf-8")
    return made


@pytest.mark.parametrize("role", ["client", "follow"])
def test_credentials_are_installed_and_replaced(machine: Machine, role: str) -> None:
    assert machine.install("--role", role).returncode == 0
    etc = machine.stage / "etc" / "featherfed"
    assert environment_of(etc / f"{role}.env")["FEATHERFED_CREDENTIALS"] == ""
    for name in ("pi.kitchen", "attic"):
        made = credentials(machine.folder, name)
        for _ in range(2):
            done = machine.install("--role", role, "--credentials", str(made))
            assert done.returncode == 0, done.stderr
        values = environment_of(etc / f"{role}.env")
        assert values["FEATHERFED_CREDENTIALS"] == "/etc/featherfed/credentials"
        if role == "client":
            assert values["JOIN_NAME"] == name
        installed = {path.name: path for path in (etc / "credentials").iterdir()}
        assert set(installed) == {"ca.pem", "token", "client.pem", "client-key.pem"}
        assert installed["client.pem"].read_text("utf-8") == f"client.pem of {name}"
        for path in [etc / "credentials", *installed.values()]:
            assert path.stat().st_mode & 0o077 == 0
    text = (etc / f"{role}.env").read_text("utf-8")
    assert text.count("FEATHERFED_CREDENTIALS=") == 2, "once empty, once appended"
    assert "c0ffee" not in text


def test_credentials_that_are_none_are_refused(machine: Machine) -> None:
    made = credentials(machine.folder, "attic")
    (made / "token").unlink()
    done = machine.install("--credentials", str(made))
    assert done.returncode == 1
    assert "no token" in done.stderr
    assert machine.install("--role", "server", "--credentials", str(made)).returncode == 1


@pytest.mark.parametrize("role", ["follow", "server"])
def test_other_roles_and_purge(machine: Machine, role: str) -> None:
    done = machine.install("--role", role)
    assert done.returncode == 0, done.stderr
    service = machine.stage / "etc" / "systemd" / "system" / f"featherfed-{role}.service"
    assert service.exists()
    assert machine.install("--purge").returncode == 0
    assert not service.exists()
    assert not (machine.stage / "etc" / "featherfed").exists()


def test_it_touches_no_folder_that_is_not_its_own(machine: Machine) -> None:
    machine.prefix.mkdir()
    (machine.prefix / "precious").touch()
    for options in ([], ["--uninstall"]):
        assert machine.install(*options).returncode == 1
    assert [path.name for path in machine.prefix.iterdir()] == ["precious"]


@pytest.mark.parametrize("option", ["--wrong", "--role=client", "--prefix"])
def test_wrong_options_are_named(machine: Machine, option: str) -> None:
    done = machine.install(option)
    assert done.returncode == 1
    assert option in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_accepts_the_service(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = unit.read_text("utf-8").replace("/opt/featherfed/bin/featherfed", "/bin/true")
    copy = tmp_path / unit.name
    copy.write_text(text, "utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr, done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_service_comes_back_by_itself(unit: Path) -> None:
    """After a kill and with the device; but a run that has finished is not run for ever."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit, "utf-8")
    assert parser["Service"]["Restart"] == "on-failure"
    assert float(parser["Service"]["RestartSec"]) >= 1
    assert parser["Unit"]["StartLimitIntervalSec"] == "0", "systemd gives up after five starts"
    assert parser["Install"]["WantedBy"] == "multi-user.target"
    assert parser["Service"]["StateDirectory"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_installation_runs(tmp_path: Path) -> None:
    """Downloads what a client needs."""
    prefix = tmp_path / "featherfed"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PREFIX": str(prefix)}
    base = Path(sys.base_prefix) / "bin"  # not this virtual environment
    environment["PATH"] = f"{base}:{environment['PATH']}"
    command = ["sh", str(INSTALL), "--user"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    code = "import ai_edge_litert.interpreter, zeroconf, featherfed.edge_client.session"
    subprocess.run([prefix / "bin" / "python", "-c", code], check=True)
    done = subprocess.run([*command, "--uninstall"], env=environment, check=False)
    assert done.returncode == 0
    assert not prefix.exists()
