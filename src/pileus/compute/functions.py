"""Machines asked for by what they shall do: a function's load becomes vCPUs, memory and disk. Pure.

The model is linear: a base for the guest and its software, and so much more for each unit of load. vCPUs are rounded up,
memory to the next 256 MiB, the disk to the next GiB. The constants are this project's own reckoning for plain software
on one machine, with a third to spare, and no measurement: who knows the software better asks for vcpus and memory_mib.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from msgspec import Struct

from pileus.kernel.errors import Invalid

MEMORY_STEP_MIB = 256


class Amounts(NamedTuple):
    """So much of each resource, in exact parts."""

    vcpus: Fraction
    memory_mib: Fraction
    disk_gib: Fraction


class Resources(Struct, frozen=True, kw_only=True):
    """What a machine gets."""

    vcpus: int
    memory_mib: int
    disk_gib: int


class Function(Struct, frozen=True, kw_only=True):
    """What a function takes."""

    summary: str
    unit: str
    """What one unit of load is."""
    usual: int
    """The load where none is given."""
    most: int
    """The most that one machine shall do: beyond it the model means nothing, and several machines are needed."""
    base: Amounts
    each: Amounts
    """What each unit of load takes beside the base."""
    reckoning: str
    """Why so much."""


def _amounts(vcpus: str, memory_mib: str, disk_gib: str) -> Amounts:
    return Amounts(Fraction(vcpus), Fraction(memory_mib), Fraction(disk_gib))


FUNCTIONS: dict[str, Function] = {
    "web-server": Function(
        summary="Serves pages that a program makes.",
        unit="requests per second",
        usual=100,
        most=20_000,
        base=_amounts("1/2", "384", "8"),
        each=_amounts("1/150", "2", "0"),
        reckoning="each takes 5 ms of a vCPU and 2 MiB of a worker",
    ),
    "static-server": Function(
        summary="Serves files as they are.",
        unit="requests per second",
        usual=500,
        most=100_000,
        base=_amounts("1/2", "256", "8"),
        each=_amounts("1/7500", "1/50", "0"),
        reckoning="each takes 0.1 ms of a vCPU; fifty share a MiB",
    ),
    "database": Function(
        summary="Keeps records and answers questions about them.",
        unit="GiB kept",
        usual=10,
        most=2_000,
        base=_amounts("1", "768", "8"),
        each=_amounts("1/32", "256", "2"),
        reckoning="a quarter is kept in memory; indexes and log take as much disk again; a vCPU for 32 GiB",
    ),
    "cache": Function(
        summary="Keeps values in memory.",
        unit="GiB kept",
        usual=2,
        most=1_000,
        base=_amounts("1", "384", "8"),
        each=_amounts("1/32", "1366", "0"),
        reckoning="keys and gaps take a third more memory than the values; a vCPU for 32 GiB",
    ),
    "batch": Function(
        summary="Computes jobs beside each other.",
        unit="jobs at once",
        usual=1,
        most=256,
        base=_amounts("0", "256", "8"),
        each=_amounts("1", "2048", "10"),
        reckoning="a vCPU, 2 GiB of memory and 10 GiB of scratch for each",
    ),
    "file-server": Function(
        summary="Keeps files for others.",
        unit="GiB kept",
        usual=100,
        most=50_000,
        base=_amounts("1", "512", "8"),
        each=_amounts("1/2000", "2", "11/10"),
        reckoning="a tenth of the disk to spare, 2 MiB of names in memory for each GiB",
    ),
    "queue": Function(
        summary="Takes messages and hands them on.",
        unit="messages per second",
        usual=200,
        most=50_000,
        base=_amounts("1/2", "512", "8"),
        each=_amounts("1/15000", "1/20", "3/32"),
        reckoning="each takes 0.05 ms of a vCPU; the messages of a day, of 1 KiB, lie on the disk",
    ),
    "desktop": Function(
        summary="Gives people a graphical session.",
        unit="people at once",
        usual=1,
        most=64,
        base=_amounts("1", "1024", "20"),
        each=_amounts("1/2", "1536", "5"),
        reckoning="half a vCPU, 1.5 GiB of memory and 5 GiB of own files for each",
    ),
}
"""Functions by name, with what they take."""


def resources_of(function: str, load: int = 0) -> Resources:
    """Return what a machine needs for a function at ``load``, in the function's unit; 0: its usual load.

    Raises: Invalid when there is no such function (it names those that there are), or one machine cannot do so much.
    """
    known = FUNCTIONS.get(function)
    if known is None:
        there = ", ".join(sorted(FUNCTIONS))
        raise Invalid(f"there is no function {function!r}; there are {there}", field="desired.function")
    load = load or known.usual
    if not 1 <= load <= known.most:
        raise Invalid(
            f"a {function} may have 1 to {known.most} {known.unit} on one machine, not {load}; ask for more machines",
            field="desired.load",
        )
    exact = Amounts(*(base + load * each for base, each in zip(known.base, known.each, strict=True)))
    return Resources(
        vcpus=_up(exact.vcpus),
        memory_mib=_up(exact.memory_mib / MEMORY_STEP_MIB) * MEMORY_STEP_MIB,
        disk_gib=_up(exact.disk_gib),
    )


def _up(amount: Fraction) -> int:
    return -(-amount.numerator // amount.denominator)
