"""Takes a Debian kernel apart: the modules an image needs, with what those need, in the order of loading."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from pileus.image.elf import module_facts
from pileus.image.tools import run
from pileus.image.tree import Tree
from pileus.image.types import BuildError


class Module(Struct, frozen=True, kw_only=True):
    """One kernel module, uncompressed. ``needs`` are names of other modules."""

    name: str
    path: str
    content: bytes
    needs: tuple[str, ...]
    aliases: tuple[str, ...]


class Kernel(Struct, frozen=True, kw_only=True):
    """An unpacked kernel package. ``modules`` maps a name (with ``_`` for ``-``) to its file."""

    release: str
    image: Path
    modules: dict[str, Path]


def find_kernel(unpacked: Path) -> Kernel:
    """Return the one kernel in the folder where its package was unpacked. Raises: BuildError (BadPackage)."""
    images = sorted((unpacked / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise BuildError("BadPackage", f"the kernel package holds {len(images)} kernels, not one")
    release = images[0].name.removeprefix("vmlinuz-")
    roots = [unpacked / "lib/modules" / release, unpacked / "usr/lib/modules" / release]
    files = [file for root in roots for file in root.rglob("*.ko*")]
    return Kernel(release=release, image=images[0], modules={_name(file): file for file in files})


def uncompressed(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage: QEMU starts it at its PVH entry, without unpacking in the guest.

    Raises: BuildError (BadPackage). Source: Linux, Documentation/arch/x86/boot.rst (setup_sects, payload_offset).
    """
    (setup_sectors,) = struct.unpack_from("<B", image, 0x1F1)
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The kernel's build adds four bytes with the unpacked length to whatever the compressor wrote.
    packed = image[start : start + length - 4]
    if packed.startswith(b"\x02\x21\x4c\x18"):
        found = run(["lz4", "-dc"], text=packed)
    elif packed.startswith(b"\x28\xb5\x2f\xfd"):
        found = run(["zstd", "-dc"], text=packed)
    elif packed.startswith(b"\xfd7zXZ\0"):
        found = lzma.decompress(packed)
    else:
        raise BuildError("BadPackage", "the kernel is compressed in a way that this builder does not know")
    if not found.startswith(b"\x7fELF"):
        raise BuildError("BadPackage", "what the kernel package holds does not unpack to an ELF file")
    return found


def load_order(kernel: Kernel, wanted: Sequence[str]) -> list[Module]:
    """Return ``wanted`` and all they need, each after what it needs; what is built into the kernel is left out."""
    order: dict[str, Module] = {}
    for name in wanted:
        _visit(kernel, name, order)
    return list(order.values())


def add_modules(tree: Tree, kernel: Kernel, modules: Sequence[Module]) -> None:
    """Add the modules and the two tables that modprobe reads (modules.dep, modules.alias)."""
    root = f"lib/modules/{kernel.release}"
    by_name = {module.name: module for module in modules}
    lines, aliases = [], []
    for module in sorted(modules, key=lambda one: one.path):
        tree.file(f"{root}/{module.path}", module.content)
        chain = [by_name[name].path for name in _chain(by_name, module.name)]
        lines.append(f"{module.path}: {' '.join(reversed(chain))}".rstrip())
        aliases += [f"alias {alias} {module.name}" for alias in module.aliases]
    tree.file(f"{root}/modules.dep", ("\n".join(lines) + "\n").encode())
    tree.file(f"{root}/modules.alias", ("\n".join(aliases) + "\n").encode())


def _visit(kernel: Kernel, name: str, order: dict[str, Module]) -> None:
    if name in order or name not in kernel.modules:
        return
    module = _module(kernel.modules[name])
    # virtio_ring says nothing about virtio, which it needs at load time, in kernels whose modules need each other.
    for needed in module.needs:
        _visit(kernel, needed, order)
    order[name] = module


def _chain(by_name: dict[str, Module], name: str) -> list[str]:
    """Return all that ``name`` needs, each after what it needs."""
    found: dict[str, None] = {}

    def visit(one: str) -> None:
        for needed in by_name[one].needs:
            if needed in by_name and needed not in found:
                visit(needed)
                found[needed] = None

    visit(name)
    return list(found)


def _module(file: Path) -> Module:
    content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
    depends = ",".join(module_facts(content, "depends"))
    parts = file.parts
    path = "/".join(parts[parts.index("kernel") :]).removesuffix(".xz")
    needs = tuple(name.replace("-", "_") for name in depends.split(",") if name)
    return Module(
        name=_name(file), path=path, content=content, needs=needs, aliases=tuple(module_facts(content, "alias"))
    )


def _name(file: Path) -> str:
    return file.name.split(".ko")[0].replace("-", "_")
