"""What tries to cost much or to reach out: a clear refusal each, in less than 50 MB and a second.

Each case runs in a process of its own, forked off, which says its faults, its processor time and its largest memory.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.unit.ovf.descriptors import DISK, drive, envelope, hardware, system
from tests.unit.ovf.packages import DISK_BYTES, FILES, NAME, TEXT, file_of, manifest, special, tar, vmdk

MEMORY_BYTES_MAX = 50_000_000
SECONDS_MAX = 1.0

_CHILD = """
import json, os, resource, sys
from pathlib import Path
import pileus.ovf.certificate
from pileus.ovf.faults import OvfFault
from pileus.ovf.package import open_package, open_stream
from pileus.ovf.validation import validate


def judge(way, path):
    began = resource.getrusage(resource.RUSAGE_SELF)
    try:
        with open_stream(open(path, "rb")) if way == "stream" else open_package(Path(path)) as package:
            validate(package)
            faults = package.faults.found
    except OvfFault as fault:
        faults = fault.faults
    ended = resource.getrusage(resource.RUSAGE_SELF)
    seconds = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    codes = [fault.code for fault in faults if fault.severity == "error"]
    # Not ru_maxrss, which begins with that of the process that forked this one.
    peak = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps([codes, seconds, peak, str(faults[0]) if faults else ""]), flush=True)


for line in sys.stdin:
    if os.fork() == 0:
        judge(*line.rstrip().split(" ", 1))
        os._exit(0)
    os.wait()
"""

Cost = tuple[list[str], float, int, str]


class Judge:
    """A process that has everything loaded and forks one for each package."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": "src"},
        )

    def cost(self, path: Path, way: str = "file") -> Cost:
        """Return codes, seconds of processor time, largest resident memory in bytes, and the first message."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{way} {path}\n")
        self._child.stdin.flush()
        codes, seconds, memory, message = json.loads(self._child.stdout.readline())
        return codes, seconds, memory, message

    def close(self) -> None:
        self._child.communicate(timeout=10)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    found = Judge()
    yield found
    found.close()


def with_file(attributes: str, content: bytes = DISK_BYTES) -> bytes:
    return tar({NAME: envelope(files=f'<File ovf:id="f1" {attributes}/>'), "disk1.vmdk": content})


def href(name: str) -> bytes:
    return with_file(f'ovf:href="{name}" ovf:size="3"')


def text(descriptor: bytes) -> bytes:
    return tar({NAME: descriptor, "disk1.vmdk": DISK_BYTES})


def doctype(declared: str) -> bytes:
    return text(TEXT.replace(b"<Envelope", f"<!DOCTYPE Envelope [{declared}]><Envelope".encode(), 1))


def inner(content: str) -> bytes:
    return text(TEXT.replace(b"<References>", content.encode() + b"<References>", 1))


@functools.cache
def zeros(count: int) -> bytes:
    """Return a gzip of that many zeros."""
    packer = zlib.compressobj(9, wbits=31)
    out = [packer.compress(bytes(1 << 20)) for _ in range(count >> 20)]
    return b"".join((*out, packer.flush()))


def packed(content: bytes, name: str = "disk1.vmdk", disks: str = DISK) -> bytes:
    return tar({NAME: envelope(files=file_of(content, 'ovf:compression="gzip"', name), disks=disks), name: content})


def overlapping() -> bytes:
    """Return a zip that unpacks to far more than it is."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.ovf", bytes(64 << 20))
    return out.getvalue()


def with_pax(records: bytes) -> bytes:
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, len(records)
    block = member.tobuf(tarfile.USTAR_FORMAT)
    return block + records + bytes(-len(records) % 512) + tar({"y": b"1"})


def extended(size: int) -> bytes:
    """Return the header of a long name of that size."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, size
    return member.tobuf(tarfile.GNU_FORMAT)


def sized(field: bytes, name: str = "disk1.vmdk") -> bytes:
    """Return an archive with a size field as given, its checksum right."""
    block = bytearray(special(name, tarfile.REGTYPE))
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return TEXT_ONLY + bytes(block) + bytes(1024)


def declarations(count: int) -> str:
    return " ".join(f'xmlns:a{number}="{number}"' for number in range(count))


FILE, FILE_AGAIN = file_of(DISK_BYTES), file_of(DISK_BYTES, "", "./disk1.vmdk", "f2")
REMOTE_DTD = b'<!DOCTYPE Envelope SYSTEM "http://10.0.0.1/x.dtd">'
LONG = vmdk(1 << 40)
OF_LONG = envelope(files=file_of(LONG))
OPTIONS = "<DeploymentOptionSection>" + '<Configuration ovf:id="a"/>' * 900 + "</DeploymentOptionSection>"
MANY_ITEMS = system("vm", hardware(drive(4) * 900))
LINES = b"".join(b"SHA1(%d)= %040d\n" % (number, number) for number in range(18_000)) + manifest({NAME: b"other"})
LONG_DISK = DISK.replace('"16"', f'"{1 << 42}"')
TEXT_ONLY = tar({NAME: TEXT})[: 512 + -(-len(TEXT) // 512) * 512]

ARCHIVES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a href that climbs": ("climbing-name", lambda: href("../../../etc/passwd")),
    "a href that climbs in the middle": ("climbing-name", lambda: href("a/../../b")),
    "a href that climbs by backslash": ("climbing-name", lambda: href("..\\b")),
    "a href that climbs by percent": ("climbing-name", lambda: href("%2e%2e%2fpasswd")),
    "an absolute href": ("absolute-name", lambda: href("/etc/passwd")),
    "an absolute href by percent": ("absolute-name", lambda: href("%2Fetc%2Fpasswd")),
    "a href with a drive": ("absolute-name", lambda: href("C:\\disk.vmdk")),
    "a URL": ("url", lambda: href("http://10.0.0.1/disk.vmdk")),
    "a file URL": ("url", lambda: href("file:///etc/passwd")),
    "a NUL by percent": ("bad-name", lambda: href("disk%00.vmdk")),
    "a control character": ("bad-name", lambda: href("disk&#9;1.vmdk")),
    "a long href": ("name-too-long", lambda: href("a" * 2000)),
    "an empty href": ("missing-attribute", lambda: href("")),
    "a member that climbs": ("climbing-name", lambda: tar(FILES | {"../x": b"1"})),
    "an absolute member": ("absolute-name", lambda: tar(FILES | {"/etc/cron.d/x": b"1"})),
    "a link": ("not-a-file", lambda: special("disk1.vmdk", tarfile.SYMTYPE, "/etc/passwd") + tar(FILES)),
    "a hard link": ("not-a-file", lambda: special("disk1.vmdk", tarfile.LNKTYPE, "x") + tar(FILES)),
    "a device": ("not-a-file", lambda: special("disk1.vmdk", tarfile.BLKTYPE) + tar(FILES)),
    "a FIFO": ("not-a-file", lambda: special("disk1.vmdk", tarfile.FIFOTYPE) + tar(FILES)),
    "a sparse file": ("not-a-file", lambda: special("disk1.vmdk", tarfile.GNUTYPE_SPARSE) + tar(FILES)),
    "a sparse file by PAX": ("not-a-file", lambda: with_pax(b"22 GNU.sparse.major=1\n")),
    "a name by PAX that climbs": ("climbing-name", lambda: with_pax(b"13 path=../x\n")),
    "a name by PAX with a NUL": ("bad-name", lambda: with_pax(b"12 path=a\0b\n")),
    "a size by PAX that is negative": ("bad-tar", lambda: with_pax(b"11 size=-9\n")),
    "a PAX record of a wrong length": ("bad-tar", lambda: with_pax(b"99999 path=x\n")),
    "a member twice": ("duplicate-member", lambda: tar([*FILES.items(), ("disk1.vmdk", b"other")])),
    "a member twice by another spelling": ("duplicate-member", lambda: tar([*FILES.items(), ("./disk1.vmdk", b"other")])),
    "a member's long name": ("name-too-long", lambda: tar(FILES | {"a" * 2000: b""}, tarfile.GNU_FORMAT)),
    "an extended header of a GiB": ("bad-tar", lambda: extended(1 << 30)),
    "many extended headers": ("bad-tar", lambda: extended(0) * 50),
    "many members": ("too-many-members", lambda: tar({NAME: TEXT} | {f"m{number}": b"" for number in range(10_001)})),
    "a negative size": ("bad-tar", lambda: sized(b"\xff" * 12)),
    "a size of 2^63": ("member-too-big", lambda: sized(b"\x80" + (1 << 63).to_bytes(11, "big"))),
    "a size that is none": ("bad-tar", lambda: sized(b"12345678x90\0")),
    "a size beyond the end": ("truncated", lambda: sized(b"77777777777\0")),
    "an archive cut in a member": ("truncated", lambda: tar(FILES)[: len(TEXT_ONLY) + 600]),
    "an archive cut in a header": ("truncated", lambda: tar(FILES)[: len(TEXT_ONLY) + 100]),
    "a damaged header": ("bad-tar", lambda: TEXT_ONLY + b"x" * 512),
    "nothing": ("empty", lambda: b""),
    "an empty archive": ("no-descriptor", lambda: bytes(10240)),
    "a negative size of a file": ("bad-value", lambda: with_file('ovf:href="disk1.vmdk" ovf:size="-1"')),
    "a file's size of 2^63": ("bad-value", lambda: with_file(f'ovf:href="disk1.vmdk" ovf:size="{1 << 63}"')),
    "a file's size of thousand digits": ("bad-value", lambda: with_file(f'ovf:href="disk1.vmdk" ovf:size="{"9" * 1000}"')),
    "a wrong size of a file": ("size-differs", lambda: with_file('ovf:href="disk1.vmdk" ovf:size="5"')),
    "two files of one href": ("duplicate-href", lambda: text(envelope(files=FILE + FILE_AGAIN))),
    "a flood of chunks": ("bad-chunks", lambda: with_file('ovf:href="disk1.vmdk" ovf:size="99999999" ovf:chunkSize="1"')),
    "a long descriptor": ("descriptor-too-big", lambda: inner("<!--" + "x" * (17 << 20) + "-->")),
    "a long text": ("descriptor-too-big", lambda: inner(f"<Info>{'x' * (9 << 20)}</Info>")),
    "long texts of wide characters": ("descriptor-too-big", lambda: inner(f"<a>\U0001f600{'x' * 900_000}</a>" * 16)),
    "a long attribute": ("descriptor-too-big", lambda: inner(f'<Info a="{"x" * (9 << 20)}"/>')),
    "many attributes": ("descriptor-too-big", lambda: inner("<a " + " ".join(f'a{n}="1"' for n in range(300_000)) + "/>")),
    "many names": ("descriptor-too-big", lambda: inner("".join(f"<n{n}/>" for n in range(99_000)))),
    "many attributes' names": ("descriptor-too-big", lambda: inner("".join(f'<n a{n}="1" b{n}="1"/>' for n in range(99_000)))),
    "many namespaces": ("descriptor-too-big", lambda: inner(f"<a {declarations(30_000)}/>")),
    "many elements": ("descriptor-too-big", lambda: inner("<a/>" * 4_000_000)),
    "many elements with attributes": ("descriptor-too-big", lambda: inner('<a b="1234567890"/>' * 800_000)),
    "deep nesting": ("too-deep", lambda: inner("<a>" * 100_000 + "</a>" * 100_000)),
    "entities that grow": ("doctype", lambda: doctype('<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">')),
    "an entity out of a file": ("doctype", lambda: doctype('<!ENTITY a SYSTEM "file:///etc/passwd">')),
    "a DTD from elsewhere": ("doctype", lambda: text(TEXT.replace(b"<Env", REMOTE_DTD + b"<Env", 1))),
    "an encoding that is none": ("bad-encoding", lambda: text(TEXT.replace(b"UTF-8", b"klingon"))),
    "a descriptor that is not XML": ("bad-xml", lambda: text(b"\x7fELF" + bytes(5000))),
    "another XML": ("no-envelope", lambda: text(b"<svg xmlns='http://www.w3.org/2000/svg'/>")),
    "a long manifest": ("too-big", lambda: tar({NAME: TEXT, "x.mf": b"SHA1(x)= 00\n" * 500_000, "disk1.vmdk": DISK_BYTES})),
    "a manifest of rubbish": ("too-many-faults", lambda: tar(FILES | {"x.mf": b")=\n" * 200_000})),
    "a gzip bomb as a disk": ("unpacks-too-far", lambda: packed(gzip.compress(DISK_BYTES) + zeros(64 << 20) * 64)),
    "a gzip bomb as a file": ("unpacks-too-far", lambda: packed(zeros(64 << 20) * 16, "x.iso", "")),
    "a gzip of a gzip": ("format-differs", lambda: packed(gzip.compress(zeros(64 << 20)))),
    "a flood of gzip streams": ("damaged", lambda: packed(gzip.compress(vmdk()) + gzip.compress(b"") * 400_000)),
    "a zip bomb": ("wrapped", overlapping),
    "a gzip around it": ("wrapped", lambda: zeros(64 << 20) * 16),
    "an xz around it": ("wrapped", lambda: b"\xfd7zXZ\x00" + bytes(2000)),
    "a disk of 1 TiB": ("capacity-differs", lambda: tar(FILES | {NAME: OF_LONG, "disk1.vmdk": LONG})),
    "a disk of 2^62 bytes": ("capacity-too-big", lambda: text(envelope(files=FILE, disks=LONG_DISK))),
    "many disks": ("too-many-parts", lambda: text(envelope(files=FILE, disks='<Disk ovf:diskId="d"/>' * 30_000))),
    "many properties": ("too-many-parts", lambda: qualified("MinLen(1)", 20_000)),
    "many items": ("too-many-parts", lambda: text(envelope(system("vm", hardware(drive(4) * 1500))))),
    "many items and options": ("too-many-parts", lambda: text(envelope(MANY_ITEMS, sections=OPTIONS))),
    "many wide lines": ("too-big", lambda: tar(FILES | {"x.mf": "SHA1(\U0001f600)= 00\n".encode() * 99_000})),
    "many sound lines": ("digest-differs", lambda: tar({NAME: TEXT, "x.mf": LINES, "disk1.vmdk": DISK_BYTES})),
    "many unknown sections": ("too-many-faults", lambda: inner("<FooSection/>\n" * 20_000)),
    "qualifiers without an end": ("bad-qualifiers", lambda: qualified('ValueMap{"' * 20_000)),
    "many long qualifiers": ("descriptor-too-big", lambda: qualified('a("' * 2000, 4000)),
}  # fmt: skip


def qualified(qualifiers: str, count: int = 1) -> bytes:
    escaped = qualifiers.replace('"', "&quot;")
    one = f'<Property ovf:key="k" ovf:type="string" ovf:qualifiers="{escaped}"/>'
    product = f"<ProductSection>{one * count}</ProductSection>"
    return text(envelope(system("vm", hardware(), more=product), files=file_of(DISK_BYTES)))


@pytest.mark.parametrize("case", list(ARCHIVES))
def test_what_is_hostile_is_refused_and_costs_little(case: str, judge: Judge, tmp_path: Path) -> None:
    expected, build = ARCHIVES[case]
    path = tmp_path / "x.ova"
    path.write_bytes(build())
    for way in ("file", "stream"):
        codes, seconds, memory, message = judge.cost(path, way)
        assert expected in codes, (way, codes, message)
        assert memory < MEMORY_BYTES_MAX, (way, memory >> 20)
        assert seconds < SECONDS_MAX, (way, seconds)


def test_a_sparse_disk_of_a_tebibyte_costs_nothing_to_look_at(judge: Judge, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.truncate(1 << 40)
    disk = tmp_path / "disk1.vmdk"
    line: list[str | Path] = [
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "vmdk",
        "-o",
        "subformat=streamOptimized",
        raw,
        disk,
    ]
    subprocess.run(line, check=True, capture_output=True)
    size = f'<File ovf:id="f1" ovf:href="disk1.vmdk" ovf:size="{disk.stat().st_size}"/>'
    capacity = DISK.replace('"16"', '"1048576"')
    (tmp_path / NAME).write_bytes(envelope(files=size, disks=capacity))
    codes, seconds, memory, _ = judge.cost(tmp_path / NAME)
    assert codes == []
    assert memory < MEMORY_BYTES_MAX
    assert seconds < SECONDS_MAX
    (tmp_path / NAME).write_bytes(envelope(files=size))
    codes, seconds, memory, message = judge.cost(tmp_path / NAME)
    assert codes == ["capacity-differs"], message
    assert seconds < SECONDS_MAX


def test_an_honest_package_costs_no_more_memory_than_a_hostile_one(judge: Judge, tmp_path: Path) -> None:
    content = vmdk(rest=bytes(40 << 20))
    disk = DISK.replace('"16"', '"64"')
    content = content[:12] + ((64 << 20) // 512).to_bytes(8, "little") + content[20:]
    files = {NAME: envelope(files=file_of(content), disks=disk), "disk1.vmdk": content}
    path = tmp_path / "x.ova"
    path.write_bytes(tar(files | {"x.mf": manifest(files)}))
    for way in ("file", "stream"):
        codes, _, memory, message = judge.cost(path, way)
        assert codes == [], message
        assert memory < MEMORY_BYTES_MAX
