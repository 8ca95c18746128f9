"""Taking an OVA in and writing one out, against sha256sum and qemu-img on the same files, in turns; and what it takes.

Taking in is everything at once: the archive is read forward only, its digest compared with the manifest, the disk
inflated and written sparse as qcow2. Writing out is a raw disk into an archive with its manifest. Both run
in an interpreter of their own, whose start is counted, and whose memory at its peak is asked of the kernel. Each value
is the fastest turn, because other work on the machine only ever adds; what was written before is on the disk by then.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.clouds import folder
from benchmarks.report import Report, Result, ratio
from pileus.ovf.digests import Digests

BAR = 0.8
MEMORY_MIB_MAX = 100
SEED = 4
MIB = 1024**2
PIECE = 16 * MIB
CAPACITY = 8 * 1024**3


def run(report: Report, *, quick: bool) -> None:
    """Measure."""
    filled_mib, turns = (256, 3) if quick else (1024, 5)
    if shutil.which("qemu-img") is None:
        report.say("ovf: left out; qemu-img is not installed")
        return
    report.say(f"ovf: a disk of 8 GiB with {filled_mib} MiB, seed {SEED}; {turns} turns")
    with folder("ovf") as where:
        fill(where / "disk.raw", filled_mib)
        taken = [_turn(where) for _ in range(turns)]
        seconds = {name: min(turn[name] for turn in taken) for name in taken[0]}
        stored_mib = (where / "package.ova").stat().st_size / MIB
        slower = max(seconds["sha256sum"], seconds["qemu-img to qcow2"])
        words = f"the slower of sha256sum {seconds['sha256sum']:.1f} s, qemu-img {seconds['qemu-img to qcow2']:.1f} s"
        _add(report, "ovf: import of an OVA", stored_mib / seconds["import"], slower / seconds["import"], words)
        words = f"qemu-img convert to streamOptimized: {seconds['qemu-img to vmdk']:.1f} s"
        rate = ratio(seconds["qemu-img to vmdk"], seconds["export"]) or 0.0
        _add(report, "ovf: export of an OVA", filled_mib / seconds["export"], rate, words)
        for name, other in (("import", "qemu-img to qcow2"), ("export", "qemu-img to vmdk")):
            cpu, reference = seconds[f"{name} CPU"], seconds[f"{other} CPU"]
            words = f"{other}: {reference:.1f} s of CPU, sha256sum {seconds['sha256sum CPU']:.1f} s"
            report.add(
                Result(name=f"ovf: CPU of an {name}", value=cpu, unit="s", ratio=cpu / reference, reference=words)
            )
            peak = max(turn[f"{name} MiB"] for turn in taken)
            report.add(Result(name=f"ovf: memory of an {name}", value=peak, unit="MiB", bar=MEMORY_MIB_MAX))


def _add(report: Report, name: str, value: float, ratio: float, words: str) -> None:
    report.add(Result(name=name, value=value, unit="MiB/s", ratio=ratio, reference=words))
    report.add(Result(name=f"{name}: part of the reference", value=ratio, unit="", bar=BAR, at_least=True))


def fill(disk: Path, filled_mib: int) -> None:
    """Write a sparse disk: three quarters of what is in it are random, the rest is text and random in turns."""
    chance = random.Random(SEED)
    pieces = filled_mib * MIB // PIECE
    with disk.open("wb") as file:
        file.truncate(CAPACITY)
        for number in range(pieces):
            file.seek(number * (CAPACITY // pieces))
            if number % 4:
                file.write(chance.randbytes(PIECE))
            else:
                file.write((chance.randbytes(2048) + b"words" * 410)[:4096] * (PIECE // 4096))


def _turn(where: Path) -> dict[str, float]:
    """Return the seconds of everything, and peaks of memory."""
    taken: dict[str, float] = {}
    for name in ("package.ova", "disk.vmdk", "made.qcow2", "by-qemu.vmdk", "by-qemu.qcow2"):
        (where / name).unlink(missing_ok=True)

    def measure(name: str, *words: str | Path) -> str:
        os.sync()
        began, used = time.perf_counter(), _cpu_s()
        said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        taken[name] = time.perf_counter() - began
        taken[f"{name} CPU"] = _cpu_s() - used
        return said

    ours = (sys.executable, "-m", "benchmarks.ovf")
    taken["export MiB"] = float(measure("export", *ours, "export", where / "disk.raw", where / "package.ova"))
    to_vmdk = ("-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized")
    measure("qemu-img to vmdk", "qemu-img", "convert", *to_vmdk, where / "disk.raw", where / "by-qemu.vmdk")
    with tarfile.open(where / "package.ova") as archive:
        archive.extract("bench-disk1.vmdk", where, filter="data")
    taken["import MiB"] = float(measure("import", *ours, "import", where / "package.ova", where / "made.qcow2"))
    vmdk = where / "bench-disk1.vmdk"
    measure("qemu-img to qcow2", "qemu-img", "convert", "-f", "vmdk", "-O", "qcow2", vmdk, where / "by-qemu.qcow2")
    measure("sha256sum", "sha256sum", where / "package.ova")
    compared = ("-f", "raw", "-F", "qcow2", where / "disk.raw", where / "made.qcow2")
    measure("qemu-img compare", "qemu-img", "compare", *compared)
    return taken


def _cpu_s() -> float:
    """Return what all ended children used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _export(raw: Path, out: Path) -> None:
    from pileus.ovf.archiving import write_archive
    from pileus.ovf.describing import Appliance
    from pileus.ovf.exporting import pack_disk, package
    from pileus.ovf.model import Machine, MachineDisk

    disk = MachineDisk(disk_id="root", capacity_bytes=CAPACITY, bus="virtio")
    packed = pack_disk(raw, out.with_suffix(".packed"))
    machine = Machine(id="bench", name="bench", vcpus=2, memory_mib=1024, disks=(disk,))
    with out.open("wb") as file:
        write_archive(file.write, package(Appliance(id="bench", machines=(machine,)), {"root": packed}))
    packed.path.unlink()


def _import(ova: Path, out: Path) -> None:
    from pileus.ovf.disks import Wanted, receive
    from pileus.ovf.faults import Faults
    from pileus.ovf.limits import DEFAULT
    from pileus.ovf.manifest import read_manifest
    from pileus.ovf.tar import members

    faults, manifest = Faults(), b""
    with ova.open("rb", buffering=0) as stream:
        for member in members(stream, faults, DEFAULT):
            if member.name.endswith(".mf"):
                manifest = b"".join(member.chunks())
            if not member.name.endswith(".vmdk"):
                continue
            digests = Digests(["SHA256"])
            receive(_digested(member.chunks(), digests), out, Wanted(format="vmdk"), lambda *_: None)
            (listed,) = read_manifest("x.mf", manifest, faults).listed(member.name)
            assert digests.finish()["SHA256"] == listed.digest


def _digested(chunks: Iterator[bytes], digests: Digests) -> Iterator[bytes]:
    for chunk in chunks:
        digests.update(chunk)
        yield chunk


def main() -> None:
    """Do one part in this interpreter and print its peak of memory in MiB."""
    what, source, target = sys.argv[1:]
    {"export": _export, "import": _import}[what](Path(source), Path(target))
    # Not ru_maxrss, which counts what the parent had before this became a program of its own.
    status = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024)


if __name__ == "__main__":
    main()
