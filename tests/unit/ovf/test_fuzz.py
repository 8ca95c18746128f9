"""Whatever the bytes: a package is read or refused with faults, and never anything else."""

from __future__ import annotations

import gzip
import io
import os
import random
import time
from pathlib import Path

import pytest
from tests.unit.ovf import styles
from tests.unit.ovf.descriptors import OVF2, collection, envelope, hardware, system
from tests.unit.ovf.packages import DISK_BYTES, FILES, NAME, NOW, Signer, file_of, manifest, tar

from pileus.ovf.faults import OvfFault
from pileus.ovf.package import open_package, open_stream
from pileus.ovf.properties import settings
from pileus.ovf.signature import Trust
from pileus.ovf.summary import summary
from pileus.ovf.validation import validate

SECONDS = 3.0
SIGNER = Signer("fuzz")
TRUST = Trust(at=NOW, roots=(SIGNER.certificate,))

PRODUCT = (
    '<ProductSection ovf:class="c"><Info/><Product>P</Product><Property ovf:key="k" ovf:type="uint8" ovf:value="1" '
    'ovf:qualifiers="MinLen(1) ValueMap{&quot;1&quot;}" ovf:userConfigurable="true"><Label>L</Label></Property>'
    "</ProductSection>"
    "<EulaSection><Info/><License>be nice</License></EulaSection>"
)
RICH = collection(
    "all", '<StartupSection><Item ovf:id="vm" ovf:order="1"/></StartupSection>' + system("vm", hardware(), more=PRODUCT)
)
STYLES = [text.encode() for text in (styles.VSPHERE, styles.VIRTUALBOX, styles.XEN, styles.COMPOSED)]
DESCRIPTORS = [envelope(RICH), envelope(namespace=OVF2), envelope(system("vm", hardware(), more=PRODUCT)), *STYLES]
WORDS = [
    b"-1", b"0", b"99999999999999999999", b"${k}", b"../", b"%2e", b"\x00", b"\xff\xfe", b"<", b">", b"&", b'"', b"ovf:", b"",
    b"<!DOCTYPE a>", b"]]>", b"<a>", b"</VirtualSystem>", b"ovf:required='false'", b"e1000", b"\xf0\x9f\x98\x80", b"^", b"(",
]  # fmt: skip


def mutated(text: bytes, chance: random.Random) -> bytes:
    """Return ``text`` with some bytes changed, cut, doubled or replaced by words."""
    out = bytearray(text)
    for _ in range(chance.randint(1, 6)):
        if not out:
            break
        start = chance.randrange(len(out))
        end = min(len(out), start + chance.choice((0, 1, 2, 8, 40, 512)))
        way = chance.randrange(5)
        if way == 0:
            out[start:end] = chance.randbytes(end - start)
        elif way == 1:
            del out[start:end]
        elif way == 2:
            out[end:end] = out[start:end]
        elif way == 3:
            out[start:end] = chance.choice(WORDS)
        else:
            del out[start:]
    return bytes(out)


def read(archive: bytes, path: Path) -> None:
    """Read an archive in all ways. Raises: anything but OvfFault is a defect."""
    path.write_bytes(archive)
    for stored in (True, False):
        try:
            with (
                open_package(path, trust=TRUST) if stored else open_stream(io.BytesIO(archive), trust=TRUST) as package
            ):
                summary(package)
                settings(package.envelope, {"c.k": "1"}, package.faults)
                validate(package)
                found = package.faults.found
        except OvfFault as fault:
            found = fault.faults
        assert all(str(one) and one.code for one in found)


def seeds() -> list[int]:
    given = os.environ.get("PILEUS_SEED")
    return [int(given)] if given else [random.SystemRandom().getrandbits(32)]


@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize("target", ["descriptor", "archive", "manifest", "certificate", "gzip"])
def test_nothing_but_faults_comes_of_changed_bytes(target: str, seed: int, tmp_path: Path) -> None:
    print(f"seed {seed}: PILEUS_SEED={seed} repeats it")
    chance = random.Random(f"{seed} {target}")
    path = tmp_path / "x.ova"
    listed = manifest(FILES)
    whole = tar(FILES | {"x.mf": listed, "x.cert": SIGNER.sign(listed)})
    packed = gzip.compress(DISK_BYTES)
    text = envelope(files=file_of(packed, 'ovf:compression="gzip"'))
    ended = time.monotonic() + SECONDS / 2
    count = 0
    while time.monotonic() < ended:
        count += 1
        if target == "descriptor":
            archive = tar(FILES | {NAME: mutated(chance.choice(DESCRIPTORS), chance)})
        elif target == "manifest":
            archive = tar({NAME: FILES[NAME], "x.mf": mutated(listed, chance), "disk1.vmdk": DISK_BYTES})
        elif target == "certificate":
            archive = tar(FILES | {"x.mf": listed, "x.cert": mutated(SIGNER.sign(listed), chance)})
        elif target == "gzip":
            archive = tar({NAME: text, "disk1.vmdk": mutated(packed, chance)})
        else:
            archive = mutated(whole, chance)
        read(archive, path)
    assert count > 20
