"""Fetches Debian packages through the machine's own apt, which checks them, and reads files out of them.

Nothing is installed and nothing runs as root: the packages lie in a cache folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from pileus.image.tools import run
from pileus.image.types import BuildError

_URI_LINE = re.compile(r"'(?P<uri>\S+)' (?P<file>\S+) \d+ SHA256:(?P<sha256>[0-9a-f]{64})")


class Package(Struct, frozen=True, kw_only=True):
    """One package as apt would download it now."""

    name: str
    version: str
    file: str
    sha256: str


def candidates(names: Sequence[str]) -> list[Package]:
    """Return the package that apt would download for each name. Raises: BuildError (NoPackageSource)."""
    try:
        lines = run(["apt-get", "--print-uris", "download", *names]).decode()
    except BuildError as exc:
        raise _no_source(exc) from exc
    return [_package(match["file"], match["sha256"]) for match in _URI_LINE.finditer(lines)]


def library_packages(names: Sequence[str]) -> list[str]:
    """Return the names of all packages with libraries that ``names`` depend on, through any number of steps."""
    try:
        lines = run(["apt-cache", "depends", "-i", "--recurse", *names]).decode().splitlines()
    except BuildError as exc:
        raise _no_source(exc) from exc
    return sorted({line for line in lines if re.fullmatch(r"(lib|zlib)[a-z0-9.+-]+", line)})


def current_kernel(meta: str) -> str:
    """Return the package that holds the kernel which the meta package ``meta`` stands for."""
    try:
        text = run(["apt-cache", "show", "--no-all-versions", meta]).decode()
    except BuildError as exc:
        raise _no_source(exc) from exc
    match = re.search(r"^Depends: (linux-image-\S+)", text, re.MULTILINE)
    if match is None:
        raise BuildError("NoPackageSource", f"{meta} names no kernel; is this machine's apt set up for Debian?")
    return match[1]


def fetch(packages: Sequence[Package], cache: Path, progress: Callable[[str], None]) -> list[Path]:
    """Return the package files, downloaded into ``cache`` unless they are there with the right hash.

    Raises: BuildError (NoPackageSource, BadPackage).
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [package for package in packages if not _is_good(cache / package.file, package.sha256)]
    if missing:
        progress(f"downloading {len(missing)} Debian packages")
        with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as folder:
            _download(missing, Path(folder))
            for package in missing:
                got = Path(folder) / package.file
                if not _is_good(got, package.sha256):
                    raise BuildError("BadPackage", f"{package.file} does not have the hash that apt announced")
                got.replace(cache / package.file)
    return [cache / package.file for package in packages]


def unpack(files: Sequence[Path], folder: Path) -> None:
    """Unpack the packages' files into ``folder``, one over the other. Raises: BuildError (BadPackage)."""
    for file in files:
        try:
            run(["dpkg-deb", "--extract", file, folder])
        except BuildError as exc:
            raise BuildError("BadPackage", f"cannot unpack {file.name}: {exc}") from exc


def default_cache() -> Path:
    """Return the folder where packages are kept between builds."""
    if os.geteuid() == 0:
        return Path("/var/cache/pileus/packages")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pileus" / "packages"


def _download(packages: Sequence[Package], folder: Path) -> None:
    if os.geteuid() == 0:
        # apt fetches as the user _apt, who must be able to write here; the hash is checked afterwards.
        shutil.chown(folder, user="_apt")
    try:
        run(["apt-get", "--quiet", "download", *[f"{one.name}={one.version}" for one in packages]], folder=folder)
    except BuildError as exc:
        raise _no_source(exc) from exc


def _package(file: str, sha256: str) -> Package:
    # apt names files NAME_VERSION_ARCH.deb with the epoch's colon as %3a.
    name, version, _ = file.removesuffix(".deb").split("_")
    return Package(name=name, version=version.replace("%3a", ":"), file=file, sha256=sha256)


def _is_good(file: Path, sha256: str) -> bool:
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def _no_source(cause: BuildError) -> BuildError:
    hint = "needs Debian's package lists and a reachable mirror: run 'apt-get update' and look at what it says"
    return BuildError("NoPackageSource", f"the build {hint} ({cause})")
