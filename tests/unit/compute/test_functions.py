"""What a machine needs for what it shall do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pileus.compute.functions import FUNCTIONS, MEMORY_STEP_MIB, Resources, resources_of
from pileus.compute.offering.types import OfferingDesired
from pileus.kernel.errors import Invalid

PAGE = Path(__file__).parents[3] / "docs/concepts/functions.md"


@pytest.mark.parametrize(
    ("function", "load", "vcpus", "memory_mib", "disk_gib"),
    [
        ("web-server", 500, 4, 1536, 8),
        ("web-server", 0, 2, 768, 8),
        ("web-server", 1, 1, 512, 8),
        ("static-server", 7500, 2, 512, 8),
        ("database", 100, 5, 26368, 208),
        ("cache", 2, 2, 3328, 8),
        ("batch", 8, 8, 16640, 88),
        ("file-server", 1000, 2, 2560, 1108),
        ("queue", 200, 1, 768, 27),
        ("desktop", 0, 2, 2560, 25),
    ],
)
def test_the_model_s_numbers(function: str, load: int, vcpus: int, memory_mib: int, disk_gib: int) -> None:
    assert resources_of(function, load) == Resources(vcpus=vcpus, memory_mib=memory_mib, disk_gib=disk_gib)


@given(st.sampled_from(sorted(FUNCTIONS)), st.data())
def test_more_load_never_takes_less_and_rounding_adds_less_than_a_step(function: str, data: st.DataObject) -> None:
    known = FUNCTIONS[function]
    less, more = sorted(data.draw(st.lists(st.integers(1, known.most), min_size=2, max_size=2)))
    small, large = resources_of(function, less), resources_of(function, more)
    assert small.vcpus <= large.vcpus
    assert small.memory_mib <= large.memory_mib
    assert small.disk_gib <= large.disk_gib
    exact = [base + more * each for base, each in zip(known.base, known.each, strict=True)]
    assert 0 <= large.vcpus - exact[0] < 1
    assert 0 <= large.memory_mib - exact[1] < MEMORY_STEP_MIB
    assert 0 <= large.disk_gib - exact[2] < 1


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
def test_a_vm_may_have_what_the_largest_load_needs(function: str) -> None:
    most = resources_of(function, FUNCTIONS[function].most)
    size = {"vcpus": most.vcpus, "memory_mib": most.memory_mib, "disk_gib": most.disk_gib}
    assert msgspec.convert(size, OfferingDesired) == OfferingDesired(**size)
    assert 1 <= FUNCTIONS[function].usual <= FUNCTIONS[function].most


def test_the_page_says_the_constants_of_the_model() -> None:
    lines = PAGE.read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    units = ("vCPU", "MiB", "GiB")
    assert rows == [
        [
            f"`{name}`",
            each.unit,
            str(each.usual),
            str(each.most),
            *(
                ", ".join(f"{x} {unit}" for x, unit in zip(part, units, strict=True) if x)
                for part in (each.base, each.each)
            ),
            each.reckoning,
        ]
        for name, each in FUNCTIONS.items()
    ]


def test_what_is_no_function_is_answered_with_those_that_are() -> None:
    with pytest.raises(Invalid) as refused:
        resources_of("webserver")
    assert refused.value.field == "desired.function"
    assert refused.value.message == (
        "there is no function 'webserver'; there are batch, cache, database, desktop, file-server, queue, static-server, "
        "web-server"
    )


@pytest.mark.parametrize("load", [-1, 20_001])
def test_more_than_one_machine_can_do_is_refused(load: int) -> None:
    with pytest.raises(Invalid) as refused:
        resources_of("web-server", load)
    assert refused.value.field == "desired.load"
    assert refused.value.message == (
        f"a web-server may have 1 to 20000 requests per second on one machine, not {load}; ask for more machines"
    )
