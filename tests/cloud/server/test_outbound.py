"""What goes out to addresses that users gave: to whom it is sent and to whom never, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from tests.receiver import NAME, Receiver, receiving

from pileus.kernel.addresses import is_public
from pileus.kernel.errors import Transient
from pileus.kernel.outbound import LOOKUPS_MAX, Internet

pytestmark = pytest.mark.anyio

PUBLIC = "198.41.0.4"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[Receiver]:
    """A receiver on the loopback."""
    async with receiving(tmp_path) as it:
        yield it


class Names(AbstractResolver):
    """Gives each answer once, and then the last."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        kind = socket.AF_INET6 if ":" in answer else socket.AF_INET
        return [ResolveResult(hostname=host, host=answer, port=port, family=kind, proto=0, flags=0)]

    async def close(self) -> None:
        raise AssertionError("it is lent")


async def test_what_an_operator_wrote_may_be_local_and_its_authority_is_trusted(receiver: Receiver) -> None:
    async with Internet().open("any", receiver.ca) as poster:
        for number in range(3):
            assert await poster.post(receiver.url, b"x", {"webhook-id": str(number)}) == 204
    assert receiver.ids == ["0", "1", "2"]
    assert len(receiver.connections) == 1, "the connection is kept"


async def test_a_certificate_of_nobody_known_or_for_another_name_is_refused(receiver: Receiver) -> None:
    async with Internet().open("any", "") as poster:
        with pytest.raises(Transient, match="certificate is not trusted"):
            await poster.post(receiver.url, b"x", {})
    async with Internet(Names("127.0.0.1")).open("any", receiver.ca) as poster:
        assert await poster.post(f"https://{NAME}:{receiver.port}/", b"x", {}) == 204
        with pytest.raises(Transient, match="certificate is not trusted"):
            await poster.post(f"https://other.example.com:{receiver.port}/", b"x", {})
    assert len(receiver.came) == 1


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fd00:ec2::254", "224.0.0.1",
                "64:ff9b::7f00:1", "168.63.129.16", "0.0.0.0", "100.100.100.200"]
)  # fmt: skip
async def test_what_a_tenant_wrote_never_leads_inside(receiver: Receiver, address: str) -> None:
    literal = f"[{address}]" if ":" in address else address
    for internet, host in ((Internet(), literal), (Internet(Names(address)), NAME)):
        async with internet.open("public", receiver.ca) as poster:
            with pytest.raises(Transient, match="private network"):
                await poster.post(f"https://{host}:{receiver.port}/", b"x", {})
    assert receiver.came == []


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f000001", "127.1"])
async def test_no_spelling_of_the_loopback_is_connected_to(receiver: Receiver, host: str) -> None:
    async with Internet().open("public", receiver.ca) as poster:
        with pytest.raises(Transient):
            await poster.post(f"https://{host}:{receiver.port}/", b"x", {})
    assert receiver.came == []


async def test_a_name_that_is_public_when_asked_first_and_local_then_is_not_followed(receiver: Receiver) -> None:
    names = Names(PUBLIC, "127.0.0.1")
    assert (await names.resolve(NAME))[0]["host"] == PUBLIC  # what a check beforehand would have seen
    async with Internet(names).open("public", receiver.ca) as poster:
        with pytest.raises(Transient, match="private network"):
            await poster.post(f"https://{NAME}:{receiver.port}/", b"x", {})
    assert (names.asked, receiver.came) == (2, [])


async def test_plain_http_redirects_proxies_and_long_answers_lead_nowhere(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    async with Internet().open("public", "") as poster:
        with pytest.raises(Transient, match="only https"):
            await poster.post(f"http://{NAME}/", b"x", {})
    async with Internet().open("any", receiver.ca) as poster:
        receiver.status, receiver.headers = 307, {"location": f"https://127.0.0.1:{receiver.port}/elsewhere"}
        assert await poster.post(receiver.url, b"x", {}) == 307
        receiver.status, receiver.headers, receiver.body = 200, {"set-cookie": "a=b"}, b"x" * 5_000_000
        for _ in range(2):
            assert await poster.post(receiver.url, b"x", {}) == 200
    assert len(receiver.came) == 3
    assert not any("cookie" in headers for headers, _ in receiver.came)


async def test_who_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pileus.kernel.outbound.TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with Internet().open("any", "") as poster:
            with pytest.raises(Transient, match="no answer within"):
                await poster.post(f"http://127.0.0.1:{silent.getsockname()[1]}/", b"x", {})


async def test_a_name_that_is_never_answered_holds_up_nothing_else(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pileus.kernel.outbound.TIMEOUT_S", 0.5)
    answered, real = threading.Event(), socket.getaddrinfo

    def slow(host: str, *more: Any, **named: Any) -> Any:
        if host == NAME:
            answered.wait()
            raise socket.gaierror("there is no such name")
        return real(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    internet = Internet()
    async with internet.open("any", receiver.ca) as poster:
        for _ in range(LOOKUPS_MAX):
            with pytest.raises((Transient, TimeoutError)):
                async with internet.open("any", receiver.ca) as other, asyncio.timeout(0.01):
                    await other.post(f"https://{NAME}/", b"x", {})
        with pytest.raises(Transient, match="too many names"):
            await poster.post(f"https://localhost:{receiver.port}/", b"x", {})
        answered.set()
        async with asyncio.timeout(5.0):
            while not receiver.came:
                with contextlib.suppress(Transient):
                    await poster.post(f"https://localhost:{receiver.port}/", b"x", {})


@pytest.mark.parametrize(
    ("address", "expected"),
    [("1.1.1.1", True), ("2606:4700::1111", True), ("64:ff9b::101:101", True), ("2002:0a00:0001::1", False),
     ("192.168.1.1", False), ("fe80::1", False), ("ff02::1", False), ("255.255.255.255", False)],
)  # fmt: skip
def test_which_addresses_are_public(address: str, expected: bool) -> None:
    assert is_public(ip_address(address)) is expected
