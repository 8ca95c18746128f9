"""Builds an image from its recipe: Debian packages, a root file system made of them, a disk that boots by itself.

Every image has the same kernel, the same first root (``common/initrd-init``) and the same layout of its disk; what is
in its root says its recipe.
"""

from __future__ import annotations

import gzip
import hashlib
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from pileus.image.cpio import cpio
from pileus.image.disk import Boot, write_boot_partition, write_disk
from pileus.image.ext4 import Ext4, write_ext4
from pileus.image.kernel import Kernel, find_kernel, load_order, uncompressed
from pileus.image.packages import Package, candidates, current_kernel, default_cache, fetch, library_packages, unpack
from pileus.image.programs import find
from pileus.image.tools import missing_packages
from pileus.image.tree import Tree
from pileus.image.types import BuildError, BuiltImage
from pileus.image.whole import add_whole

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

COMMON_FILES = Path(__file__).parent / "common"

_KERNEL_META = "linux-image-cloud-amd64"
_INITRD_MODULES = ("virtio_pci", "virtio_blk")


class Recipe(Struct, frozen=True, kw_only=True):
    """What one image consists of."""

    name: str

    revision: int
    """Counts changes of the recipe; the hashes of what was built make the rest of the version."""

    programs: tuple[str, ...]
    """Debian packages; those of the libraries that they depend on come with them."""

    root: Ext4

    root_tree: Callable[[Path, Kernel], Tree]
    """Makes the machine's root from the folder of unpacked packages."""

    sources: tuple[Path, ...] = ()
    """Folders, beside the builder's own, whose content goes into the image."""

    whole: tuple[str, ...] = ()
    """Debian packages of which everything goes into the image, but for what people read."""

    modules: tuple[str, ...] = ()
    """Kernel modules that ``root_tree`` adds beside those of its revision."""

    files: tuple[tuple[str, bytes], ...] = ()
    """Programs that are put over all that: path in the image, content."""


def build(recipe: Recipe, output: Path, progress: Callable[[str], None], cache: Path | None = None) -> BuiltImage:
    """Build the image into the folder ``output`` (its files appear when all is done) and return what it is.

    ``cache`` keeps the downloaded packages between builds. The same packages give the same bytes.
    Raises: BuildError, naming the packages to install or what apt needs.
    """
    _check_machine(recipe.name)
    progress("asking apt for packages")
    wanted = (*recipe.programs, *recipe.whole)
    names = [current_kernel(_KERNEL_META), *wanted, *library_packages(wanted)]
    packages = candidates(list(dict.fromkeys(names)))
    files = fetch(packages, cache or default_cache(), progress)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=output) as folder:
        scratch = Path(folder)
        progress("unpacking")
        unpack(files, scratch / "unpacked")
        (scratch / "whole").mkdir()
        unpack([file for one, file in zip(packages, files, strict=True) if one.name in recipe.whole], scratch / "whole")
        built = _assemble(recipe, scratch, packages, progress)
        for name in (*built.sha256, "image.json"):
            (scratch / name).replace(output / name)
    return msgspec.structs.replace(
        built, folder=output, disk=output / built.disk.name, kernel=output / "vmlinux", initrd=output / "initrd"
    )


def inputs(recipe: Recipe) -> str:
    """Return a digest of the builder, the image's files and the sources that go into it."""
    digest = hashlib.sha256(f"{recipe.name} {recipe.revision}\0".encode())
    for path, content in recipe.files:
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    digest.update(" ".join((*recipe.whole, *recipe.modules)).encode())
    for folder in (Path(__file__).parent, *recipe.sources):
        for file in sorted(folder.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _check_machine(name: str) -> None:
    if platform.machine() != "x86_64":
        raise BuildError("MissingPackages", f"{name} is built for amd64 on amd64; this machine is {platform.machine()}")
    missing = missing_packages(BUILD_TOOLS)
    if missing:
        raise BuildError("MissingPackages", f"the build needs packages: run 'apt-get install {' '.join(missing)}'")


def _assemble(recipe: Recipe, scratch: Path, packages: list[Package], progress: Callable[[str], None]) -> BuiltImage:
    unpacked = scratch / "unpacked"
    kernel = find_kernel(unpacked)
    (scratch / "vmlinux").write_bytes(uncompressed(kernel.image.read_bytes()))
    initrd = cpio(initrd_tree(unpacked, kernel))
    (scratch / "initrd").write_bytes(initrd)
    progress("writing the root file system")
    tree = recipe.root_tree(unpacked, kernel)
    add_whole(tree, scratch / "whole", unpacked)
    for path, content in recipe.files:
        tree.file(path, content, 0o755)
    entries = list(tree)
    for part in ("boot", "root"):
        (scratch / part).mkdir()
    write_ext4(entries, scratch / "root.img", recipe.root, scratch / "root")
    progress("writing the disk")
    config = (COMMON_FILES / "syslinux.cfg").read_text().replace("@APPEND@", f"console=tty0 {APPEND}")
    packed = gzip.compress(initrd, mtime=0)
    boot = Boot(kernel=kernel.image.read_bytes(), initrd=packed, config=config.encode())
    write_boot_partition(boot, scratch / "boot.img", scratch / "boot")
    size = write_disk(scratch / "boot.img", scratch / "root.img", scratch / f"{recipe.name}.qcow2", scratch)
    return _describe(recipe, scratch, packages, size)


def _describe(recipe: Recipe, folder: Path, packages: list[Package], virtual_size: int) -> BuiltImage:
    disk = f"{recipe.name}.qcow2"
    hashes = {name: _sha256(folder / name) for name in (disk, "vmlinux", "initrd")}
    built = BuiltImage(
        name=recipe.name,
        version=f"{recipe.revision}.{hashlib.sha256(''.join(hashes.values()).encode()).hexdigest()[:8]}",
        folder=folder,
        disk=folder / disk,
        kernel=folder / "vmlinux",
        initrd=folder / "initrd",
        append=APPEND,
        sha256=hashes,
        inputs=inputs(recipe),
    )
    record = {
        "name": built.name,
        "version": built.version,
        "disk": disk,
        "kernel": "vmlinux",
        "initrd": "initrd",
        "append": built.append,
        "virtual_size_bytes": virtual_size,
        "sha256": hashes,
        "inputs": built.inputs,
        "packages": {package.name: package.version for package in sorted(packages, key=lambda one: one.name)},
    }
    (folder / "image.json").write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    return built


def initrd_tree(unpacked: Path, kernel: Kernel) -> Tree:
    """Return the first root: busybox, the disk's drivers, and the program that hands over to the disk."""
    tree = Tree()
    tree.file("bin/busybox", find(unpacked, "bin/busybox").read_bytes(), 0o755)
    tree.link("bin/sh", "busybox")
    tree.file("init", (COMMON_FILES / "initrd-init").read_bytes(), 0o755)
    for folder in ("dev", "mnt", "proc", "sys"):
        tree.folder(folder)
    modules = load_order(kernel, _INITRD_MODULES)
    for module in modules:
        tree.file(f"lib/{module.name}.ko", module.content)
    tree.file("modules", "".join(f"/lib/{module.name}.ko\n" for module in modules).encode())
    return tree


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
