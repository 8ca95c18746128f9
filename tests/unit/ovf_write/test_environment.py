"""OVF environments: read back by an XML parser, and from the CD by a program that knows ISO 9660."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pileus.ovf.environment import NAMESPACE, Environment, Platform, environment_iso, environment_of, environment_xml
from pileus.ovf.faults import Faults
from pileus.ovf.iso import iso_image
from pileus.ovf.model import Envelope, Product, Property, PropertyValue, VirtualSystem, VirtualSystemCollection
from pileus.ovf.properties import settings

NS = {"oe": NAMESPACE}
KEY, VALUE, ID = (f"{{{NAMESPACE}}}{name}" for name in ("key", "value", "id"))


def properties(section: ElementTree.Element) -> dict[str, str]:
    return {str(part.get(KEY)): str(part.get(VALUE)) for part in section.findall("oe:Property", NS)}


def unpacked(image: bytes, folder: Path) -> dict[str, bytes]:
    """Return the files on the CD, by path, as xorriso reads them."""
    if shutil.which("xorriso") is None:
        pytest.skip("needs xorriso")
    (folder / "cd.iso").write_bytes(image)
    shutil.rmtree(folder / "out", ignore_errors=True)
    words: list[str | Path] = [
        "xorriso",
        "-osirrox",
        "on",
        "-read_fs",
        "norock",
        "-indev",
        folder / "cd.iso",
        "-extract",
        "/",
        folder / "out",
    ]
    subprocess.run(words, check=True, capture_output=True)
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder / "out")): path.read_bytes() for path in files}


def test_properties_of_a_vm_and_its_siblings_come_back_as_they_were() -> None:
    awkward = {"a": "1", "b.c": "quotes \" and ' & <tags>", "d": "two\nlines\tand\r\nmore", "e": "", "ü": "Zürich 🏔"}
    environment = Environment(id="web <1>", properties=awkward, siblings={"db": {"x": "y"}, "empty": {}})
    root = ElementTree.fromstring(environment_xml(environment))
    assert root.tag == f"{{{NAMESPACE}}}Environment"
    assert root.get(ID) == "web <1>"
    own = root.find("oe:PropertySection", NS)
    assert own is not None
    assert properties(own) == awkward
    entities = {str(part.get(ID)): properties(part[0]) for part in root.findall("oe:Entity", NS)}
    assert entities == {"db": {"x": "y"}, "empty": {}}


def test_the_platform_is_told() -> None:
    platform = Platform(version="1.2", vendor="A & B")
    root = ElementTree.fromstring(environment_xml(Environment(id="x", properties={}, platform=platform)))
    section = root.find("oe:PlatformSection", NS)
    assert section is not None
    assert [part.text for part in section] == ["Pileus", "1.2", "A & B", "en"]


@pytest.mark.parametrize("text", ["a\0b", "\x1b[2J", "\ud800", "\uffff"])
def test_a_value_that_xml_cannot_say_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot be given"):
        environment_xml(Environment(id="x", properties={"a": text}))


def test_the_cd_has_the_environment_and_the_packages_files(tmp_path: Path) -> None:
    environment = Environment(id="x", properties={"a": "b"})
    files = {"etc/app/app.conf": b"key=1\n", "large.bin": bytes(range(256)) * 100, "empty": b""}
    image = environment_iso(environment, files)
    placed = {f"ovffiles/{path}": content for path, content in files.items()}
    assert unpacked(image, tmp_path) == {"ovf-env.xml": environment_xml(environment), **placed}
    assert image[0x8028 : 0x8028 + 7] == b"OVF ENV"
    assert image == environment_iso(environment, files)


def test_many_files_and_names_that_look_alike_are_kept_apart(tmp_path: Path) -> None:
    files = {f"a long name of a file {number}.text": str(number).encode() for number in range(150)}
    files |= {f"folder {number}/same": str(number).encode() for number in range(30)}
    image = iso_image(files, "TEST")
    assert unpacked(image, tmp_path) == files


@pytest.mark.parametrize("path", ["", "a//b", "../a", "a/..", "a;b", "a:b", "x" * 65, "a\\b", "a\0"])
def test_a_path_that_a_cd_cannot_have_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        iso_image({path: b""}, "TEST")


def test_a_vm_is_told_of_itself_its_collection_and_its_siblings() -> None:
    def product(key: str) -> tuple[Product, ...]:
        return (
            Product(
                properties=(
                    Property(key=key, full_key=key, user_configurable=True, values=(PropertyValue(value=f"of {key}"),)),
                )
            ),
        )

    machines = tuple(VirtualSystem(id=name, products=product(name)) for name in ("db", "web"))
    around = VirtualSystemCollection(id="shop", members=machines, products=product("shop"))
    envelope = Envelope(version="1", content=around)
    faults = Faults()
    told = environment_of(envelope, settings(envelope, {"web": "given"}, faults), "web", Platform())
    assert faults.found == ()
    assert told.properties == {"shop": "of shop", "web": "given"}
    assert told.siblings == {"db": {"db": "of db"}}
    alone = Envelope(version="1", content=machines[0])
    assert environment_of(alone, settings(alone, {}, faults), "db", Platform()).siblings == {}
