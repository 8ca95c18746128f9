"""The parts of the image builder, without packages and without a boot."""

from __future__ import annotations

import hashlib
import shutil
import stat
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from pileus.cli.commands.image import command as image_command
from pileus.image import build, recipes, tools
from pileus.image.appliance_build import appliance_with
from pileus.image.cpio import cpio
from pileus.image.elf import module_facts, needed_libraries
from pileus.image.ext4 import Ext4, write_ext4
from pileus.image.kernel import Kernel, add_modules, find_kernel, load_order, uncompressed
from pileus.image.packages import Package, candidates, fetch
from pileus.image.recipes import RECIPES, current_image
from pileus.image.tiny_build import TINY
from pileus.image.tree import Tree
from pileus.image.types import BuildError, BuiltImage
from pileus.image.whole import add_whole
from pileus.kernel.errors import Bug

SHAPE = Ext4(size_bytes=16 << 20, label="root", uuid="70696c65-7573-4074-a96e-790000000001")


def small_tree() -> Tree:
    tree = Tree()
    tree.file("etc/shadow", b"root:*:\n", 0o600)
    tree.file("bin/tool", b"\x7fELF" + bytes(100_000), 0o755)
    tree.link("bin/other", "tool")
    tree.folder("tmp", 0o1777)
    for number in range(400):
        tree.link(f"bin/applet{number}", "tool")
    return tree


def test_a_tree_names_parents_before_children_whatever_the_order_of_adding() -> None:
    tree = Tree()
    tree.file("a/b/c", b"1")
    tree.folder("a", 0o700)
    assert [(entry.path, entry.kind, entry.mode) for entry in tree] == [
        ("a", "folder", 0o700),
        ("a/b", "folder", 0o755),
        ("a/b/c", "file", 0o644),
    ]


@pytest.mark.parametrize("path", ["", "/a", "a/../b", "a//b", "a b", 'a"b', "a\nb"])
def test_a_path_that_a_script_of_debugfs_could_misread_is_refused(path: str) -> None:
    with pytest.raises(Bug):
        Tree().file(path, b"")


def test_the_initial_ram_disk_is_what_cpio_reads(tmp_path: Path) -> None:
    if shutil.which("cpio") is None:
        pytest.skip("reading the archive back needs cpio")
    archive = cpio(list(small_tree()))
    listing = subprocess.run(["cpio", "-t", "--quiet"], input=archive, capture_output=True, check=True)
    assert listing.stdout.decode().split() == [entry.path for entry in small_tree()]
    subprocess.run(["cpio", "-i", "--quiet"], input=archive, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/tool").read_bytes() == b"\x7fELF" + bytes(100_000)
    assert stat.S_IMODE((tmp_path / "etc/shadow").stat().st_mode) == 0o600
    assert (tmp_path / "bin/other").readlink() == Path("tool")


def test_the_root_file_system_is_sound_and_the_same_each_time(tmp_path: Path) -> None:
    missing = tools.missing_packages({"mke2fs": "e2fsprogs", "debugfs": "e2fsprogs"})
    if missing:
        pytest.skip(f"needs {missing}")
    digests = set()
    for turn in ("one", "two"):
        (tmp_path / turn).mkdir()
        write_ext4(list(small_tree()), tmp_path / f"{turn}.img", SHAPE, tmp_path / turn)
        digests.add(hashlib.sha256((tmp_path / f"{turn}.img").read_bytes()).hexdigest())
    assert len(digests) == 1
    listing = tools.run(["debugfs", "-R", "ls -l /etc", tmp_path / "one.img"]).decode()
    assert "100600 (1)      0      0" in listing
    assert "shadow" in listing


def test_a_file_system_that_is_too_small_for_its_files_is_an_error(tmp_path: Path) -> None:
    if tools.missing_packages({"mke2fs": "e2fsprogs"}):
        pytest.skip("needs e2fsprogs")
    tree = Tree()
    tree.file("big", bytes(range(256)) * 80_000)
    with pytest.raises(BuildError) as caught:
        write_ext4(list(tree), tmp_path / "x.img", SHAPE, tmp_path)
    assert caught.value.reason == "ToolFailed"


def test_the_libraries_of_a_program_are_read_from_it() -> None:
    shell = Path("/bin/bash")
    if not shell.exists():
        pytest.skip("needs a dynamic program")
    assert "libc.so.6" in needed_libraries(shell.read_bytes())
    with pytest.raises(BuildError):
        needed_libraries(b"#!/bin/sh\n")


def module(needs: str, *aliases: str) -> bytes:
    facts = [f"depends={needs}", *(f"alias={alias}" for alias in aliases), "license=GPL"]
    return b"\x7fELF" + b"\0" + b"\0".join(fact.encode() for fact in facts) + b"\0"


def kernel_with(folder: Path, modules: dict[str, bytes]) -> Kernel:
    (folder / "boot").mkdir(parents=True)
    (folder / "boot/vmlinuz-9.9").write_bytes(b"")
    for name, content in modules.items():
        file = folder / "lib/modules/9.9/kernel/drivers" / f"{name}.ko"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return find_kernel(folder)


def test_modules_come_with_all_they_need_and_after_it(tmp_path: Path) -> None:
    modules = {"d": module("c,b"), "c": module("a-x"), "b": module(""), "a-x": module("", "pci:v1"), "z": module("")}
    kernel = kernel_with(tmp_path, modules)
    order = load_order(kernel, ["d", "built-into-the-kernel"])
    assert [one.name for one in order] == ["a_x", "c", "b", "d"]
    tree = Tree()
    add_modules(tree, kernel, order)
    files = {
        entry.path: entry.content.decode() for entry in tree if entry.kind == "file" and "kernel" not in entry.path
    }
    root, drivers = "lib/modules/9.9", "kernel/drivers"
    assert files[f"{root}/modules.dep"].splitlines() == [
        f"{drivers}/a-x.ko:",
        f"{drivers}/b.ko:",
        f"{drivers}/c.ko: {drivers}/a-x.ko",
        f"{drivers}/d.ko: {drivers}/b.ko {drivers}/c.ko {drivers}/a-x.ko",
    ]
    assert files[f"{root}/modules.alias"] == "alias pci:v1 a_x\n"
    assert module_facts(modules["d"], "license") == ["GPL"]


def test_a_kernel_that_is_packed_in_an_unknown_way_is_refused() -> None:
    image = bytearray(4096)
    struct.pack_into("<II", image, 0x248, 16, 64)
    with pytest.raises(BuildError) as caught:
        uncompressed(bytes(image))
    assert caught.value.reason == "BadPackage"


def test_the_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "BUILD_TOOLS", {"no-such-tool": "nice-package", "other-tool": "more", "sh": "dash"})
    with pytest.raises(BuildError, match="apt-get install more nice-package") as caught:
        build.build(TINY, tmp_path / "out", print)
    assert caught.value.reason == "MissingPackages"
    assert not (tmp_path / "out").exists()


def test_without_package_lists_the_build_says_what_apt_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "apt-get"
    script.write_text("#!/bin/sh\necho 'E: Unable to locate package busybox-static' >&2\nexit 100\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(BuildError, match=r"apt-get update.*Unable to locate package") as caught:
        candidates(["busybox-static"])
    assert caught.value.reason == "NoPackageSource"


def test_a_package_without_the_announced_hash_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "apt-get"
    script.write_text("#!/bin/sh\necho other > one_1_all.deb\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    good = Package(name="one", version="1", file="one_1_all.deb", sha256=hashlib.sha256(b"one\n").hexdigest())
    with pytest.raises(BuildError) as caught:
        fetch([good], tmp_path / "cache", print)
    assert caught.value.reason == "BadPackage"
    script.write_text("#!/bin/sh\necho one > one_1_all.deb\n")
    assert [file.read_bytes() for file in fetch([good], tmp_path / "cache", print)] == [b"one\n"]
    script.write_text("#!/bin/sh\nexit 100\n")
    assert [file.read_bytes() for file in fetch([good], tmp_path / "cache", print)] == [b"one\n"]
    (tmp_path / "cache/one_1_all.deb").write_bytes(b"changed")
    with pytest.raises(BuildError) as caught:
        fetch([good], tmp_path / "cache", print)
    assert caught.value.reason == "NoPackageSource"


def test_the_packages_to_install_cover_every_tool() -> None:
    assert set(build.BUILD_TOOLS.values()) <= set(build.BUILD_PACKAGES)


def test_what_goes_into_an_image_decides_whether_it_is_current(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    recipe = msgspec.structs.replace(TINY, sources=(tmp_path,))
    before = build.inputs(recipe)
    assert build.inputs(recipe) == before != build.inputs(TINY)
    (tmp_path / "a.py").write_text("2")
    assert build.inputs(recipe) != before


def test_the_appliances_image_holds_the_sources_of_its_program() -> None:
    names = [folder.name.partition("-")[0] for folder in RECIPES["appliance"].sources]
    assert names == ["node", "yara_x"]


def test_an_image_that_is_not_whole_or_of_other_sources_is_not_current(tmp_path: Path) -> None:
    assert current_image("tiny", tmp_path) is None
    for name in ("tiny.qcow2", "vmlinux", "initrd"):
        (tmp_path / name).touch()
    record = {"name": "tiny", "disk": "tiny.qcow2", "kernel": "vmlinux", "inputs": build.inputs(TINY)}
    (tmp_path / "image.json").write_bytes(msgspec.json.encode(record))
    found = current_image("tiny", tmp_path)
    assert found is not None
    assert found.disk == tmp_path / "tiny.qcow2"
    (tmp_path / "image.json").write_bytes(msgspec.json.encode(record | {"inputs": "other"}))
    assert current_image("tiny", tmp_path) is None


def test_two_that_want_an_image_at_once_build_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    def slowly(recipe: build.Recipe, output: Path, progress: object) -> BuiltImage:
        built.append(recipe.name)
        for name in ("tiny.qcow2", "vmlinux", "initrd"):
            (output / name).touch()
        record = {"name": "tiny", "disk": "tiny.qcow2", "kernel": "vmlinux", "inputs": build.inputs(recipe)}
        (output / "image.json").write_bytes(msgspec.json.encode(record))
        found = current_image("tiny", output)
        assert found is not None
        return found

    monkeypatch.setattr(recipes, "build", slowly)
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: recipes.ensure_image("tiny", print, tmp_path), range(4)))
    assert built == ["tiny"]
    assert images == [images[0]] * 4


def test_an_appliance_with_programs_of_ones_own_is_another_image() -> None:
    first = appliance_with("firewall", {"firewall": b"#!/bin/sh\n"}, ["ethtool"], ["nfsd"])
    again = appliance_with("firewall", {"firewall": b"#!/bin/sh\n"}, ["ethtool"], ["nfsd"])
    others = [
        appliance_with("firewall", {"firewall": b"#!/bin/sh\n# new\n"}, ["ethtool"], ["nfsd"]),
        appliance_with("firewall", {"firewall": b"#!/bin/sh\n"}, [], ["nfsd"]),
        appliance_with("firewall", {"firewall": b"#!/bin/sh\n"}, ["ethtool"]),
        appliance_with("other", {"firewall": b"#!/bin/sh\n"}, ["ethtool"], ["nfsd"]),
    ]
    assert build.inputs(first) == build.inputs(again)
    assert len({build.inputs(one) for one in (first, RECIPES["appliance"], *others)}) == 6
    assert first.files == (("usr/lib/pileus/roles/firewall", b"#!/bin/sh\n"),)


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", "a/b"])
def test_a_role_has_a_plain_name(name: str) -> None:
    with pytest.raises(BuildError):
        appliance_with("firewall", {name: b""})
    with pytest.raises(BuildError):
        appliance_with(name, {})


def test_packages_go_in_as_they_are_but_for_what_people_read(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    for name, text in {"usr/sbin/tool": "x", "usr/share/doc/tool/README": "x", "var/run/tool": "x"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "var/lib/tool").mkdir(parents=True)
    (folder / "usr/sbin/tool").chmod(0o4755)
    (folder / "usr/sbin/other").symlink_to("tool")
    tree = Tree()
    tree.link("var/run", "/run")
    tree.folder("var/lib", 0o700)
    add_whole(tree, folder, tmp_path)
    assert [(entry.path, entry.kind, entry.mode) for entry in tree if not entry.path.startswith("usr/share")] == [
        ("usr", "folder", 0o755),
        ("usr/sbin", "folder", 0o755),
        ("usr/sbin/other", "link", 0o777),
        ("usr/sbin/tool", "file", 0o755),
        ("var", "folder", 0o755),
        ("var/lib", "folder", 0o700),
        ("var/lib/tool", "folder", 0o755),
        ("var/run", "link", 0o777),
    ]
    assert "usr/share/doc/tool/README" not in tree


@pytest.mark.parametrize(
    "words",
    [
        ["tiny", "--program", "a=x", "--name", "b"],
        ["appliance", "--package", "ethtool"],
        ["appliance", "--package", "ethtool", "--name", "tiny"],
        ["appliance", "--program", "firewall", "--name", "b"],
        ["appliance", "--program", "firewall=/no/such", "--name", "b"],
    ],
)
def test_what_makes_no_appliance_of_ones_own_is_said(words: list[str]) -> None:
    result = CliRunner().invoke(image_command, ["build", *words])
    assert result.exit_code == 2, result.output
