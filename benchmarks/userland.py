"""An arm64 Debian userland in a folder, to run Python programs in under emulation.

Nothing is installed on this machine: packages are fetched by its apt under a configuration of their
own and unpacked, wheels are fetched by pip for the other architecture. qemu must be version 10 or
newer: version 7 crashes in LiteRT. An emulated program cannot start others.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
"""Debian release under Raspberry Pi OS -> its Python version."""

QEMU_SUITE = "trixie"  # the first Debian with a qemu of version 10
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")


class UserlandError(ValueError):
    """The userland cannot be made on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Userland:
    """qemu, an unpacked Debian and a folder of wheels."""

    qemu: Path
    root: Path
    site: Path
    python: str

    def command(self, cpu: str, *arguments: str) -> list[str]:
        """Return the command that runs Python with `arguments` on an emulated `cpu`."""
        python = self.root / "usr" / "bin" / f"python{self.python}"
        return [str(self.qemu), "-cpu", cpu, "-L", str(self.root), str(python), *arguments]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the emulated Python, without this machine's."""
        return {
            "PATH": "/usr/bin",
            "HOME": str(self.root),
            "PYTHONPATH": str(self.site),
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @property
    def qemu_version(self) -> str:
        """The first line of qemu's version text."""
        said = _run([str(self.qemu), "--version"], "qemu does not run")
        return said.splitlines()[0]

    def packages(self) -> dict[str, str]:
        """Return the versions of the Python packages in it."""
        names = (path.name.removesuffix(".dist-info") for path in self.site.glob("*.dist-info"))
        return dict(sorted(name.rsplit("-", 1) for name in names))


def prepare(cache: Path, suite: str, requirements: Sequence[str], mirror: str | None) -> Userland:
    """Return a userland of `suite` under `cache`, making what is not there yet.

    The wheels of `requirements` are installed anew if those changed. `mirror` is a Debian mirror;
    by default the one that this machine's apt uses. Raises UserlandError.
    """
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(tool) is None:
            raise UserlandError(f"needs {tool} (Debian's package {package})")
    cache.mkdir(parents=True, exist_ok=True)
    qemu = cache / "qemu"
    if not qemu.exists():
        apt = _Apt(cache / "apt", mirror or _mirror(), QEMU_SUITE, _host_architecture())
        _unpack(apt.fetch(["qemu-user"], with_dependencies=False), qemu)
    python = PYTHONS[suite]
    root = cache / suite
    if not root.exists():
        apt = _Apt(cache / "apt", mirror or _mirror(), suite, "arm64")
        _unpack(apt.fetch([f"python{python}", "libstdc++6", "zlib1g"]), root)
    site = cache / f"{suite}-packages"
    stamp = site / ".requirements"
    wanted = "\n".join(requirements)
    if not stamp.exists() or stamp.read_text("utf-8") != wanted:
        _install(requirements, python, site)
        stamp.write_text(wanted, "utf-8")
    return Userland(qemu / "usr" / "bin" / "qemu-aarch64", root, site, python)


class _Apt:
    """This machine's apt with lists, cache and an empty set of installed packages of its own."""

    def __init__(self, folder: Path, mirror: str, suite: str, architecture: str) -> None:
        if not KEYRING.exists():
            raise UserlandError(f"needs {KEYRING} (Debian's package debian-archive-keyring)")
        self._folder = folder / f"{suite}-{architecture}"
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in ("lists/partial", "cache/archives/partial"):
            (self._folder / name).mkdir(parents=True)
        (self._folder / "status").touch()
        source = f"deb [signed-by={KEYRING}] {mirror} {suite} main\n"
        (self._folder / "sources.list").write_text(source, "utf-8")
        options = {
            "Dir::Etc::SourceList": self._folder / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State": self._folder,
            "Dir::State::Lists": self._folder / "lists",
            "Dir::State::status": self._folder / "status",
            "Dir::Cache": self._folder / "cache",
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }
        text = "".join(f'{key} "{value}";\n' for key, value in options.items())
        (self._folder / "apt.conf").write_text(text, "utf-8")
        self._get("update")

    def fetch(self, packages: Sequence[str], with_dependencies: bool = True) -> list[Path]:
        """Return the fetched .deb files of `packages` and, if asked for, all they depend on."""
        archives = self._folder / "cache" / "archives"
        if with_dependencies:
            self._get("install", "--yes", "--download-only", "--no-install-recommends", *packages)
        else:
            self._get("download", *packages, cwd=archives)
        return sorted(archives.glob("*.deb"))

    def _get(self, *arguments: str, cwd: Path | None = None) -> None:
        _run(
            ["apt-get", "--quiet", "--quiet", *arguments],
            "apt could not fetch the packages",
            cwd=cwd,
            env={**os.environ, "APT_CONFIG": str(self._folder / "apt.conf")},
        )


def _mirror() -> str:
    """Return the Debian mirror that this machine's apt is configured for."""
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"]
    for line in _run(command, "apt does not say where its packages come from").splitlines():
        site, _, release = line.partition(" ")
        if release in (*PYTHONS, "bullseye", "forky", "stable", "testing", "sid"):
            return site
    raise UserlandError("this machine's apt knows no Debian mirror; give one with --mirror URL")


def _host_architecture() -> str:
    return _run(["dpkg", "--print-architecture"], "dpkg does not name this machine").strip()


def _unpack(archives: Sequence[Path], target: Path) -> None:
    """Unpack packages into `target`, which appears when it is complete."""
    scratch = target.with_name(f"{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    for archive in archives:
        _run(["dpkg-deb", "--extract", str(archive), str(scratch)], f"{archive.name} is damaged")
    for name in ("bin", "lib", "sbin"):  # from trixie on, these links are not in the packages
        if not (scratch / name).exists():
            (scratch / name).symlink_to(f"usr/{name}")
    scratch.rename(target)


def _install(requirements: Sequence[str], python: str, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    platforms = [f"--platform={name}_aarch64" for name in PLATFORMS]
    _run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--only-binary=:all:", f"--python-version={python}", "--implementation=cp", *platforms,
            f"--target={target}", *requirements,
        ],
        "pip could not install for aarch64",
    )  # fmt: skip


def _run(
    command: Sequence[str], what: str, cwd: Path | None = None, env: dict[str, str] | None = None
) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    if done.returncode:
        raise UserlandError(f"{what}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def machine() -> dict[str, str]:
    """Return a description of this machine for the results."""
    return {"architecture": platform.machine(), "python": platform.python_version()}
