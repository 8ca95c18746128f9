"""Builds ``tiny``, the default image of tenants' machines, from Debian packages: kernel, busybox, dropbear, resize2fs.

What the machine does is said by the files in ``tiny/``; what it consists of, here.
"""

from __future__ import annotations

import gzip
import hashlib
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from pileus.image.cpio import cpio
from pileus.image.disk import Boot, write_boot_partition, write_disk
from pileus.image.elf import needed_libraries
from pileus.image.ext4 import Ext4, write_ext4
from pileus.image.kernel import Kernel, add_modules, find_kernel, load_order, uncompressed
from pileus.image.packages import Package, candidates, current_kernel, default_cache, fetch, library_packages, unpack
from pileus.image.tools import missing_packages, run
from pileus.image.tree import Tree
from pileus.image.types import BuildError, BuiltImage

NAME = "tiny"

RECIPE = 1
"""Counts changes of this builder and its files; the packages' versions and hashes make the rest of the version."""

BUILD_TOOLS = {
    "apt-get": "apt",
    "debugfs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "dumpe2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "lz4": "lz4",
    "mcopy": "mtools",
    "mke2fs": "e2fsprogs",
    "mkfs.fat": "dosfstools",
    "qemu-img": "qemu-utils",
    "syslinux": "syslinux",
}

BUILD_PACKAGES = (*sorted(set(BUILD_TOOLS.values())), "syslinux-common")
"""Debian packages that must be installed on the machine that builds."""

APPEND = "console=ttyS0 quiet panic=1 net.ifnames=0 cryptomgr.notests"
"""Kernel command line of a direct boot; boot from disk adds the screen as a second console.

Without the self-tests of its ciphers the kernel starts 0.2 s sooner under TCG (measured).
"""

ROOT_BYTES = 96 << 20
"""Size of the root partition in the image; it grows to the volume at the first boot."""

_ROOT = Ext4(size_bytes=ROOT_BYTES, label="root", uuid="70696c65-7573-4074-a96e-790000000001")
_KERNEL_META = "linux-image-cloud-amd64"
_PROGRAMS = ("busybox-static", "dropbear-bin", "e2fsprogs")
_BINARIES = ("usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/sbin/mke2fs", "usr/sbin/resize2fs")
_INITRD_MODULES = ("virtio_pci", "virtio_blk")
_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "virtio_console", "virtio_scsi"),
    *("sd_mod", "sr_mod", "ata_piix", "isofs", "vfat", "nls_ascii", "nls_cp437", "nls_iso8859_1"),
    *("button", "evdev", "psmouse", "acpiphp"),
)
_NO_APPLETS = {"busybox", "dpkg", "dpkg-deb", "linuxrc", "mke2fs", "rpm", "rpm2cpio"}
_SBIN_APPLETS = ("halt", "init", "modprobe", "poweroff", "reboot")
_FILES = Path(__file__).parent / "tiny"
_LIBRARIES = "lib/x86_64-linux-gnu"


def build_tiny(output: Path, progress: Callable[[str], None], cache: Path | None = None) -> BuiltImage:
    """Build the image into the folder ``output`` (its files appear when all is done) and return what it is.

    ``cache`` keeps the downloaded packages between builds. The same packages give the same bytes.
    Raises: BuildError, naming the packages to install or what apt needs.
    """
    _check_machine()
    progress("asking apt for packages")
    names = [current_kernel(_KERNEL_META), *_PROGRAMS, *library_packages(_PROGRAMS[1:])]
    packages = candidates(names)
    files = fetch(packages, cache or default_cache(), progress)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=output) as folder:
        scratch = Path(folder)
        progress("unpacking")
        unpack(files, scratch / "unpacked")
        built = _assemble(scratch, packages, progress)
        for name in (*built.sha256, "image.json"):
            (scratch / name).replace(output / name)
    return msgspec.structs.replace(
        built, folder=output, disk=output / "tiny.qcow2", kernel=output / "vmlinux", initrd=output / "initrd"
    )


def _check_machine() -> None:
    if platform.machine() != "x86_64":
        raise BuildError("MissingPackages", f"tiny is built for amd64 on amd64; this machine is {platform.machine()}")
    missing = missing_packages(BUILD_TOOLS)
    if missing:
        raise BuildError("MissingPackages", f"the build needs packages: run 'apt-get install {' '.join(missing)}'")


def _assemble(scratch: Path, packages: list[Package], progress: Callable[[str], None]) -> BuiltImage:
    unpacked = scratch / "unpacked"
    kernel = find_kernel(unpacked)
    (scratch / "vmlinux").write_bytes(uncompressed(kernel.image.read_bytes()))
    initrd = cpio(initrd_tree(unpacked, kernel))
    (scratch / "initrd").write_bytes(initrd)
    progress("writing the root file system")
    entries = list(root_tree(unpacked, kernel))
    for part in ("boot", "root"):
        (scratch / part).mkdir()
    write_ext4(entries, scratch / "root.img", _ROOT, scratch / "root")
    progress("writing the disk")
    config = (_FILES / "syslinux.cfg").read_text().replace("@APPEND@", f"console=tty0 {APPEND}")
    packed = gzip.compress(initrd, mtime=0)
    boot = Boot(kernel=kernel.image.read_bytes(), initrd=packed, config=config.encode())
    write_boot_partition(boot, scratch / "boot.img", scratch / "boot")
    size = write_disk(scratch / "boot.img", scratch / "root.img", scratch / "tiny.qcow2", scratch)
    return _describe(scratch, packages, size)


def _describe(folder: Path, packages: list[Package], virtual_size: int) -> BuiltImage:
    hashes = {name: _sha256(folder / name) for name in ("tiny.qcow2", "vmlinux", "initrd")}
    version = f"{RECIPE}.{hashlib.sha256(''.join(hashes.values()).encode()).hexdigest()[:8]}"
    record = {
        "name": NAME,
        "version": version,
        "disk": "tiny.qcow2",
        "kernel": "vmlinux",
        "initrd": "initrd",
        "append": APPEND,
        "virtual_size_bytes": virtual_size,
        "sha256": hashes,
        "packages": {package.name: package.version for package in sorted(packages, key=lambda one: one.name)},
    }
    (folder / "image.json").write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return BuiltImage(
        name=NAME,
        version=version,
        folder=folder,
        disk=folder / "tiny.qcow2",
        kernel=folder / "vmlinux",
        initrd=folder / "initrd",
        append=APPEND,
        sha256=hashes,
    )


def initrd_tree(unpacked: Path, kernel: Kernel) -> Tree:
    """Return the first root: busybox, the disk's drivers, and the program that hands over to the disk."""
    tree = Tree()
    tree.file("bin/busybox", _busybox(unpacked), 0o755)
    tree.link("bin/sh", "busybox")
    tree.file("init", (_FILES / "initrd-init").read_bytes(), 0o755)
    for folder in ("dev", "mnt", "proc", "sys"):
        tree.folder(folder)
    modules = load_order(kernel, _INITRD_MODULES)
    for module in modules:
        tree.file(f"lib/{module.name}.ko", module.content)
    tree.file("modules", "".join(f"/lib/{module.name}.ko\n" for module in modules).encode())
    return tree


def root_tree(unpacked: Path, kernel: Kernel) -> Tree:
    """Return the machine's root: no key, no machine-id, no password in it."""
    tree = Tree()
    for folder in ("dev", "etc/dropbear", "mnt", "proc", "run", "sys", "var/lib/pileus", "var/log", "www"):
        tree.folder(folder)
    tree.folder("root", 0o700)
    tree.folder("root/.ssh", 0o700)
    tree.folder("tmp", 0o1777)
    tree.link("etc/resolv.conf", "/run/resolv.conf")
    tree.link("var/run", "/run")
    _add_programs(tree, unpacked)
    _add_accounts(tree)
    add_modules(tree, kernel, load_order(kernel, _MODULES))
    for name in ("inittab", "profile"):
        tree.file(f"etc/{name}", (_FILES / name).read_bytes())
    tree.file("etc/rc", (_FILES / "rc").read_bytes(), 0o755)
    tree.file("etc/acpi/PWRF/00000080", (_FILES / "power-off").read_bytes(), 0o755)
    for name in ("console-login", "hotplug", "udhcpc-script", "user-data"):
        tree.file(f"lib/pileus/{name}", (_FILES / name).read_bytes(), 0o755)
    for name in ("network", "network.awk", "seed", "yaml.awk"):
        tree.file(f"lib/pileus/{name}", (_FILES / name).read_bytes())
    return tree


def _add_programs(tree: Tree, unpacked: Path) -> None:
    busybox = _find(unpacked, "bin/busybox")
    tree.file("bin/busybox", _busybox(unpacked), 0o755)
    for applet in run([busybox, "--list"]).decode().split():
        if applet not in _NO_APPLETS:
            tree.link(f"bin/{applet}", "busybox")
    for applet in _SBIN_APPLETS:
        tree.link(f"sbin/{applet}", "../bin/busybox")
    tree.link("usr/sbin/mkfs.ext4", "mke2fs")
    wanted = []
    for path in _BINARIES:
        content = _find(unpacked, path).read_bytes()
        tree.file(path, content, 0o755)
        wanted += needed_libraries(content)
    while wanted:
        library = wanted.pop()
        if f"{_LIBRARIES}/{library}" not in tree:
            content = _find(unpacked, f"{_LIBRARIES}/{library}").read_bytes()
            tree.file(f"{_LIBRARIES}/{library}", content, 0o755)
            wanted += needed_libraries(content)
    tree.link("lib64", _LIBRARIES)


def _add_accounts(tree: Tree) -> None:
    tree.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    tree.file("etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o600)  # no password fits "*"
    tree.file("etc/group", b"root:x:0:\ntty:x:5:\n")
    tree.file("etc/shells", b"/bin/sh\n")
    tree.file("etc/nsswitch.conf", b"passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n")


def _busybox(unpacked: Path) -> bytes:
    return _find(unpacked, "bin/busybox").read_bytes()


def _find(unpacked: Path, path: str) -> Path:
    """Return the file in the unpacked packages, wherever Debian has it: /x or /usr/x."""
    for candidate in (unpacked / path, unpacked / "usr" / path, unpacked / path.removeprefix("usr/")):
        if candidate.is_file():
            return candidate
    raise BuildError("BadPackage", f"no package holds {path}")


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
