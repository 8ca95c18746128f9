"""``pileus mirror``: a real server and real connections; the decapsulator at their end is a stand-in."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.unit.cli.test_packets import ipv4, tcp

from pileus.cli.commands.mirror_watch import summary
from pileus.cli.failure import BROKEN_PIPE, NOT_FOUND, OK, REFUSED, USAGE
from pileus.fleet.node.types import NodeAssigned, NodeDesired
from pileus.kernel.errors import Transient
from pileus.kernel.kind import Resource
from pileus.kernel.transaction import Transaction
from pileus.mirror.session.types import SessionCounts
from pileus.node.mirror import CAPTURE_PORT, pcapng

if TYPE_CHECKING:
    from tests.cloud.cli.cli_world import HOST, LIMIT_S, Cloud
    from tests.cloud.cli.conftest import Ran, Run
    from tests.cloud.cli.test_streams import COMMAND, line, running
else:
    from cli_world import HOST, LIMIT_S
    from test_streams import COMMAND, line, running

    Cloud = Ran = Run = Any

AT_NS = 1_700_000_000_000_000_000
SYN, ANSWER = ipv4(6, tcp((50000, 443), 0x02)), ipv4(6, tcp((443, 50000), 0x12), ends="10.1.0.2 10.1.0.1")
HEAD = pcapng.section("test") + pcapng.interface("watch")
PACKETS = [
    pcapng.packet(AT_NS + number * 1000, frame, len(frame), direction)
    for number, (frame, direction) in enumerate([(SYN, 1), (ANSWER, 2), (SYN, 1)])
]
WORDS = [
    "In  IP 10.1.0.1.50000 > 10.1.0.2.443: Flags [S], seq 1000, win 512, length 0",
    "Out IP 10.1.0.2.443 > 10.1.0.1.50000: Flags [S.], seq 1000, ack 7, win 512, length 0",
    "In  IP 10.1.0.1.50000 > 10.1.0.2.443: Flags [S], seq 1000, win 512, length 0",
]
STATISTICS = pcapng.statistics(pcapng.Statistics(AT_NS, AT_NS, received=3, delivered=3))
FLOWS = [
    {"protocol": "tcp", "a": "10.1.0.1", "a_port": 50000, "b": "10.1.0.2", "b_port": 443, "first": 1.7e9,
     "last": 1.7e9 + 2.5, "packets": [2, 1], "bytes": [108, 54]},
    {"protocol": "udp", "a": "fd00::1", "a_port": 5, "b": "fd00::2", "b_port": 53, "first": 1.7e9, "last": 1.7e9,
     "packets": [1, 1], "bytes": [80, 4000]},
    {"protocol": "arp", "a": "10.1.0.1\x1b[2J", "a_port": 0, "b": "10.1.0.2", "b_port": 0, "first": 1e300, "last": 1.7e9,
     "packets": [1, 0], "bytes": [60, 0]},
]  # fmt: skip
ROUND = {
    "flows": 3,
    "gone": {"flows": 1, "packets": 2, "bytes": 3},
    "received": 9,
    "lost": 1,
    "dropped": 0,
    "over": False,
}


class Decapsulator:
    """Says its pieces, then waits for the session's end, says its last words, and ends; or breaks before that."""

    def __init__(self, cloud: Cloud, script: Script) -> None:
        self.done = False
        self._cloud, self._script = cloud, script
        self._asked = ""
        self._says = iter(script.says)
        self._is_last_said = False

    async def write(self, content: bytes, /) -> None:
        asked = msgspec.json.decode(content)
        self._asked = asked["session"]
        self._script.asked.append(asked)

    async def read(self) -> bytes:
        for piece in self._says:
            if piece == b"break":
                raise Transient("the decapsulator was killed")
            return piece
        if not self._is_last_said:
            self._is_last_said = True
            self._script.idle.set()
            if self._script.asked[-1]["follow"]:
                await self._cloud.mirrors.over.setdefault(self._asked, asyncio.Event()).wait()
            return self._script.last
        return b""

    async def finish(self) -> None:
        self.done = True

    async def close(self) -> None:
        self._script.closed.set()


class Script:
    """What decapsulators say, one after another; the last one's words are said again."""

    def __init__(self, cloud: Cloud) -> None:
        self.asked: list[dict[str, Any]] = []
        self.plays: list[list[bytes]] = [[HEAD, *PACKETS]]
        self.last = STATISTICS
        self.idle, self.closed = threading.Event(), threading.Event()
        cloud.hosts.listening["127.0.0.1", CAPTURE_PORT] = lambda: Decapsulator(cloud, self)

    @property
    def says(self) -> list[bytes]:
        """What the next one says."""
        return self.plays.pop(0) if len(self.plays) > 1 else self.plays[0]


@pytest.fixture
def web(pileus: Run, account: str, cloud: Cloud) -> Iterator[str]:
    """The account of a VM web, in a cloud with a decapsulator."""
    assert pileus("create", "vm", "web", "--account", account, "--wait").code == OK
    id = pileus("get", "account", account, "-o", "json").json["id"]

    async def write(tx: Transaction) -> None:
        node = Resource(
            id="", kind="fleet.node", name="decapsulator", account_id=id, account=account, owner=id,
            desired=NodeDesired(manager="mirrors", vdc="v"),
            assigned=NodeAssigned(zone="z", vdc="v", vm="appliance", host=HOST),
        )  # fmt: skip
        cloud.mirrors.node = (await tx.create(node)).id

    store = cloud.started.parts.store
    asyncio.run_coroutine_threadsafe(store.write(write), cloud.loop).result(LIMIT_S)
    cloud.mirrors.counts = SessionCounts(seen=10, matched=3, sampled=3, sent=3, received=3)
    yield account
    cloud.mirrors.waits = ""
    cloud.hosts.listening.clear()


@pytest.fixture
def script(web: str, cloud: Cloud) -> Script:
    """What the decapsulator says."""
    return Script(cloud)


@pytest.fixture
def sessions(pileus: Run, web: str) -> Callable[[], list[str]]:
    """Returns the names of the sessions that there are."""

    def get() -> list[str]:
        found = pileus("get", "session", "--account", web, "-o", "json").json["items"]
        return [one["name"] for one in found if not one["deleting_at"]]

    return get


def test_packets_are_lines_and_at_the_end_it_is_said_how_complete_they_are(
    pileus: Run, web: str, script: Script, sessions: Callable[[], list[str]]
) -> None:
    ran = pileus("mirror", "watch", "vm/web", "--account", web, "--lines", "--count", "2", "--filter", "tcp port 443")
    assert ran.code == OK, ran.err
    lines = ran.out.splitlines()
    assert [text.partition(" ")[2] for text in lines] == WORDS[:2]
    assert lines[1][8:15] == ".000001"
    assert ran.err.splitlines() == [
        "2 packets", "10 seen at the port, 3 matched, 3 copied", "3 received, 0 lost on the way, 0 gone before they were read"
    ]  # fmt: skip
    assert script.asked[0] | {"session": ""} == {"session": "", "want": "packets", "from": "start", "follow": True}
    assert sessions() == []


def test_what_is_wished_for_is_in_the_session(pileus: Run, web: str, script: Script) -> None:
    flags = [
        "--filter",
        "udp",
        "--direction",
        "egress",
        "--snap",
        "96",
        "--sample",
        "10",
        "--duration",
        "10m",
        "--keep",
    ]
    ran = pileus("mirror", "watch", "vm", "web", "--account", web, "--lines", "--count", "1", *flags)
    assert ran.code == OK, ran.err
    name = ran.err.splitlines()[-1].split()[1]
    assert ran.err.endswith(f"session {name} of account {web} stays; `pileus delete session {name}` ends it\n")
    made = pileus("get", "session", name, "--account", web, "-o", "json").json["desired"]
    wished = {
        "nic": 0,
        "expression": "udp",
        "direction": "egress",
        "snap_bytes": 96,
        "sample_one_in": 10,
        "duration_s": 600,
    }
    assert made | wished == made


def test_standard_output_that_is_no_terminal_gets_pcapng(
    web: str, script: Script, sessions: Callable[[], list[str]]
) -> None:
    with running("mirror", "watch", "vm/web", "--account", web) as child:
        assert script.idle.wait(LIMIT_S)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode == OK, err
    blocks = pcapng.Reader().feed(out)
    assert [block.data for block in blocks if isinstance(block, pcapng.Packet)] == [SYN, ANSWER, SYN]
    assert isinstance(blocks[-1], pcapng.Statistics)
    assert (blocks[-1].received, blocks[-1].lost, blocks[-1].delivered) == (3, 0, 3)
    assert b"complete: every packet that matched\n" in err
    assert sessions() == []


def test_a_file_gets_pcapng_that_nobody_else_may_read(
    pileus: Run, web: str, script: Script, tmp_path: Path, sessions: Callable[[], list[str]]
) -> None:
    file = tmp_path / "web.pcapng"
    ran = pileus("mirror", "watch", "vm/web", "--account", web, "--write", str(file), "--count", "2")
    assert (ran.code, ran.out) == (OK, ""), ran.err
    packets = [block for block in pcapng.Reader().feed(file.read_bytes()) if isinstance(block, pcapng.Packet)]
    assert [(one.data, one.direction) for one in packets] == [(SYN, 1), (ANSWER, 2)]
    assert file.stat().st_mode & 0o777 == 0o600
    ran = pileus("mirror", "watch", "vm/web", "--account", web, "--write", str(tmp_path / "no" / "file"))
    assert (ran.code, "cannot write" in ran.err) == (REFUSED, True)
    assert sessions() == []
    assert len(script.asked) == 1, "what cannot be written is not watched"


def test_a_file_that_was_there_is_replaced_when_packets_come_and_no_sooner(
    pileus: Run, web: str, script: Script, tmp_path: Path
) -> None:
    yesterday = b"yesterday" * 1000
    file = tmp_path / "web.pcapng"
    file.write_bytes(yesterday)
    file.chmod(0o644)
    ran = pileus("mirror", "watch", "vm/wbe", "--account", web, "--write", str(file), "--count", "2")
    assert ran.code == NOT_FOUND, ran.err
    assert file.read_bytes() == yesterday
    ran = pileus("mirror", "watch", "vm/web", "--account", web, "--write", str(file), "--count", "2")
    assert ran.code == OK, ran.err
    packets = [block for block in pcapng.Reader().feed(file.read_bytes()) if isinstance(block, pcapng.Packet)]
    assert [one.data for one in packets] == [SYN, ANSWER]
    assert b"yesterday" not in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_device_is_written_to_as_it_is(pileus: Run, web: str, script: Script) -> None:
    mode = Path("/dev/null").stat().st_mode
    ran = pileus("mirror", "watch", "vm/web", "--account", web, "--write", "/dev/null", "--count", "2")
    assert ran.code == OK, ran.err
    assert Path("/dev/null").stat().st_mode == mode


def test_a_reader_that_goes_ends_it_and_leaves_nothing(
    web: str, script: Script, sessions: Callable[[], list[str]]
) -> None:
    script.plays = [[HEAD, *itertools.repeat(PACKETS[0] * 1000, 200)]]
    command = [*COMMAND, "mirror", "watch", "vm/web", "--account", web, "--lines"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline()
        child.stdout.close()
        assert child.wait(LIMIT_S) == BROKEN_PIPE
    assert sessions() == []


def test_it_is_said_why_a_session_does_not_run_yet(
    web: str, script: Script, cloud: Cloud, sessions: Callable[[], list[str]]
) -> None:
    cloud.mirrors.waits = "vm web is stopped"
    with running("mirror", "watch", "vm/web", "--account", web, "--lines", "--count", "1") as child:
        assert "VmStopped: vm web is stopped" in line(child.stderr, "VmStopped")
        cloud.mirrors.waits = ""
        out, _ = child.communicate(timeout=LIMIT_S)
    assert child.returncode == OK
    assert WORDS[0].encode() in out
    cloud.mirrors.waits = "vm web is stopped"
    for number in (signal.SIGINT, signal.SIGTERM):
        with running("mirror", "watch", "vm/web", "--account", web, "--lines") as child:
            line(child.stderr, "VmStopped")
            child.send_signal(number)
            child.communicate(timeout=LIMIT_S)
        assert sessions() == []


def test_a_session_that_is_there_is_joined_and_left_as_it_is(
    pileus: Run, web: str, script: Script, sessions: Callable[[], list[str]]
) -> None:
    assert pileus("create", "session", "mine", "--vm", "web", "--account", web, "--wait").code == OK
    ran = pileus("mirror", "watch", "session/mine", "--account", web, "--lines", "--count", "3")
    assert (ran.code, len(ran.out.splitlines())) == (OK, 3), ran.err
    assert sessions() == ["mine"]
    ran = pileus("mirror", "watch", "session/mine", "--account", web, "--filter", "tcp")
    assert (ran.code, "--filter is for a session that is made" in ran.err) == (USAGE, True)
    assert pileus("mirror", "watch", "session/none", "--account", web).code == NOT_FOUND
    assert pileus("mirror", "watch", "session", "--account", web).code == USAGE


def test_a_connection_that_breaks_is_made_again_and_no_packet_comes_twice(
    pileus: Run, web: str, script: Script
) -> None:
    script.plays = [[HEAD, *PACKETS[:2], b"break"], [b'{"error":"not yet"}\n'], [HEAD, *PACKETS]]
    ran = pileus("mirror", "watch", "vm/web", "--account", web, "--lines", "--count", "3")
    assert ran.code == OK, ran.err
    assert [text.partition(" ")[2] for text in ran.out.splitlines()] == WORDS
    assert "the connection broke once; some packets may be missing" in ran.err
    assert len(script.asked) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["vm/web", "--filter", "tcp prt 443"],
            ["  tcp prt 443\n      ^^^\n", 'unknown word "prt"; did you mean `port`?'],
        ),
        (["vm/web", "tcp"], ['"tcp" is one word too many; a filter is given as --filter']),
        (["host/h1"], ["only a vm has packets, not a host"]),
        (["vm/web", "--duration", "soon"], ["--duration takes a time such as 90s, 10m or 1h, not 'soon'"]),
        (["vm/web", "--duration", "0s"], ["--duration takes at least one second"]),
        (["vm/web", "--lines", "--write", "-"], ["lines and pcapng cannot both go to standard output"]),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    pileus: Run, web: str, sessions: Callable[[], list[str]], arguments: list[str], words: list[str]
) -> None:
    ran = pileus("mirror", "watch", *arguments, "--account", web)
    assert ran.code == USAGE
    for text in words:
        assert text in ran.err
    assert sessions() == []


def test_what_is_no_capture_is_refused(
    pileus: Run, web: str, script: Script, sessions: Callable[[], list[str]]
) -> None:
    script.plays = [[b"GET / HTTP/1.1 and more of such"]]
    ran = pileus("mirror", "watch", "vm/web", "--account", web, "--lines")
    assert (ran.code, "is no capture" in ran.err) == (REFUSED, True)
    assert sessions() == []


# flows


def _lines(*said: Any) -> bytes:
    return b"".join(msgspec.json.encode(one) + b"\n" for one in said)


def test_flows_are_a_table_with_the_most_bytes_first(pileus: Run, web: str, script: Script) -> None:
    script.plays, script.last = [[_lines(*FLOWS, ROUND)]], b""
    assert pileus("create", "session", "mine", "--vm", "web", "--account", web, "--wait").code == OK
    ran = pileus("mirror", "flows", "session/mine", "--account", web)
    assert ran.code == OK, ran.err
    rows = [text.split() for text in ran.out.splitlines()]
    assert rows[0] == [
        "PROTOCOL",
        "A",
        "B",
        "FLOWS",
        "PACKETS",
        "A→B",
        "B→A",
        "BYTES",
        "A→B",
        "B→A",
        "FIRST",
        "DURATION",
    ]
    assert rows[1][:10] == ["udp", "[fd00::1]:5", "[fd00::2]:53", "1", "1", "1", "80", "B", "3.9", "KiB"]
    assert (rows[2][:6], rows[2][-1]) == (["tcp", "10.1.0.1:50000", "10.1.0.2:443", "1", "2", "1"], "2.5s")
    assert "\x1b" not in ran.out
    assert ran.out.endswith("3 flows of 9 packets, 1 lost on the way, 0 not kept; 1 idle flows went to make room\n")
    assert (script.asked[0]["want"], script.asked[0]["follow"]) == ("flows", False)
    ran = pileus("mirror", "flows", "session/mine", "--account", web, "-o", "json", "--top", "1")
    assert ran.json["flows"] == [FLOWS[1] | {"flows": 1}]
    assert ran.json["totals"]["lost"] == 1
    script.plays = [[_lines(*FLOWS, FLOWS[0] | {"a_port": 50001, "last": 1.7e9 + 9, "packets": [1, 1]}, ROUND)]]
    ran = pileus("mirror", "flows", "session/mine", "--account", web, "--sum")
    (row,) = [text.split() for text in ran.out.splitlines() if text.startswith("tcp")]
    assert (row[:6], row[-1]) == (["tcp", "10.1.0.1", "10.1.0.2:443", "2", "3", "2"], "9.0s")


def test_flows_of_a_vm_are_shown_at_the_end_or_all_the_time(
    web: str, script: Script, sessions: Callable[[], list[str]]
) -> None:
    later = FLOWS[0] | {"packets": [3, 1]}
    script.plays, script.last = [[_lines(*FLOWS, ROUND)]], _lines(later, ROUND)
    with running("mirror", "flows", "vm/web", "--account", web) as child:
        assert script.idle.wait(LIMIT_S)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=LIMIT_S)
    assert child.returncode == OK, err
    assert out.decode().splitlines()[2].split()[4] == "3", "the newest state of each flow"
    script.idle.clear()
    with running("mirror", "flows", "vm/web", "--account", web, "--follow", "-o", "json") as child:
        assert len(msgspec.json.decode(line(child.stdout, "flows"))["flows"]) == 3
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=LIMIT_S)
    assert sessions() == []


def test_lines_that_are_no_flows_are_refused(pileus: Run, web: str, script: Script) -> None:
    script.plays = [[b'{"protocol": 5}\n{}\n']]
    ran = pileus("mirror", "flows", "vm/web", "--account", web)
    assert (ran.code, "no flows" in ran.err) == (REFUSED, True)


# what is said at the end


def test_a_summary_says_what_is_missing() -> None:
    counts = {"seen": 100, "matched": 50, "sampled": 50, "limited": 0, "failed": 0, "sent": 50}
    said = pcapng.Statistics(0, received=50, delivered=50)
    assert list(summary(50, counts, said, is_all=True))[-1] == "complete: every packet that matched"
    said = pcapng.Statistics(0, received=45, lost=5, missed=2, delivered=43)
    assert list(summary(43, counts, said, is_all=True)) == [
        "43 packets", "100 seen at the port, 50 matched, 50 copied",
        "45 received, 5 lost on the way, 2 gone before they were read", "incomplete: 7 packets are missing",
    ]  # fmt: skip
    counts |= {"sampled": 5, "sent": 4, "limited": 1}
    assert list(summary(1, counts, None, is_all=True)) == [
        "1 packet", "100 seen at the port, 50 matched, 5 sampled, 1 over the rate limit, 4 copied"
    ]  # fmt: skip
    assert list(summary(0, {}, None, is_all=False)) == ["0 packets"]
