"""The public addresses that a zone gives out."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from pileus.infra.zone.plan import public_pool
from pileus.infra.zone.types import ZoneDesired
from pileus.kernel.errors import Invalid


def zone(*texts: str) -> ZoneDesired:
    """Return a zone with range, gateway, first and last."""
    range_, gateway, first, last = (*texts, "", "", "", "")[:4]
    return ZoneDesired(public_range=range_, public_gateway=gateway, public_first=first, public_last=last)


@pytest.mark.parametrize(
    ("texts", "gateway", "said", "size"),
    [
        (("203.0.113.0/24",), "203.0.113.1", "203.0.113.2 to 203.0.113.254", 253),
        (("203.0.113.0/30",), "203.0.113.1", "203.0.113.2 to 203.0.113.2", 1),
        (("203.0.113.0/24", "203.0.113.254"), "203.0.113.254", "203.0.113.1 to 203.0.113.253", 253),
        (("203.0.113.0/24", "203.0.113.9"), "203.0.113.9", "203.0.113.10 to 203.0.113.254", 245),
        (("10.0.0.0/8", "", "10.1.0.0", "10.1.0.9"), "10.0.0.1", "10.1.0.0 to 10.1.0.9", 10),
        (("203.0.113.0/24", "203.0.113.9", "", "203.0.113.20"), "203.0.113.9", "203.0.113.10 to 203.0.113.20", 11),
    ],
)
def test_what_is_given_out(texts: tuple[str, ...], gateway: str, said: str, size: int) -> None:
    pool = public_pool(zone(*texts))
    assert pool is not None
    assert (str(pool.gateway), str(pool), pool.size) == (gateway, said, size)
    for number in (pool.low, pool.high):
        assert pool.number(IPv4Address(pool.address(number))) == number


def test_a_zone_without_a_range_gives_nothing_out() -> None:
    assert public_pool(zone()) is None


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        (("x",), "range"),
        (("203.0.113.0",), "range"),
        (("203.0.113.1/24",), "range"),
        (("203.0.113.0/31",), "range"),
        (("127.0.0.0/8",), "range"),
        (("224.0.0.0/8",), "range"),
        (("169.254.0.0/16",), "range"),
        (("", "203.0.113.1"), "gateway"),
        (("", "", "203.0.113.1"), "first"),
        (("203.0.113.0/24", "198.51.100.1"), "gateway"),
        (("203.0.113.0/24", "203.0.113.0"), "gateway"),
        (("203.0.113.0/24", "gate"), "gateway"),
        (("203.0.113.0/24", "", "203.0.114.1"), "first"),
        (("203.0.113.0/24", "", "", "203.0.113.255"), "last"),
        (("203.0.113.0/24", "", "203.0.113.9", "203.0.113.8"), "first"),
        (("203.0.113.0/24", "203.0.113.9", "203.0.113.2", "203.0.113.20"), "gateway"),
    ],
)
def test_what_makes_no_sense_is_refused_naming_the_field(texts: tuple[str, ...], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        public_pool(zone(*texts))
    assert refused.value.field == f"desired.public_{field}"
