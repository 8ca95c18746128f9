"""The byte stream over frames: nothing is lost, doubled or out of order, whatever happens to the frames."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pileus.node.datagrams import FRAME_BYTES_MAX, UNSENT_BYTES_MAX, WINDOW_MAX, Datagrams


class Air:
    """Two ends and frames on their way, with a clock of its own."""

    def __init__(self, seed: int = 0, lost: float = 0.0, doubled: float = 0.0, jitter: float = 2.0) -> None:
        self.random = random.Random(seed)
        self.lost, self.doubled, self.jitter = lost, doubled, jitter
        self.now = 0.0
        self.ends = [Datagrams(), Datagrams()]
        self.got = [bytearray(), bytearray()]
        self.flying: list[tuple[float, int, bytes]] = []
        self.frames = 0

    def step(self) -> None:
        """Send what is due, then go to when the next frame arrives or is due."""
        for index, end in enumerate(self.ends):
            for frame in end.outgoing(self.now):
                assert len(frame) <= FRAME_BYTES_MAX
                self.frames += 1
                copies = (self.random.random() >= self.lost) + (self.random.random() < self.doubled)
                for _ in range(copies):
                    delay_s = 0.001 * (1 + self.jitter * self.random.random())
                    self.flying.append((self.now + delay_s, 1 - index, frame))
        self.flying.sort(key=lambda one: one[0])
        times = [self.flying[0][0]] if self.flying else []
        times += [at for end in self.ends if (at := end.next_at()) is not None]
        if not times:
            return
        self.now = max(self.now, min(times))
        while self.flying and self.flying[0][0] <= self.now:
            _, target, frame = self.flying.pop(0)
            pairings = self.ends[target].pairings
            body = self.ends[target].receive(frame, self.now)
            if self.ends[target].pairings != pairings:
                self.got[target].clear()
            self.got[target] += body

    def pair(self) -> None:
        while not all(end.paired for end in self.ends):
            self.step()

    def send(self, index: int, data: bytes) -> None:
        """Carry ``data`` from one end to the other."""
        end, wanted = self.ends[index], self.got[1 - index] + data
        while self.got[1 - index] != wanted:
            room = end.room()
            end.write(data[:room])
            data = data[room:]
            self.step()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.4), st.floats(0, 0.5), st.lists(st.binary(max_size=20_000), max_size=4))
def test_bytes_arrive_once_and_in_order(seed: int, lost: float, doubled: float, parts: list[bytes]) -> None:
    air = Air(seed, lost, doubled)
    air.pair()
    for number, part in enumerate(parts):
        air.send(number % 2, part)


def test_without_loss_no_frame_is_sent_twice() -> None:
    air = Air(jitter=0)
    air.pair()
    air.send(0, bytes(500_000))
    segments = 500_000 / (FRAME_BYTES_MAX - 18)
    assert air.frames < 2.2 * segments


def test_a_tenth_of_the_frames_lost_costs_little_time() -> None:
    air = Air(seed=3, lost=0.1)
    air.pair()
    air.send(0, bytes(200_000))
    assert air.now < 5


@pytest.mark.parametrize("restarted", [0, 1])
def test_an_end_that_starts_anew_is_paired_again_with_empty_streams(restarted: int) -> None:
    air = Air()
    air.pair()
    air.send(0, bytes(50_000))
    air.ends[1 - restarted].write(b"for the one that is gone")
    old = air.ends[1 - restarted].outgoing(air.now)
    air.ends[restarted] = Datagrams()
    air.got = [bytearray(), bytearray()]
    for frame in old:
        air.ends[restarted].receive(frame, air.now)
    before = air.ends[1 - restarted].pairings
    while air.ends[1 - restarted].pairings == before or not air.ends[restarted].paired:
        air.step()
    air.send(0, b"hello")
    air.send(1, b"hello")


def test_an_end_without_a_peer_says_so_ever_more_rarely() -> None:
    end, frames, now = Datagrams(), 0, 0.0
    while now < 60:
        frames += len(end.outgoing(now))
        now += 0.1
    assert 10 < frames < 20
    assert end.room() == 0


def test_a_pair_at_rest_is_silent() -> None:
    air = Air()
    air.pair()
    air.send(0, b"x")
    while air.flying or any(end.next_at() for end in air.ends):
        air.step()
    assert all(end.outgoing(air.now + 1000) == [] for end in air.ends)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=30), st.data())
def test_frames_of_any_content_neither_break_nor_fill_it(frames: list[bytes], data: st.DataObject) -> None:
    air = Air()
    air.pair()
    end = air.ends[0]
    header = air.ends[1]._header(0, 0)
    for frame in frames:
        end.receive(header[: data.draw(st.integers(0, len(header)))] + frame, 1.0)
        end.outgoing(1.0)
    assert len(end._ahead) <= WINDOW_MAX
    assert len(end._unsent) <= UNSENT_BYTES_MAX
