"""The recipe of ``appliance``, the one image of all appliances: Python, the network's services, ``pileus.node``.

Nothing is installed: files are taken out of the packages, and no package's scripts run. There is no login, no SSH and
no DHCP client in it; what it becomes it is told over the backchannel.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import msgspec

import pileus
from pileus.image.build import COMMON_FILES, Recipe
from pileus.image.closed import closed_root
from pileus.image.elf import loaded_part, needed_libraries
from pileus.image.ext4 import Ext4
from pileus.image.kernel import Kernel
from pileus.image.programs import LIBRARIES, add_binaries, add_libraries, find
from pileus.image.tools import run
from pileus.image.tree import Tree
from pileus.image.types import BuildError
from pileus.node.program import FOLDER

ROOT_BYTES = 192 << 20
"""Size of the root partition; what appliances write is their document and a few leases."""

EXTENDED_ROOT_BYTES = 512 << 20
"""With more programs in it."""

ROLES = str(FOLDER).lstrip("/")

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PACKAGES = (
    *("busybox-static", "python3-minimal", "python3.11-minimal", "libpython3.11-stdlib", "iproute2", "nftables"),
    *("conntrack", "conntrackd", "dnsmasq-base", "haproxy", "keepalived", "wireguard-tools", "tcpdump"),
)
_BINARIES = (
    *("usr/bin/python3.11", "bin/ip", "sbin/bridge", "sbin/tc", "usr/sbin/nft", "usr/sbin/conntrack"),
    *("usr/sbin/conntrackd", "usr/sbin/dnsmasq", "usr/sbin/haproxy", "usr/sbin/keepalived", "usr/bin/wg"),
    "usr/bin/tcpdump",
)
_MODULES = (
    *("nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nf_log_syslog", "nf_conntrack_bridge"),
    *("nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_log", "nft_limit", "nft_connlimit"),
    *("nft_fib", "nft_fib_inet", "nft_fib_ipv4", "nft_hash", "nft_numgen", "nft_objref", "nft_quota"),
    *("nft_reject", "nft_reject_inet", "nft_reject_ipv4", "nft_meta_bridge", "nft_reject_bridge"),
    *("wireguard", "vxlan", "bridge", "dummy", "veth", "tun", "8021q", "ip_gre", "gre"),
)
_FILES = Path(__file__).parent / "appliance"
_NODE = Path(pileus.__file__).parent / "node"
_PYTHON = "usr/lib/python3.11"

_SCANNER = Path(str(distribution("yara-x").locate_file("yara_x")))
_SCANNER_RECORDS = tuple(_SCANNER.parent.glob("yara_x-*.dist-info"))
"""YARA-X as it is installed here; its records hold the digests of its files, which are large."""

_NO_MODULES = {
    *("test", "unittest", "idlelib", "tkinter", "turtledemo", "turtle.py", "ensurepip", "venv", "lib2to3", "distutils"),
    *("pydoc_data", "pydoc.py", "sqlite3", "curses", "dbm", "wsgiref", "xmlrpc", "__phello__", "__hello__.py"),
    *("antigravity.py", "this.py", "sitecustomize.py", "_distutils_system_mod.py", "doctest.py", "mailbox.py"),
}
"""Parts of Python's library that no appliance needs."""

_NO_EXTENSIONS = ("_test", "_sqlite3", "_curses", "_dbm", "_codecs_", "_xx", "xx", "nis", "ossaudiodev", "readline")


def root_tree(unpacked: Path, kernel: Kernel, modules: tuple[str, ...] = ()) -> Tree:
    """Return the appliance's root: no key, no account that could log in, nothing that asks the network for anything."""
    tree = closed_root(unpacked, kernel, _FILES, modules=(*_MODULES, *modules), without=("ip", "tc"))
    for folder in ("var/lib/pileus", "var/lib/misc"):
        tree.folder(folder)
    add_binaries(tree, unpacked, (*_BINARIES, *_extensions(unpacked)))
    tree.link("usr/bin/python3", "python3.11")
    _add_python(tree, unpacked)
    tree.file("etc/protocols", b"icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\n")
    tree.file("lib/pileus/pair-state", (_FILES / "pair-state").read_bytes(), 0o755)
    tree.file("lib/pileus/seed-disk", (COMMON_FILES / "seed-disk").read_bytes())
    return tree


def _add_python(tree: Tree, unpacked: Path) -> None:
    """Add Python's library, ``pileus.node`` and the scanner as bytecode that names no time and looks for no source."""
    library = unpacked / _PYTHON
    for name in _NO_MODULES:
        path = library / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    shutil.copytree(_NODE, library / "pileus/node", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(pileus.__file__), library / "pileus/__init__.py")
    (library / "yara_x").mkdir()
    shutil.copy(_SCANNER / "__init__.py", library / "yara_x")
    # The package's own Python compiles: bytecode of another version would not be taken.
    linker = find(unpacked, f"{LIBRARIES}/ld-linux-x86-64.so.2")
    python = unpacked / "usr/bin/python3.11"
    folders = f"{unpacked / LIBRARIES}:{unpacked / 'usr' / LIBRARIES}"
    argv: list[str | Path] = [
        linker,
        "--argv0",
        python,
        "--library-path",
        folders,
        python,
        "-S",
        "-m",
        "compileall",
        "-q",
        "-b",
    ]
    run([*argv, "--invalidation-mode", "unchecked-hash", "-s", unpacked, "-p", "/", library])
    for file in sorted(library.rglob("*.pyc")):
        if "__pycache__" not in file.parts:
            tree.file(str(file.relative_to(unpacked)), file.read_bytes())
    for file in sorted(_SCANNER.glob("*.so")):
        content = file.read_bytes()
        tree.file(f"{_PYTHON}/yara_x/{file.name}", loaded_part(content), 0o755)
        add_libraries(tree, unpacked, needed_libraries(content))
    if f"{_PYTHON}/pileus/node/__main__.pyc" not in tree:
        raise BuildError("BadPackage", "the appliance's own program was not compiled")


def _extensions(unpacked: Path) -> Iterator[str]:
    for file in sorted((unpacked / _PYTHON / "lib-dynload").glob("*.so")):
        if not file.name.startswith(_NO_EXTENSIONS):
            yield str(file.relative_to(unpacked))


def appliance_with(
    name: str, programs: Mapping[str, bytes], packages: Sequence[str] = (), modules: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of an appliance that has more roles: name -> program, as ``pileus.node.program`` starts it.

    ``packages``: what those need of Debian; their libraries come with them, other packages are named too.
    Raises: BuildError (BadName).
    """
    for word in (name, *programs):
        if _NAME.fullmatch(word) is None:
            raise BuildError("BadName", f"{word!r} is no name: lower-case letters, digits and -, a letter first")
    return msgspec.structs.replace(
        APPLIANCE,
        name=name,
        root=msgspec.structs.replace(APPLIANCE.root, size_bytes=EXTENDED_ROOT_BYTES),
        root_tree=partial(root_tree, modules=tuple(modules)),
        whole=tuple(sorted(packages)),
        modules=tuple(modules),
        files=tuple((f"{ROLES}/{role}", programs[role]) for role in sorted(programs)),
    )


APPLIANCE = Recipe(
    name="appliance",
    revision=1,
    programs=_PACKAGES,
    root=Ext4(size_bytes=ROOT_BYTES, label="root", uuid="70696c65-7573-4074-a96e-790000000002"),
    root_tree=root_tree,
    sources=(_NODE, *_SCANNER_RECORDS),
)
