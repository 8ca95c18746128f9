"""Names of files in a package: relative, inside it, and compared part by part."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from pileus.ovf.limits import DEFAULT, Limits

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(https?|ftps?|file|data|nfs|smb|ovf):", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")


class UnsafeName(Exception):
    """A name that may not be followed. ``code`` is a fault's."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def inside(name: str, limits: Limits = DEFAULT) -> str:
    """Return ``name`` without ``.`` and doubled slashes. Raises: UnsafeName, for whatever could lead out of the package.

    ``sun..vhw-disk1.vmdk`` is fine: parts are compared, not substrings.
    """
    _refuse(name, limits)
    plain = decoded(name)
    if plain is not None:
        _refuse(plain, limits)  # another reader may decode it
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        raise UnsafeName("bad-name", "it names no file")
    return "/".join(parts)


def decoded(name: str) -> str | None:
    """Return ``name`` with its percent escapes decoded; None when it has none, or none that are UTF-8."""
    if not _ESCAPE.search(name):
        return None
    try:
        plain = unquote_to_bytes(name).decode()
    except UnicodeDecodeError:
        return None
    return plain if plain != name else None


def is_ignored(name: str) -> bool:
    """Tell whether a member is what macOS adds to archives."""
    return name.rpartition("/")[2].startswith("._")


def _refuse(name: str, limits: Limits) -> None:
    if len(name.encode(errors="replace")) > limits.name_bytes:
        raise UnsafeName("name-too-long", f"it is longer than {limits.name_bytes} bytes")
    if any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) <= 0xDFFF for char in name):
        raise UnsafeName("bad-name", "it has a control character")
    if _URL.match(name):
        raise UnsafeName("url", "it is a URL; nothing is fetched: put the file into the package")
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        raise UnsafeName("absolute-name", "it is absolute; name a file of the package")
    if ".." in re.split(r"[/\\]", name):
        raise UnsafeName("climbing-name", "it climbs out of the package")
