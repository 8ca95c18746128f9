"""The calls of bpf(2) against the real kernel: maps, loading, test runs, pins, links on real devices."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
from pathlib import Path

import pytest
from tests.contract.ebpf.rooms import Room

from pileus.node.ebpf import kernel
from pileus.node.ebpf.assembler import R0, R1, R2, R3, R4, R10, Program

FRAME = bytes(range(64))
FD_FOLDER = Path("/proc/self/fd")


def _returning(verdict: int) -> bytes:
    program = Program()
    program.mov_imm(R0, verdict)
    program.exit()
    return program.code()


def _counting(counts: int, verdict: int) -> bytes:
    """A program that counts its packets in entry 0 of a map of 8-byte numbers, and returns the verdict."""
    program = Program()
    program.store_imm(R10, -4, 0, 4)
    program.mov(R2, R10)
    program.alu_imm("add", R2, -4)
    program.map(R1, counts)
    program.call(1)
    program.jump_imm("eq", R0, 0, "out")
    program.mov_imm(R1, 1)
    program.atomic_add(R0, 0, R1, 8)
    program.label("out")
    program.mov_imm(R0, verdict)
    program.exit()
    return program.code()


def _key(number: int) -> bytes:
    return struct.pack("I", number)


def _number(value: bytes | None) -> int:
    assert value is not None
    return int.from_bytes(value, "little")


def test_a_hash_map_keeps_what_was_put_into_it() -> None:
    table = kernel.create_map(kernel.HASH, 4, 8, 16, name="table")
    for number in range(5):
        kernel.update(table, _key(number), struct.pack("Q", number * 100))
    assert kernel.lookup(table, _key(3), 8) == struct.pack("Q", 300)
    assert kernel.lookup(table, _key(9), 8) is None
    assert sorted(kernel.keys(table, 4)) == [_key(number) for number in range(5)]
    assert kernel.delete(table, _key(3))
    assert not kernel.delete(table, _key(3))
    assert len(kernel.keys(table, 4)) == 4
    os.close(table)


def test_a_full_map_refuses_with_words() -> None:
    table = kernel.create_map(kernel.HASH, 4, 4, 1)
    kernel.update(table, _key(1), _key(1))
    with pytest.raises(kernel.BpfRefused, match="key 02000000 not set") as caught:
        kernel.update(table, _key(2), _key(2))
    assert caught.value.errno == errno.E2BIG
    os.close(table)


def test_a_map_that_cannot_be_is_refused_with_its_name() -> None:
    with pytest.raises(kernel.BpfRefused, match="no map wide of 1 entries"):
        kernel.create_map(kernel.ARRAY, 8, 4, 1, name="wide")


def test_a_per_cpu_map_has_a_value_of_each_cpu() -> None:
    counts = kernel.create_map(kernel.PERCPU_ARRAY, 4, 12, 2)
    per_cpu = [bytes([cpu]) * 12 for cpu in range(kernel.possible_cpus())]
    kernel.update(counts, _key(1), b"".join(value.ljust(16, b"\0") for value in per_cpu))
    assert kernel.lookup_per_cpu(counts, _key(1), 12) == per_cpu
    assert kernel.lookup_per_cpu(counts, _key(5), 12) == []
    os.close(counts)


def test_an_array_in_memory_is_the_one_that_programs_see() -> None:
    counts = kernel.create_map(kernel.ARRAY, 4, 8, 700, kernel.MAPPABLE)
    mapped = kernel.Mapped(counts, 700 * 8)
    mapped.words[0], mapped.words[699] = 41, 7
    fd = kernel.load(kernel.XDP, _counting(counts, kernel.XDP_DROP), "counts")
    kernel.run_test(fd, FRAME)
    assert mapped.words[0] == 42
    assert mapped.copy(699, 8) == struct.pack("Q", 7) == kernel.lookup(counts, _key(699), 8)
    mapped.close()
    for each in (fd, counts):
        os.close(each)


def test_an_array_that_is_not_made_for_it_cannot_be_in_memory() -> None:
    counts = kernel.create_map(kernel.ARRAY, 4, 8, 1)
    with pytest.raises(kernel.BpfRefused, match="array not mapped"):
        kernel.Mapped(counts, 8)
    os.close(counts)


def test_a_program_runs_on_a_frame_and_gives_it_back_changed() -> None:
    program = Program()
    program.load(R2, R1, 0, 4)
    program.load(R3, R1, 4, 4)
    program.mov(R4, R2)
    program.alu_imm("add", R4, 64)
    program.jump("gt", R4, R3, "short")
    program.store_imm(R2, 0, 0xAB, 1)
    program.mov_imm(R0, kernel.XDP_PASS)
    program.exit()
    program.label("short")
    program.mov_imm(R0, kernel.XDP_DROP)
    program.exit()
    fd = kernel.load(kernel.XDP, program.code(), "changes")
    verdict, frame, took_ns = kernel.run_test(fd, FRAME, repeat=100)
    assert (verdict, frame) == (kernel.XDP_PASS, b"\xab" + FRAME[1:])
    assert took_ns < 1_000_000
    assert kernel.run_test(fd, FRAME[:63])[:2] == (kernel.XDP_DROP, FRAME[:63])
    os.close(fd)


def test_a_program_counts_each_run() -> None:
    counts = kernel.create_map(kernel.PERCPU_ARRAY, 4, 8, 1)
    fd = kernel.load(kernel.XDP, _counting(counts, kernel.XDP_DROP), "counts")
    kernel.run_test(fd, FRAME, repeat=1000)
    assert sum(map(_number, kernel.lookup_per_cpu(counts, _key(0), 8))) == 1000
    os.close(fd)
    os.close(counts)


def test_a_refused_program_tells_the_verifiers_last_lines() -> None:
    program = Program()
    program.load(R0, R1, 0, 4)
    program.load(R0, R0, 0, 8)
    program.exit()
    with pytest.raises(
        kernel.BpfRefused, match=r"program bad not loaded: Permission denied[\s\S]*invalid access to packet"
    ) as caught:
        kernel.load(kernel.XDP, program.code(), "bad")
    assert len(str(caught.value).splitlines()) <= 14


def test_a_pinned_map_outlives_its_descriptor(pins: Path) -> None:
    table = kernel.create_map(kernel.HASH, 4, 4, 4)
    kernel.update(table, _key(1), _key(7))
    kernel.pin(table, pins / "table")
    os.close(table)
    adopted = kernel.open_pinned(pins / "table")
    assert kernel.lookup(adopted, _key(1), 4) == _key(7)
    os.close(adopted)


def test_a_pin_that_is_not_there_is_refused_with_its_path(pins: Path) -> None:
    with pytest.raises(kernel.BpfRefused, match="pins/none: No such file") as caught:
        kernel.open_pinned(pins / "none")
    assert caught.value.errno == errno.ENOENT


def test_a_program_at_a_device_sees_its_frames_until_the_link_is_closed(room: Room) -> None:
    left, right = room.veth("left", "right")
    counts = kernel.create_map(kernel.PERCPU_ARRAY, 4, 8, 1)
    dropping = kernel.load(kernel.XDP, _counting(counts, kernel.XDP_DROP), "drops")
    link = room.run(kernel.attach, dropping, right, kernel.ATTACH_XDP, kernel.XDP_GENERIC)
    assert kernel.attached_to(link) == right
    sender, receiver = room.packet_socket("left"), room.packet_socket("right")
    sender.send(FRAME)
    assert sum(map(_number, kernel.lookup_per_cpu(counts, _key(0), 8))) == 1
    os.close(link)
    _send_until_read(sender, receiver)
    assert left != right
    for each in (sender, receiver):
        each.close()
    for fd in (dropping, counts):
        os.close(fd)


def test_a_pinned_link_outlives_its_descriptor_and_takes_another_program(room: Room, pins: Path) -> None:
    _, right = room.veth("left", "right")
    old, new = (kernel.load(kernel.XDP, _returning(verdict), "v") for verdict in (kernel.XDP_DROP, kernel.XDP_PASS))
    link = room.run(kernel.attach, old, right, kernel.ATTACH_XDP, kernel.XDP_GENERIC)
    kernel.pin(link, pins / "link")
    os.close(link)
    sender, receiver = room.packet_socket("left"), room.packet_socket("right")
    receiver.setblocking(False)
    sender.send(FRAME)
    with pytest.raises(BlockingIOError):
        receiver.recv(2048)
    adopted = kernel.open_pinned(pins / "link")
    kernel.replace(adopted, new)
    _send_until_read(sender, receiver)
    (pins / "link").unlink()
    for each in (sender, receiver):
        each.close()
    for fd in (old, new, adopted):
        os.close(fd)


@pytest.mark.parametrize("side", [kernel.ATTACH_TCX_INGRESS, kernel.ATTACH_TCX_EGRESS])
def test_a_tcx_program_sees_frames_in_its_direction(room: Room, side: int) -> None:
    left, right = room.veth("left", "right")
    counts = kernel.create_map(kernel.PERCPU_ARRAY, 4, 8, 1)
    program = kernel.load(kernel.SCHED_CLS, _counting(counts, -1), "tcx")
    try:
        link = room.run(kernel.attach, program, right if side == kernel.ATTACH_TCX_INGRESS else left, side)
    except kernel.BpfRefused as exc:
        pytest.skip(f"this kernel has no TCX: {exc}")
    sender, receiver = room.packet_socket("left"), room.packet_socket("right")
    _send_until_read(sender, receiver)
    assert sum(map(_number, kernel.lookup_per_cpu(counts, _key(0), 8))) >= 1
    for each in (sender, receiver):
        each.close()
    for fd in (link, program, counts):
        os.close(fd)


def test_a_device_that_is_gone_is_no_longer_attached_to(room: Room) -> None:
    _, right = room.veth("left", "right")
    program = kernel.load(kernel.XDP, _returning(kernel.XDP_PASS), "v")
    link = room.run(kernel.attach, program, right, kernel.ATTACH_XDP, kernel.XDP_GENERIC)
    room.ip("link", "del", "left")
    assert kernel.attached_to(link) == 0
    os.close(link)
    os.close(program)


def test_a_device_that_is_not_there_is_refused_with_its_number(room: Room) -> None:
    program = kernel.load(kernel.XDP, _returning(kernel.XDP_PASS), "v")
    with pytest.raises(kernel.BpfRefused, match="program not attached to device 4242"):
        room.run(kernel.attach, program, 4242, kernel.ATTACH_XDP)
    os.close(program)


def test_live_frames_are_really_sent(room: Room) -> None:
    left, right = room.veth("left", "right")
    program = Program()
    program.mov_imm(R1, left)
    program.mov_imm(R2, 0)
    program.call(23)
    program.exit()
    sending = kernel.load(kernel.XDP, program.code(), "sends")
    counts = kernel.create_map(kernel.PERCPU_ARRAY, 4, 8, 1)
    counting = kernel.load(kernel.XDP, _counting(counts, kernel.XDP_DROP), "counts")
    link = room.run(kernel.attach, counting, right, kernel.ATTACH_XDP, kernel.XDP_NATIVE)
    room.run(kernel.run_live, sending, FRAME, 128)
    assert sum(map(_number, kernel.lookup_per_cpu(counts, _key(0), 8))) == 128
    for fd in (link, sending, counting, counts):
        os.close(fd)


def test_nothing_stays_open() -> None:
    before = len(list(FD_FOLDER.iterdir()))
    for _ in range(50):
        counts = kernel.create_map(kernel.PERCPU_ARRAY, 4, 8, 1)
        fd = kernel.load(kernel.XDP, _counting(counts, kernel.XDP_DROP), "counts")
        kernel.run_test(fd, FRAME)
        with pytest.raises(kernel.BpfRefused):
            kernel.load(kernel.XDP, _returning(0)[:8], "bad")
        os.close(fd)
        os.close(counts)
    assert len(list(FD_FOLDER.iterdir())) == before


def test_no_namespace_of_a_test_is_left(room: Room) -> None:
    room.veth("left", "right")
    assert "left" not in subprocess.run(["ip", "link"], check=True, capture_output=True, text=True).stdout


def _send_until_read(sender: socket.socket, receiver: socket.socket) -> None:
    """A closed link lets go a moment later: the kernel removes it in a work queue."""
    receiver.settimeout(0.05)
    for _ in range(100):
        sender.send(FRAME)
        try:
            assert receiver.recv(2048) == FRAME
        except TimeoutError:
            continue
        return
    raise AssertionError("no frame arrived")
