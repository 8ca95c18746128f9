"""Programs that a build calls, with one meaning of failure. It knows no image."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pileus.image.types import BuildError

EPOCH_S = 1_760_000_000
"""The time of every file in an image, so that two builds of the same packages give the same bytes."""

TIMEOUT_S = 600
"""The longest a program may take: a download over a slow line."""

_SYSTEM_FOLDERS = "/usr/sbin:/usr/bin:/sbin:/bin"


def missing_packages(tools: Mapping[str, str]) -> list[str]:
    """Return the packages of those programs (program -> package) that are not installed, sorted, each once."""
    found = {tool: shutil.which(tool, path=_search_path()) for tool in tools}
    return sorted({package for tool, package in tools.items() if found[tool] is None})


def run(
    argv: Sequence[str | Path], *, text: bytes = b"", folder: Path | None = None, errors_too: bool = False
) -> bytes:
    """Return what the program printed. ``text`` is its standard input, ``folder`` its working folder.

    ``errors_too`` adds what it printed as errors, in order.

    The environment is fixed: C locale, UTC, SOURCE_DATE_EPOCH and E2FSPROGS_FAKE_TIME at ``EPOCH_S``.
    Raises: BuildError (ToolFailed with the program's last lines).
    """
    name = Path(argv[0]).name
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if errors_too else subprocess.PIPE,
            cwd=folder,
            env=_environment(),
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as exc:
        raise BuildError("MissingPackages", f"{name} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        raise BuildError("ToolFailed", f"{name} did not end within {TIMEOUT_S} s") from exc
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-4:]
        raise BuildError("ToolFailed", f"{name} failed with exit code {done.returncode}: {' | '.join(words)}")
    return done.stdout


def _search_path() -> str:
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_FOLDERS}"


def _environment() -> dict[str, str]:
    names = {"HOME", "TMPDIR", "http_proxy", "https_proxy"}
    kept = {name: value for name, value in os.environ.items() if name in names}
    return kept | {
        "PATH": _search_path(),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(EPOCH_S),
        "E2FSPROGS_FAKE_TIME": str(EPOCH_S),
        "PYTHONHASHSEED": "0",
        "MTOOLSRC": "/dev/null",
        "MTOOLS_SKIP_CHECK": "1",
    }
